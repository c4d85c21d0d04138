//! The engine: one owner, five verbs.

use lorikeet_proto::v1::{Step, StepResult};

use crate::{AdapterId, EngineConfig, Event, Request, RequestId, SubmitError, Time};

/// Queues, running sequences, KV blocks and adapter slots of one shard group.
pub struct Engine {
    config: EngineConfig,
}

impl Engine {
    pub fn new(config: EngineConfig) -> Self {
        Self { config }
    }

    /// Makes an adapter known. The same digest gives the same id; `device_bytes` is what it takes in a slot.
    pub fn register_adapter(&mut self, digest: &str, device_bytes: u64) -> AdapterId {
        todo!("{digest} {device_bytes}")
    }

    /// Whether requests for this adapter are queued or running: its staged copy must not be dropped.
    pub fn adapter_in_use(&self, adapter: AdapterId) -> bool {
        todo!("{adapter:?}")
    }

    /// Forgets an adapter that nothing uses any more, and its place in a device slot. False, and nothing happens, while
    /// requests or a move in flight use it.
    pub fn forget_adapter(&mut self, adapter: AdapterId) -> bool {
        todo!("{adapter:?}")
    }

    /// Queues a request. O(1).
    pub fn submit(&mut self, request: Request, now: Time) -> Result<(), SubmitError> {
        todo!("{request:?} {now:?}")
    }

    /// Forgets a request wherever it is: queued, prefilling, decoding or preempted. Its slot, blocks and adapter pin
    /// go back with the next step. Unknown ids are ignored (the request may have finished).
    pub fn cancel(&mut self, id: RequestId) {
        todo!("{id:?}")
    }

    /// The next step, or `None` when there is nothing to run, `max_steps_in_flight` steps are unanswered, or all that
    /// could run waits for one of them. Events: requests whose deadline has passed, and `Started`.
    pub fn plan(&mut self, now: Time, events: &mut Vec<Event>) -> Option<Step> {
        todo!("{now:?} {events:?} {:?}", self.config)
    }

    /// Takes the result of the oldest unanswered step. Results with another id are a protocol error: the caller must
    /// then treat the shard as lost.
    pub fn apply(
        &mut self,
        result: &StepResult,
        now: Time,
        events: &mut Vec<Event>,
    ) -> Result<(), UnexpectedResult> {
        todo!("{result:?} {now:?} {events:?}")
    }

    /// When [`Engine::plan`] has to be called next although nothing else happens: the earliest deadline.
    pub fn next_deadline(&self) -> Option<Time> {
        todo!()
    }

    /// The shard group is gone: every request fails with `ShardLost`, and everything the shards held is forgotten
    /// (sequences, blocks, prefix cache, adapter slots, unanswered steps). Registered adapters stay known.
    pub fn shard_lost(&mut self, events: &mut Vec<Event>) {
        todo!("{events:?}")
    }

    pub fn stats(&self) -> Stats {
        todo!()
    }
}

/// A result that answers no step, or not the oldest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the shard answered step {given}, the oldest unanswered step is {expected:?}")]
pub struct UnexpectedResult {
    pub given: u64,
    pub expected: Option<u64>,
}

/// Gauges, and counters since start.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stats {
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
    pub resident_adapters: Vec<AdapterId>,
    pub waiting_adapters: Vec<AdapterId>,
    pub adapter_loads: u64,
    pub adapter_evictions: u64,
    pub preemptions: u64,
    pub prefix_queries_tokens: u64,
    pub prefix_hits_tokens: u64,
    pub prompt_tokens: u64,
    pub generated_tokens: u64,
}
