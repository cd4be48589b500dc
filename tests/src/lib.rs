//! What the tests outside of the crates share: the conformance corpus and real processes.

pub mod apps;
pub mod compare;
pub mod corpus;
pub mod functions;
pub mod process;
pub mod recordings;
pub mod stock;
pub mod streams;
