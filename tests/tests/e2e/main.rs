//! Real processes, real Envoys.

mod hostile;
mod lifecycle;
mod mesh;
mod recordings;
