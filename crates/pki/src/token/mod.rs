//! JWT tokens of users, zones and data plane proxies (reference: REST contract §5.2, §5.4; data plane contract §1.5).

mod check;
mod claims;
mod keys;
mod validate;

pub use check::{DataplaneFacts, ZoneProxy, check_dataplane, check_zone};
pub use claims::{Claims, DataplaneClaims, UserClaims, ZoneClaims};
pub use keys::{KeyScope, SigningKey, VerificationKeys, generate_signing_key};
pub use validate::{CLOCK_SKEW, MAX_TOKEN_BYTES, Revocations, TokenError, Validated, issue, key_id, validate};
