//! The HTTP surface, over real connections, in front of a simulated shard.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking, its helpers too")]
#![allow(clippy::format_push_string, reason = "brevity over allocations")]

#[path = "../common/mod.rs"]
mod common;

mod bounds;
mod client;
mod errors;
mod hostile;
mod http2;
mod load;
mod native;
mod openai;
mod refused;
mod sequences;
mod server;
mod streams;
mod templates;
