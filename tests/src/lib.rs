//! What the tests outside of the crates share: the conformance corpus and real processes.

pub mod compare;
pub mod corpus;
pub mod functions;
