//! Messages of the step protocol, and the gRPC client and server behind the `grpc` feature.
//!
//! The code under `gen/` is committed; `tests/bootstrap.rs` regenerates it and fails on a difference.

#[allow(clippy::all, clippy::pedantic, unreachable_pub)]
#[rustfmt::skip]
#[path = "gen/lorikeet.v1.rs"]
pub mod v1;
