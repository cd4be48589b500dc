//! `generate` (reference: §5.4, §7.3).

use crate::{
    cli::{Generate, KeyFormat, Life, Root, What},
    client::Client,
    output,
};
use anyhow::Context;
use base64::{Engine, engine::general_purpose::STANDARD};
use ikada_model::go::format_duration;
use ikada_pki::token::{Claims, DataplaneClaims, SigningKey, UserClaims, ZoneClaims, generate_signing_key, issue};
use reqwest::Method;
use serde_json::{Value, json};
use std::{collections::BTreeMap, time::SystemTime};

/// `ikadactl generate`.
///
/// # Errors
/// The control plane refuses, or the signing key cannot be used.
pub async fn run(root: &Root, args: &Generate) -> anyhow::Result<()> {
    match &args.what {
        What::DataplaneToken { name, mesh, proxy_type, tag, workload, life } => {
            let mut tags: BTreeMap<String, Vec<String>> = BTreeMap::new();
            for (key, values) in tag {
                tags.entry(key.clone()).or_default().extend(values.split(',').map(str::to_owned));
            }
            let body = json!({"name": name, "mesh": mesh, "tags": tags, "type": proxy_type, "workload": workload});
            let claims = DataplaneClaims {
                name: name.clone(),
                mesh: mesh.clone(),
                tags,
                proxy_type: proxy_type.clone(),
                workload: workload.clone(),
            };
            token(root, life, "/tokens/dataplane", body, &claims).await
        }
        What::ZoneToken { zone, scope, life } => {
            let claims = ZoneClaims { zone: zone.clone(), scope: scope.clone() };
            token(root, life, "/tokens/zone", json!({"zone": zone, "scope": scope}), &claims).await
        }
        What::UserToken { name, group, life } => {
            let claims = UserClaims { name: name.clone(), groups: group.clone() };
            token(root, life, "/tokens/user", json!({"name": name, "groups": group}), &claims).await
        }
        What::SigningKey { format } => {
            let pem = generate_signing_key()?;
            match format {
                KeyFormat::Pem => output::write(pem.as_bytes()),
                KeyFormat::PemBase64 => output::line(&STANDARD.encode(pem)),
            }
        }
        What::EncryptionKey { id } => output::line(&encryption_key(id.as_deref())?),
    }
}

/// A line of a file of keys (format: `ikada_store::seal::Keys`).
fn encryption_key(id: Option<&str>) -> anyhow::Result<String> {
    let random = || format!("key-{:08x}", rand::random::<u32>());
    let id = id.map_or_else(random, str::to_owned);
    if !(1..=32).contains(&id.len()) || !id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)) {
        anyhow::bail!("--id: {id:?} must have 1 to 32 letters, digits, '-', '_' or '.'");
    }
    // From the generator of the operating system, through a cryptographic one that it seeds.
    Ok(format!("{id}:{}", STANDARD.encode(rand::random::<[u8; 32]>())))
}

async fn token<C: Claims>(root: &Root, life: &Life, path: &str, mut body: Value, claims: &C) -> anyhow::Result<()> {
    if let (Some(file), Some(kid)) = (&life.signing_key_path, &life.kid) {
        let data = std::fs::read(file).with_context(|| format!("cannot read the signing key {}", file.display()))?;
        let key = SigningKey::parse(kid, &data).with_context(|| format!("cannot use the signing key {}", file.display()))?;
        return output::write(issue(claims, &key, life.valid_for, SystemTime::now())?.as_bytes());
    }
    let nanos = i64::try_from(life.valid_for.as_nanos()).unwrap_or(i64::MAX);
    body["validFor"] = Value::String(format_duration(nanos));
    let answer = Client::new(root)?.call(Method::POST, path, Some(&body)).await?.ok().context("failed to generate a token")?;
    output::write(answer.body.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_store_takes_an_encryption_key() {
        let (a, b) = (encryption_key(None).unwrap(), encryption_key(Some("2027-01")).unwrap());
        assert_ne!(a, encryption_key(None).unwrap());
        let keys = ikada_store::Keys::parse(&format!("{b}\n{a}\n")).unwrap();
        assert_eq!(keys.ids(), ["2027-01", a.split(':').next().unwrap()]);
        assert!(encryption_key(Some("a b")).unwrap_err().to_string().contains("--id"));
    }
}
