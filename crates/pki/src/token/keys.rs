//! Signing keys: their resources, serial numbers, and parsed forms.

use crate::{Error, Result, key};
use jsonwebtoken::{DecodingKey, EncodingKey};
use std::{collections::BTreeMap, fmt};
use x509_parser::{asn1_rs::FromDer, x509::SubjectPublicKeyInfo};

/// A fresh signing key: RSA 2048 as PKCS#1 PEM, ready to be a Secret's data. Slow (tens to hundreds of milliseconds).
///
/// # Errors
/// The library cannot make a key.
pub fn generate_signing_key() -> Result<String> {
    Ok(key::rsa(2048)?.1)
}

/// Which keys a token kind uses: their resource names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyScope {
    /// GlobalSecrets `user-token-signing-key-<serial>`.
    User,
    /// GlobalSecrets `zone-token-signing-key-<serial>`; public halves `zone-token-signing-public-key-<serial>`.
    Zone,
    /// Secrets `dataplane-token-signing-key-<mesh>-<serial>` of that mesh.
    Dataplane {
        /// The mesh.
        mesh: String,
    },
}

impl KeyScope {
    /// Name without serial: the key with serial 0.
    pub fn prefix(&self) -> String {
        match self {
            KeyScope::User => "user-token-signing-key".to_owned(),
            KeyScope::Zone => "zone-token-signing-key".to_owned(),
            KeyScope::Dataplane { mesh } => format!("dataplane-token-signing-key-{mesh}"),
        }
    }
    /// The same for public halves, where the kind has such.
    pub fn public_prefix(&self) -> Option<&'static str> {
        matches!(self, KeyScope::Zone).then_some("zone-token-signing-public-key")
    }
    /// Name of the key with this id.
    pub fn secret_name(&self, kid: &str) -> String {
        if kid == "0" { self.prefix() } else { format!("{}-{kid}", self.prefix()) }
    }
    /// Name of the key that is made first (serial 1).
    pub fn default_secret_name(&self) -> String {
        self.secret_name("1")
    }
    /// Name of the resource with revoked token ids. Data plane revocations are accepted both as GlobalSecret and as Secret of the mesh.
    pub fn revocations_name(&self) -> String {
        match self {
            KeyScope::User => "user-token-revocations".to_owned(),
            KeyScope::Zone => "zone-token-revocations".to_owned(),
            KeyScope::Dataplane { mesh } => format!("dataplane-token-revocations-{mesh}"),
        }
    }
    /// Serial of a secret's name, when it is one of these keys: the number after the prefix, 0 for the bare prefix and for a suffix that is
    /// no number.
    pub fn serial_of(&self, secret: &str) -> Option<u64> {
        serial(&self.prefix(), secret)
    }
    /// `GlobalSecret of name "x"` or `Secret of name "x" in mesh "m"`, as Kuma's texts say it.
    pub(crate) fn describe(&self, kid: &str) -> String {
        let name = self.secret_name(kid);
        match self {
            KeyScope::Dataplane { mesh } => format!("Secret of name \"{name}\" in mesh \"{mesh}\""),
            _ => format!("GlobalSecret of name \"{name}\""),
        }
    }
}

fn serial(prefix: &str, secret: &str) -> Option<u64> {
    match secret.strip_prefix(prefix)? {
        "" => Some(0),
        rest => rest.strip_prefix('-').map(|n| n.parse().unwrap_or(0)),
    }
}

/// A private key ready to issue tokens.
#[derive(Clone)]
pub struct SigningKey {
    kid: String,
    key: EncodingKey,
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningKey").field("kid", &self.kid).finish_non_exhaustive()
    }
}

impl SigningKey {
    /// From the data of a signing-key secret: PKCS#1 or PKCS#8 PEM, or raw PKCS#1 DER. `kid` is the serial as text.
    ///
    /// # Errors
    /// Not an RSA private key.
    pub fn parse(kid: &str, data: &[u8]) -> Result<SigningKey> {
        Ok(SigningKey { kid: kid.to_owned(), key: EncodingKey::from_rsa_der(&key::rsa_private_der(data)?) })
    }
    /// The key with the highest serial among the secrets `(name, data)`; `None` when none of them is one of this scope.
    ///
    /// # Errors
    /// That key is damaged.
    pub fn latest<'a>(scope: &KeyScope, secrets: impl IntoIterator<Item = (&'a str, &'a [u8])>) -> Result<Option<SigningKey>> {
        let newest = secrets.into_iter().filter_map(|(name, data)| Some((scope.serial_of(name)?, data))).max_by_key(|(serial, _)| *serial);
        newest.map(|(serial, data)| SigningKey::parse(&serial.to_string(), data)).transpose()
    }
    /// Key id that tokens carry.
    pub fn kid(&self) -> &str {
        &self.kid
    }
    pub(crate) fn encoding(&self) -> &EncodingKey {
        &self.key
    }
}

/// Public keys by key id, parsed once; static keys of the configuration are asked before those of secrets.
#[derive(Clone)]
pub struct VerificationKeys {
    scope: KeyScope,
    fixed: BTreeMap<String, DecodingKey>,
    stored: BTreeMap<String, DecodingKey>,
    legacy: Option<Vec<u8>>,
}

impl fmt::Debug for VerificationKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VerificationKeys").field("scope", &self.scope).field("stored", &self.stored.keys()).finish_non_exhaustive()
    }
}

fn public_der(data: &[u8]) -> Result<Vec<u8>> {
    use rustls::pki_types::pem::{SectionKind, from_buf};
    let mut rest = data;
    while let Ok(Some((kind, der))) = from_buf(&mut rest) {
        match kind {
            SectionKind::RsaPrivateKey | SectionKind::PrivateKey => return key::rsa_public_of(&key::rsa_private_der(data)?),
            SectionKind::PublicKey => {
                let (_, info) = SubjectPublicKeyInfo::from_der(&der).map_err(|e| Error::Key(e.to_string()))?;
                return Ok(info.subject_public_key.data.to_vec());
            }
            _ => {}
        }
    }
    if let Some(der) = pkcs1_public(data) {
        return Ok(der);
    }
    key::rsa_public_of(&key::rsa_private_der(data)?)
}

/// Body of a block `RSA PUBLIC KEY`, a label that rustls-pki-types does not know.
fn pkcs1_public(data: &[u8]) -> Option<Vec<u8>> {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let text = std::str::from_utf8(data).ok()?;
    let (_, body) = text.split_once("-----BEGIN RSA PUBLIC KEY-----")?;
    let (body, _) = body.split_once("-----END RSA PUBLIC KEY-----")?;
    STANDARD.decode(body.split_ascii_whitespace().collect::<String>()).ok()
}

impl VerificationKeys {
    /// No keys yet.
    pub fn new(scope: KeyScope) -> VerificationKeys {
        VerificationKeys { scope, fixed: BTreeMap::new(), stored: BTreeMap::new(), legacy: None }
    }
    /// Keys of this scope among the secrets `(name, data)`: private keys, for zones also public ones. Damaged ones are left out (a token
    /// that names them is answered as if they were absent).
    pub fn from_secrets<'a>(scope: KeyScope, secrets: impl IntoIterator<Item = (&'a str, &'a [u8])>) -> VerificationKeys {
        let mut keys = VerificationKeys::new(scope);
        for (name, data) in secrets {
            let private = keys.scope.serial_of(name);
            let Some(serial) = private.or_else(|| serial(keys.scope.public_prefix()?, name)) else { continue };
            let kid = serial.to_string();
            // A zero-padded name is not the one a token's key id leads to.
            if private.is_some() && keys.scope.secret_name(&kid) != name {
                continue;
            }
            // Anybody can sign with an empty secret.
            if private == Some(0) && !data.is_empty() {
                keys.legacy = Some(data.to_vec());
            }
            if let Ok(der) = public_der(data) {
                keys.stored.insert(kid, DecodingKey::from_rsa_der(&der));
            }
        }
        keys
    }
    /// Adds a static public key of the configuration (`publicKeys[]`).
    ///
    /// # Errors
    /// Not an RSA key in PEM.
    pub fn add_static(&mut self, kid: &str, pem: &[u8]) -> Result<()> {
        self.fixed.insert(kid.to_owned(), DecodingKey::from_rsa_der(&public_der(pem)?));
        Ok(())
    }
    /// Whose keys these are.
    pub fn scope(&self) -> &KeyScope {
        &self.scope
    }
    pub(crate) fn rsa(&self, kid: &str) -> Option<&DecodingKey> {
        self.fixed.get(kid).or_else(|| self.stored.get(kid))
    }
    pub(crate) fn legacy(&self) -> Option<DecodingKey> {
        self.legacy.as_deref().map(DecodingKey::from_secret)
    }
}
