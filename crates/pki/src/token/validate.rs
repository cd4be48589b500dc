//! Issuing and validating.

use super::{Claims, KeyScope, SigningKey, VerificationKeys};
use crate::{Error, Result};
use jsonwebtoken::{Algorithm, Header, Validation, errors::ErrorKind};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    collections::BTreeSet,
    time::{Duration, SystemTime},
};

/// `iat` and `nbf` lie this far before the moment of issuing, against skewed clocks.
pub const CLOCK_SKEW: Duration = Duration::from_secs(5);
/// Longer tokens are refused before they are decoded.
pub const MAX_TOKEN_BYTES: usize = 64 * 1024;

/// Why a token is refused; the texts are Kuma's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// The key that the token names is not there. REST answers 404 `Signing Key not found` when issuing.
    #[error("there is no signing key with KID {kid}. {resource} is not found. If signing key was rotated, regenerate the token")]
    SigningKeyNotFound {
        /// Key id.
        kid: String,
        /// `GlobalSecret of name "…"` or `Secret of name "…" in mesh "…"`.
        resource: String,
    },
    /// Malformed, wrongly signed, expired or not valid yet.
    #[error("could not parse token: {0}")]
    Parse(String),
    /// Its id is on the revocation list.
    #[error("token is revoked")]
    Revoked,
    /// Genuine, but not for this proxy.
    #[error("{0}")]
    Denied(String),
}

impl TokenError {
    /// The error for a missing key, e.g. when none exists to issue with (`kid` `1`).
    pub fn signing_key_not_found(scope: &KeyScope, kid: &str) -> TokenError {
        TokenError::SigningKeyNotFound { kid: kid.to_owned(), resource: scope.describe(kid) }
    }
}

/// Ids of revoked tokens.
#[derive(Debug, Clone, Default)]
pub struct Revocations(BTreeSet<String>);

impl Revocations {
    /// Reads a revocation secret's data: comma-separated `jti`s, one trailing newline tolerated. May be called for several secrets.
    pub fn add(&mut self, data: &str) {
        let data = data.strip_suffix('\n').unwrap_or(data);
        self.0.extend(data.split(',').filter(|id| !id.is_empty()).map(str::to_owned));
    }
    /// Whether this token id is revoked.
    pub fn contains(&self, id: &str) -> bool {
        self.0.contains(id)
    }
}

/// A token that passed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Validated<C> {
    /// `jti`.
    pub id: String,
    /// Seconds since the epoch, if the token has `exp`.
    pub expires: Option<u64>,
    /// Custom claims.
    pub claims: C,
}

#[derive(Serialize)]
struct Issued<'a, C> {
    #[serde(flatten)]
    claims: &'a C,
    exp: u64,
    nbf: u64,
    iat: u64,
    jti: String,
}

/// Registered claims; NumericDates may have a fraction.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Registered {
    exp: Option<f64>,
    nbf: Option<f64>,
    iat: Option<f64>,
    jti: String,
}

fn since_epoch(at: SystemTime) -> Result<Duration> {
    at.duration_since(SystemTime::UNIX_EPOCH).map_err(|_| Error::Time)
}

/// Makes a token: RS256, header `kid`, random `jti`, `iat` = `nbf` = `now` − 5 s, `exp` = `now` + `valid_for`.
///
/// # Errors
/// A life that no date can hold; the key cannot sign.
pub fn issue<C: Claims>(claims: &C, key: &SigningKey, valid_for: Duration, now: SystemTime) -> Result<String> {
    let now = since_epoch(now)?;
    let from = now.saturating_sub(CLOCK_SKEW).as_secs();
    let exp = now.checked_add(valid_for).ok_or(Error::Time)?.as_secs();
    let mut header = Header::new(Algorithm::RS256);
    header.kid = Some(key.kid().to_owned());
    let body = Issued { claims, exp, nbf: from, iat: from, jti: uuid::Uuid::new_v4().to_string() };
    jsonwebtoken::encode(&header, &body, key.encoding()).map_err(|e| Error::Crypto(e.to_string()))
}

/// The key id that a token names, unverified; `None` when the token is malformed or has none.
pub fn key_id(token: &str) -> Option<String> {
    if token.len() > MAX_TOKEN_BYTES {
        return None;
    }
    jsonwebtoken::decode_header(token).ok()?.kid
}

fn reason(error: &jsonwebtoken::errors::Error) -> String {
    match error.kind() {
        ErrorKind::InvalidSignature => "token signature is invalid: crypto/rsa: verification error".to_owned(),
        ErrorKind::InvalidToken => "token is malformed: token contains an invalid number of segments".to_owned(),
        _ => format!("token is malformed: {error}"),
    }
}

/// Checks signature, `exp` and `nbf` against `now`, then the revocation list, and gives the claims.
///
/// RS256 tokens must name a key of `keys`. HS256 tokens are those from before Kuma 1.4: key id 0 or absent, signed with the raw bytes of the
/// secret with serial 0. Other algorithms are refused.
///
/// # Errors
/// [`TokenError`], never [`TokenError::Denied`].
pub fn validate<C: Claims>(token: &str, keys: &VerificationKeys, revoked: &Revocations, now: SystemTime) -> Result<Validated<C>, TokenError> {
    let parse = |text: &str| TokenError::Parse(text.to_owned());
    if token.len() > MAX_TOKEN_BYTES {
        return Err(TokenError::Parse(format!("token is malformed: longer than {MAX_TOKEN_BYTES} bytes")));
    }
    if token.split('.').count() != 3 {
        return Err(parse("token is malformed: token contains an invalid number of segments"));
    }
    let header = jsonwebtoken::decode_header(token).map_err(|e| TokenError::Parse(reason(&e)))?;
    let no_kid = || parse("token is unverifiable: error while executing keyfunc: JWT token must have kid header");
    let missing = |kid: &str| TokenError::signing_key_not_found(keys.scope(), kid);
    let payload: serde_json::Value = match header.alg {
        Algorithm::RS256 => {
            let kid = header.kid.as_deref().ok_or_else(no_kid)?;
            verified(token, keys.rsa(kid).ok_or_else(|| missing(kid))?, Algorithm::RS256)?
        }
        Algorithm::HS256 => {
            let kid = header.kid.as_deref().unwrap_or("0");
            if kid != "0" {
                return Err(TokenError::Parse(format!(
                    "token is unverifiable: error while executing keyfunc: tokens of algorithm HS256 must have key id 0, not {kid}"
                )));
            }
            verified(token, &keys.legacy().ok_or_else(|| missing(kid))?, Algorithm::HS256)?
        }
        other => {
            return Err(TokenError::Parse(format!(
                "token is unverifiable: error while executing keyfunc: unsupported token alg {other:?}. Allowed algorithms are RS256 and HS256"
            )));
        }
    };
    let registered: Registered = claims(&payload)?;
    let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    if registered.exp.is_some_and(|exp| now >= exp) {
        return Err(parse("token has invalid claims: token is expired"));
    }
    if registered.nbf.is_some_and(|nbf| now < nbf) || registered.iat.is_some_and(|iat| now < iat) {
        return Err(parse("token has invalid claims: token is not valid yet"));
    }
    if revoked.contains(&registered.jti) {
        return Err(TokenError::Revoked);
    }
    // `as` saturates: a date beyond u64 or below 0 is cut, not wrapped.
    Ok(Validated { expires: registered.exp.map(|exp| exp as u64), id: registered.jti, claims: claims(&payload)? })
}

fn claims<T: DeserializeOwned>(payload: &serde_json::Value) -> Result<T, TokenError> {
    T::deserialize(payload).map_err(|e| TokenError::Parse(format!("token is malformed: could not JSON decode claim: {e}")))
}

fn verified(token: &str, key: &jsonwebtoken::DecodingKey, algorithm: Algorithm) -> Result<serde_json::Value, TokenError> {
    let mut rules = Validation::new(algorithm);
    // Times are checked by the caller against the clock that was passed in.
    rules.validate_exp = false;
    rules.validate_nbf = false;
    rules.validate_aud = false;
    rules.required_spec_claims.clear();
    jsonwebtoken::decode(token, key, &rules).map(|data| data.claims).map_err(|e| TokenError::Parse(reason(&e)))
}
