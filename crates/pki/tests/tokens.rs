//! Tokens: round trips, refusals and their texts.

use ikada_pki::token::{
    Claims, DataplaneClaims, DataplaneFacts, KeyScope, Revocations, SigningKey, TokenError, UserClaims, VerificationKeys, ZoneClaims,
    ZoneProxy, check_dataplane, check_zone, generate_signing_key, issue, key_id, validate,
};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
    sync::OnceLock,
    time::{Duration, SystemTime},
};

const DAY: Duration = Duration::from_secs(24 * 3600);

fn key_pem() -> &'static str {
    static KEY: OnceLock<String> = OnceLock::new();
    KEY.get_or_init(|| generate_signing_key().unwrap())
}

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

fn keys(scope: KeyScope) -> VerificationKeys {
    let name = scope.default_secret_name();
    VerificationKeys::from_secrets(scope, [(name.as_str(), key_pem().as_bytes())])
}

fn mesh() -> KeyScope {
    KeyScope::Dataplane { mesh: "default".to_owned() }
}

fn key() -> SigningKey {
    SigningKey::parse("1", key_pem().as_bytes()).unwrap()
}

fn payload(token: &str) -> Value {
    use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(token.split('.').nth(1).unwrap()).unwrap()).unwrap()
}

fn round_trip<C: Claims + PartialEq + Debug>(scope: KeyScope, claims: C) -> Value {
    let token = issue(&claims, &key(), DAY, now()).unwrap();
    let header = jsonwebtoken::decode_header(&token).unwrap();
    assert_eq!((header.alg, header.kid.as_deref(), header.typ.as_deref()), (Algorithm::RS256, Some("1"), Some("JWT")));
    let read = validate::<C>(&token, &keys(scope), &Revocations::default(), now()).unwrap();
    assert_eq!(read.claims, claims);
    assert_eq!(read.expires, Some(1_800_000_000 + 86_400));
    let body = payload(&token);
    assert_eq!(body["jti"], json!(read.id));
    assert_eq!((&body["iat"], &body["nbf"], &body["exp"]), (&json!(1_799_999_995u64), &json!(1_799_999_995u64), &json!(1_800_086_400u64)));
    body
}

#[test]
fn three_kinds_round_trip_with_gos_field_names() {
    let body = round_trip(KeyScope::User, UserClaims { name: "mesh-system:admin".into(), groups: vec!["mesh-system:admin".into()] });
    assert_eq!((&body["Name"], &body["Groups"]), (&json!("mesh-system:admin"), &json!(["mesh-system:admin"])));
    let body = round_trip(KeyScope::Zone, ZoneClaims { zone: "east".into(), scope: vec!["egress".into()] });
    assert_eq!((&body["Zone"], &body["Scope"]), (&json!("east"), &json!(["egress"])));
    let tags = BTreeMap::from([("kuma.io/service".to_owned(), vec!["web".to_owned()])]);
    let claims = DataplaneClaims { name: "web-1".into(), mesh: "default".into(), tags, proxy_type: "dataplane".into(), workload: "w".into() };
    let body = round_trip(mesh(), claims);
    assert_eq!(body["Tags"], json!({"kuma.io/service": ["web"]}));
    assert_eq!((&body["Type"], &body["Workload"], &body["Mesh"]), (&json!("dataplane"), &json!("w"), &json!("default")));
}

fn refused<C: Claims + Debug>(token: &str, keys: &VerificationKeys, at: SystemTime) -> String {
    validate::<C>(token, keys, &Revocations::default(), at).unwrap_err().to_string()
}

#[test]
fn refusals_have_clear_texts() {
    let token = issue(&UserClaims::default(), &key(), DAY, now()).unwrap();
    let users = keys(KeyScope::User);
    assert_eq!(refused::<UserClaims>(&token, &users, now() + DAY), "could not parse token: token has invalid claims: token is expired");
    assert!(validate::<UserClaims>(&token, &users, &Revocations::default(), now() + DAY - Duration::from_secs(1)).is_ok());
    let early = now() - Duration::from_secs(6);
    assert_eq!(refused::<UserClaims>(&token, &users, early), "could not parse token: token has invalid claims: token is not valid yet");
    let malformed = "could not parse token: token is malformed: token contains an invalid number of segments";
    assert_eq!(refused::<UserClaims>("", &users, now()), malformed);
    assert_eq!(refused::<UserClaims>("a.b", &users, now()), malformed);
    assert!(refused::<UserClaims>("a.b.c", &users, now()).starts_with("could not parse token: token is malformed: "));
    assert!(refused::<UserClaims>(&"x".repeat(100_000), &users, now()).contains("longer than"));

    // Signed by another key with the same id.
    let stranger = SigningKey::parse("1", generate_signing_key().unwrap().as_bytes()).unwrap();
    let forged = issue(&UserClaims::default(), &stranger, DAY, now()).unwrap();
    assert_eq!(refused::<UserClaims>(&forged, &users, now()), "could not parse token: token signature is invalid: crypto/rsa: verification error");

    // A key that is not there, per kind.
    let rotated = issue(&UserClaims::default(), &SigningKey::parse("7", key_pem().as_bytes()).unwrap(), DAY, now()).unwrap();
    assert_eq!(
        refused::<UserClaims>(&rotated, &users, now()),
        "there is no signing key with KID 7. GlobalSecret of name \"user-token-signing-key-7\" is not found. If signing key was rotated, \
         regenerate the token"
    );
    assert_eq!(
        TokenError::signing_key_not_found(&mesh(), "1").to_string(),
        "there is no signing key with KID 1. Secret of name \"dataplane-token-signing-key-default-1\" in mesh \"default\" is not found. If \
         signing key was rotated, regenerate the token"
    );
}

#[test]
fn revoked_ids_are_refused() {
    let token = issue(&UserClaims::default(), &key(), DAY, now()).unwrap();
    let id = payload(&token)["jti"].as_str().unwrap().to_owned();
    let mut revoked = Revocations::default();
    revoked.add("other,another\n");
    assert!(validate::<UserClaims>(&token, &keys(KeyScope::User), &revoked, now()).is_ok());
    revoked.add(&format!("x,{id}\n"));
    let refused = validate::<UserClaims>(&token, &keys(KeyScope::User), &revoked, now()).unwrap_err();
    assert_eq!((&refused, refused.to_string().as_str()), (&TokenError::Revoked, "token is revoked"));
}

fn foreign(header: &Header, key: &EncodingKey) -> String {
    jsonwebtoken::encode(header, &json!({"Name": "dp-1", "Mesh": "default", "Tags": null}), key).unwrap()
}

#[test]
fn algorithms_and_key_ids() {
    let scope = mesh();
    let legacy = b"raw bytes of an old key";
    let keys = VerificationKeys::from_secrets(scope.clone(), [(scope.prefix().as_str(), legacy.as_slice()), ("other-key-1", b"x".as_slice())]);
    let hmac = EncodingKey::from_secret(legacy);
    let read = validate::<DataplaneClaims>(&foreign(&Header::new(Algorithm::HS256), &hmac), &keys, &Revocations::default(), now()).unwrap();
    assert_eq!((read.claims.name.as_str(), read.expires), ("dp-1", None));
    let mut header = Header::new(Algorithm::HS256);
    header.kid = Some("0".into());
    assert!(validate::<DataplaneClaims>(&foreign(&header, &hmac), &keys, &Revocations::default(), now()).is_ok());
    assert!(refused::<DataplaneClaims>(&foreign(&header, &EncodingKey::from_secret(b"guess")), &keys, now()).contains("signature is invalid"));
    header.kid = Some("1".into());
    assert!(refused::<DataplaneClaims>(&foreign(&header, &hmac), &keys, now()).contains("must have key id 0"));

    let nothing = VerificationKeys::from_secrets(scope.clone(), [(scope.prefix().as_str(), [].as_slice())]);
    let anybody = foreign(&Header::new(Algorithm::HS256), &EncodingKey::from_secret(b""));
    assert!(refused::<DataplaneClaims>(&anybody, &nothing, now()).contains("no signing key with KID 0"));

    // The public RSA key must never serve as an HMAC secret: without a serial-0 secret HS256 has no key at all.
    let modern = self::keys(mesh());
    assert!(refused::<DataplaneClaims>(&foreign(&Header::new(Algorithm::HS256), &hmac), &modern, now()).contains("no signing key with KID 0"));

    let rsa = EncodingKey::from_rsa_pem(key_pem().as_bytes()).unwrap();
    assert!(refused::<DataplaneClaims>(&foreign(&Header::new(Algorithm::RS256), &rsa), &modern, now()).contains("JWT token must have kid header"));
    let mut header = Header::new(Algorithm::RS512);
    header.kid = Some("1".into());
    assert!(refused::<DataplaneClaims>(&foreign(&header, &rsa), &modern, now()).contains("unsupported token alg RS512"));
    assert_eq!(key_id(&foreign(&header, &rsa)).as_deref(), Some("1"));
    assert_eq!(key_id("garbage"), None);
}

#[test]
fn serials_and_names_of_signing_keys() {
    let scope = KeyScope::User;
    assert_eq!(scope.serial_of("user-token-signing-key"), Some(0));
    assert_eq!(scope.serial_of("user-token-signing-key-12"), Some(12));
    assert_eq!(scope.serial_of("user-token-signing-key-x"), Some(0));
    assert_eq!(scope.serial_of("user-token-signing-keys"), None);
    assert_eq!(KeyScope::Zone.serial_of("zone-token-signing-public-key-1"), None);
    assert_eq!(mesh().default_secret_name(), "dataplane-token-signing-key-default-1");
    assert_eq!(mesh().revocations_name(), "dataplane-token-revocations-default");

    let other = generate_signing_key().unwrap();
    let secrets = [
        ("user-token-signing-key-2", other.as_bytes()),
        ("user-token-signing-key-10", key_pem().as_bytes()),
        ("zone-token-signing-key-11", other.as_bytes()),
    ];
    let newest = SigningKey::latest(&scope, secrets).unwrap().unwrap();
    assert_eq!(newest.kid(), "10");
    assert!(SigningKey::latest(&mesh(), secrets).unwrap().is_none());
    assert!(SigningKey::parse("1", b"garbage").is_err());
    assert!(!format!("{newest:?}").contains("PRIVATE"));

    // A zero-padded name issues as serial 2, but no token finds it again (as in Kuma).
    let padded = VerificationKeys::from_secrets(scope.clone(), [("user-token-signing-key-0002", key_pem().as_bytes())]);
    let token = issue(&UserClaims::default(), &SigningKey::parse("2", key_pem().as_bytes()).unwrap(), DAY, now()).unwrap();
    assert!(refused::<UserClaims>(&token, &padded, now()).contains("no signing key with KID 2"));
}

#[test]
fn public_keys_alone_verify() {
    use aws_lc_rs::{encoding::AsDer, rsa::KeyPair, signature::KeyPair as _};
    use base64::{Engine, engine::general_purpose::STANDARD};
    let body: String = key_pem().lines().filter(|l| !l.starts_with('-')).collect();
    let private = STANDARD.decode(body).unwrap();
    let pair = KeyPair::from_der(&private).unwrap();
    let block = |label: &str, der: &[u8]| format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", STANDARD.encode(der));
    let pkcs1 = block("RSA PUBLIC KEY", pair.public_key().as_ref());
    let pkix = block("PUBLIC KEY", pair.public_key().as_der().unwrap().as_ref());
    let token = issue(&ZoneClaims::default(), &key(), DAY, now()).unwrap();
    for public in [pkcs1.as_str(), pkix.as_str()] {
        let stored = VerificationKeys::from_secrets(KeyScope::Zone, [("zone-token-signing-public-key-1", public.as_bytes())]);
        validate::<ZoneClaims>(&token, &stored, &Revocations::default(), now()).unwrap();
        let mut fixed = VerificationKeys::new(KeyScope::Zone);
        fixed.add_static("1", public.as_bytes()).unwrap();
        validate::<ZoneClaims>(&token, &fixed, &Revocations::default(), now()).unwrap();
    }
    // A secret that holds the bare DER works too.
    let raw = VerificationKeys::from_secrets(KeyScope::Zone, [("zone-token-signing-key-1", private.as_slice())]);
    validate::<ZoneClaims>(&token, &raw, &Revocations::default(), now()).unwrap();
    SigningKey::parse("1", &private).unwrap();
    assert!(VerificationKeys::new(KeyScope::Zone).add_static("1", b"no key").is_err());
}

fn tags(pairs: &[(&str, &[&str])]) -> BTreeMap<String, BTreeSet<String>> {
    pairs.iter().map(|(k, vs)| ((*k).to_owned(), vs.iter().map(|v| (*v).to_owned()).collect())).collect()
}

#[test]
fn dataplane_checks_in_order() {
    let proxy_tags = tags(&[("kuma.io/service", &["web", "web-admin"]), ("team", &["a"])]);
    let proxy = DataplaneFacts { name: "dp-1", mesh: "default", tags: &proxy_tags, workload: None, workload_identity: None };
    let check = |edit: &dyn Fn(&mut DataplaneClaims), proxy: &DataplaneFacts<'_>| {
        let mut claims = DataplaneClaims::default();
        edit(&mut claims);
        check_dataplane(&claims, proxy).map_err(|e| e.to_string())
    };
    assert_eq!(check(&|_| {}, &proxy), Ok(()));
    assert_eq!(
        check(&|c| c.name = "dp-2".into(), &proxy),
        Err("proxy name from requestor: dp-1 is different than in token: dp-2".to_owned())
    );
    assert_eq!(
        check(&|c| c.mesh = "other".into(), &proxy),
        Err("proxy mesh from requestor: default is different than in token: other".to_owned())
    );
    let allow = |values: &[&str]| {
        let values: Vec<String> = values.iter().map(|v| (*v).to_owned()).collect();
        move |c: &mut DataplaneClaims| {
            c.tags.insert("kuma.io/service".into(), values.clone());
        }
    };
    assert_eq!(check(&allow(&["web", "web-admin", "more"]), &proxy), Ok(()));
    assert_eq!(
        check(&allow(&["web"]), &proxy),
        Err("dataplane contains tag \"kuma.io/service\" with value \"web-admin\" which is not allowed with this token. Allowed values in \
             token are [\"web\"]"
            .to_owned())
    );
    let missing = check(
        &|c| {
            c.tags.insert("zone".into(), vec!["x".into()]);
        },
        &proxy,
    );
    assert_eq!(missing, Err("dataplane has no tag \"zone\" required by the token".to_owned()));

    let bound = DataplaneFacts { workload: Some("w"), ..proxy };
    assert_eq!(check(&|c| c.workload = "w".into(), &bound), Ok(()));
    assert!(check(&|c| c.workload = "v".into(), &bound).unwrap_err().contains("different than in token"));
    assert!(check(&|c| c.workload = "w".into(), &proxy).unwrap_err().contains("no label"));
    assert_eq!(check(&|_| {}, &bound), Ok(()));
    let identity = DataplaneFacts { workload_identity: Some("id"), ..bound };
    assert!(check(&|_| {}, &identity).unwrap_err().contains("requires a workload-bound token"));
}

#[test]
fn zone_checks() {
    let claims = ZoneClaims { zone: "east".into(), scope: vec!["ingress".into()] };
    assert_eq!(check_zone(&claims, ZoneProxy::Ingress, "east"), Ok(()));
    assert!(check_zone(&claims, ZoneProxy::Egress, "east").unwrap_err().to_string().contains("out of token's scope"));
    assert!(check_zone(&claims, ZoneProxy::Ingress, "west").unwrap_err().to_string().contains("different than in token: east"));
    assert_eq!(check_zone(&ZoneClaims { zone: String::new(), ..claims }, ZoneProxy::Ingress, "west"), Ok(()));
}

mod garbage {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn never_panics(text in "\\PC{0,200}", bytes in proptest::collection::vec(any::<u8>(), 0..300), at in 0usize..2000, with in any::<u8>()) {
            let users = keys(KeyScope::User);
            let _ = validate::<UserClaims>(&text, &users, &Revocations::default(), now());
            let _ = key_id(&text);
            let _ = SigningKey::parse("1", &bytes);
            let _ = VerificationKeys::from_secrets(KeyScope::Zone, [("zone-token-signing-key-1", bytes.as_slice()), (text.as_str(), b"")]);
            // One changed character is never accepted as a different token.
            let good = issue(&UserClaims { name: "a".into(), groups: vec![] }, &key(), DAY, now()).unwrap();
            let mut bad = good.clone().into_bytes();
            let i = at % bad.len();
            bad[i] = with & 0x7f;
            let bad = String::from_utf8(bad).unwrap();
            if let Ok(read) = validate::<UserClaims>(&bad, &users, &Revocations::default(), now()) {
                prop_assert_eq!(read.claims.name, "a");
            }
        }
    }
}
