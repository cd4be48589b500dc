//! Real processes, real Envoys.

mod cluster;
mod health;
mod hostile;
mod lifecycle;
mod mesh;
mod recordings;
