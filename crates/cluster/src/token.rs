//! Join tokens: what a node needs to get into a cluster, in one printable line.
//!
//! `ikada-join-` and, in base64url without padding: version (1), cluster id (16 bytes), SHA-256 of the CA's certificate (32), token id (8),
//! secret (32), and the first 4 bytes of the SHA-256 of all that, against copies that lost something. The cluster keeps a hash of the
//! secret only.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use ikada_pki::sha256;
use ikada_raft::ClusterId;
use std::{fmt, str::FromStr};

const PREFIX: &str = "ikada-join-";
const VERSION: u8 = 1;
const BODY: usize = 1 + 16 + 32 + 8 + 32;
const CHECK: usize = 4;

/// Id of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct TokenId(pub [u8; 8]);

impl fmt::Display for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl FromStr for TokenId {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        hex::<8>(text).map(TokenId).ok_or(())
    }
}

/// Lower-case hexadecimal digits of exactly `N` bytes.
pub(crate) fn hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut out = [0; N];
    if text.len() != 2 * N || !text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
        return None;
    }
    for (slot, pair) in out.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *slot = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(out)
}

/// A join token.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct JoinToken {
    pub cluster: ClusterId,
    pub ca_hash: [u8; 32],
    pub id: TokenId,
    pub secret: [u8; 32],
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken").field("cluster", &self.cluster).field("id", &self.id).finish_non_exhaustive()
    }
}

impl JoinToken {
    /// The token as people copy it.
    pub(crate) fn text(&self) -> String {
        let mut bytes = Vec::with_capacity(BODY + CHECK);
        bytes.push(VERSION);
        bytes.extend(self.cluster.0);
        bytes.extend(self.ca_hash);
        bytes.extend(self.id.0);
        bytes.extend(self.secret);
        let sum = sha256(&bytes);
        bytes.extend(sum.iter().take(CHECK));
        format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))
    }

    /// Reads a token; white space around it is ignored.
    ///
    /// # Errors
    /// One line that says what is wrong with it.
    pub(crate) fn parse(text: &str) -> Result<JoinToken, String> {
        let text = text.trim();
        let again = "copy the whole line that `ikadactl cluster join-token` printed";
        if text.is_empty() {
            return Err(format!("the join token is empty: {again}"));
        }
        let Some(body) = text.strip_prefix(PREFIX) else { return Err(format!("the join token does not begin with {PREFIX:?}: {again}")) };
        let bytes = URL_SAFE_NO_PAD.decode(body).map_err(|_| format!("the join token is incomplete or changed: {again}"))?;
        match bytes.first() {
            Some(&VERSION) => {}
            Some(version) => return Err(format!("the join token has version {version}, this program reads {VERSION}: use the version of the cluster")),
            None => return Err(format!("the join token is incomplete or changed: {again}")),
        }
        let parts = || {
            let (body, sum) = bytes.split_at_checked(BODY)?;
            if sum.len() != CHECK || !sha256(body).starts_with(sum) {
                return None;
            }
            let (cluster, rest) = body.get(1..)?.split_first_chunk()?;
            let (ca_hash, rest) = rest.split_first_chunk()?;
            let (id, rest) = rest.split_first_chunk()?;
            let (secret, _) = rest.split_first_chunk()?;
            Some(JoinToken { cluster: ClusterId(*cluster), ca_hash: *ca_hash, id: TokenId(*id), secret: *secret })
        };
        parts().ok_or_else(|| format!("the join token is incomplete or changed: {again}"))
    }
}

/// Whether this is the secret that was hashed, in a time that does not depend on where they differ.
pub(crate) fn secret_matches(secret: &[u8], hash: &[u8; 32]) -> bool {
    aws_lc_rs::constant_time::verify_slices_are_equal(&sha256(secret), hash).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn token() -> JoinToken {
        JoinToken { cluster: ClusterId([7; 16]), ca_hash: [1; 32], id: TokenId([2; 8]), secret: [3; 32] }
    }

    #[test]
    fn a_token_is_one_line_and_comes_back() {
        let text = token().text();
        assert!(text.starts_with(PREFIX) && text.len() == 135 && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_'), "{text}");
        assert_eq!(JoinToken::parse(&format!(" {text}\n")).unwrap(), token());
        assert!(!format!("{:?}", token()).contains("3, 3"));
        assert_eq!(token().id.to_string().parse(), Ok(token().id));
        assert!("02".parse::<TokenId>().is_err() && "+202020202020202".parse::<TokenId>().is_err());
    }

    #[test]
    fn what_is_lost_in_copying_is_noticed() {
        let text = token().text();
        for end in 0..text.len() {
            let e = JoinToken::parse(&text[..end]).unwrap_err();
            assert!(e.contains("ikadactl cluster join-token") && !e.contains('\n'), "{e}");
        }
        for at in PREFIX.len()..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[at] = if bytes[at] == b'x' { b'y' } else { b'x' };
            assert!(JoinToken::parse(std::str::from_utf8(&bytes).unwrap()).is_err(), "byte {at}");
        }
        let mut newer = vec![9];
        newer.extend([0; 92]);
        assert!(JoinToken::parse(&format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(newer))).unwrap_err().contains("version 9"));
    }

    #[test]
    fn secrets_are_compared_by_hash() {
        assert!(secret_matches(&[3; 32], &sha256(&[3; 32])));
        assert!(!secret_matches(&[4; 32], &sha256(&[3; 32])) && !secret_matches(&[], &sha256(&[3; 32])));
    }

    proptest! {
        #[test]
        fn arbitrary_text_never_panics(text in "\\PC{0,200}") {
            let _ = JoinToken::parse(&text);
            let _ = JoinToken::parse(&format!("{PREFIX}{text}"));
        }
    }
}
