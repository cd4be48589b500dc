//! Generation judged by what a stock Kuma 2.14.3 was recorded to generate, and by its own test data.

mod cases;
mod common;
mod live;
mod real_envoy;
mod robust;
mod routes;
