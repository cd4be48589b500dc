//! What the tests outside of the crates share: the conformance corpus and real processes.
