//! Streams of both variants over loopback connections, against a source with one snapshot.

mod delta;
mod full;
mod support;
