//! Gauges and counters.

use std::sync::Arc;

/// Gauges, and counters since start.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stats {
    /// Preempted ones included.
    pub queued_requests: usize,
    pub queued_tokens: usize,
    pub running_sequences: usize,
    pub steps_in_flight: usize,
    pub blocks_total: usize,
    /// Blocks that sequences hold. Blocks kept only for prefix reuse count as free: they are given up on demand.
    pub blocks_used: usize,
    pub blocks_cached: usize,
    pub adapter_slots_total: usize,
    pub adapter_slots_used: usize,
    pub adapter_bytes_used: u64,
    /// Adapters pinned by queued or running requests.
    pub adapters_pinned: usize,
    /// Adapters the engine remembers: those in use, those in slots, and as many others as there are KV blocks.
    pub adapters_known: usize,
    /// Digests.
    pub resident_adapters: Vec<Arc<str>>,
    pub waiting_adapters: Vec<Arc<str>>,
    pub adapter_loads: u64,
    pub adapter_evictions: u64,
    pub preemptions: u64,
    pub prefix_queries_tokens: u64,
    pub prefix_hits_tokens: u64,
}

#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) preemptions: u64,
    pub(crate) prefix_queries_tokens: u64,
    pub(crate) prefix_hits_tokens: u64,
}
