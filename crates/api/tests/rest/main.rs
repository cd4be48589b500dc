//! The API from outside: through its router over a store in memory, and over a socket.

mod cluster;
mod common;
mod consistency;
mod corpus;
mod live;
mod requests;
mod socket;
mod watch;
