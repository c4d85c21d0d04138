//! A shard in memory that checks every step it is given, and a caller that checks every event it gets.

#![allow(dead_code, unused_imports, unreachable_pub, reason = "each test crate uses its part")]

mod driver;
mod model;
mod shard;

pub use driver::{Driver, Outcome};
pub use model::{Job, STOP, VOCABULARY, digest};
pub use shard::Faults;
