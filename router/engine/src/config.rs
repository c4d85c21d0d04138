//! Bounds of the engine, fixed when the shards have been warmed up.

/// Every bound the engine keeps. Property tests hold it to them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineConfig {
    /// Tokens per KV block.
    pub block_size: u32,
    pub num_blocks: u32,
    /// Sequence slots on the shard: sequences that run at once.
    pub max_sequences: u32,
    /// Tokens in one step, decodes and prefill chunks together.
    pub max_step_tokens: u32,
    /// Device slots for adapters.
    pub adapter_slots: u32,
    /// Bytes that adapters in device slots may take together.
    pub adapter_bytes: u64,
    /// Whether a step may use an adapter slot that it fills itself.
    pub synchronous_moves: bool,
    pub max_queued_requests: usize,
    pub max_queued_tokens: usize,
    /// Steps sent and not yet answered, at most.
    pub max_steps_in_flight: usize,
    pub prefix_cache: bool,
}
