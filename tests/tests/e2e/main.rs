//! Real processes, real Envoys.

mod health;
mod hostile;
mod lifecycle;
mod mesh;
mod recordings;
