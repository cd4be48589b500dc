//! Chaos tests of real clusters: a runner that breaks network, processes and disks under load, histories in Jepsen's form, and the checkers
//! that judge them.

pub mod bed;
pub mod check;
pub mod cluster;
pub mod edn;
pub mod history;
pub mod http;
pub mod judge;
pub mod nemesis;
pub mod record;
pub mod rng;
pub mod run;
pub mod workload;
