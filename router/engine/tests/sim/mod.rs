//! A shard in memory that checks every step it is given, and a caller that checks every event it gets.

#![allow(dead_code, unused_imports, unreachable_pub, reason = "each test crate uses its part")]

mod driver;
mod model;
mod shard;

use lorikeet_engine::EngineConfig;

pub use driver::{Driver, Outcome};
pub use model::{Job, STOP, VOCABULARY, digest};
pub use shard::Faults;

/// A small engine with room for two adapters.
pub fn config() -> EngineConfig {
    EngineConfig {
        block_size: 4,
        num_blocks: 256,
        max_sequences: 8,
        max_step_tokens: 64,
        adapter_slots: 2,
        adapter_bytes: 4,
        synchronous_moves: true,
        max_queued_requests: 1000,
        max_queued_tokens: 100_000,
        max_steps_in_flight: 2,
        prefix_cache: true,
    }
}
