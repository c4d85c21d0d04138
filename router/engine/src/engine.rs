//! The engine: one owner of all state, and the verbs of its caller.

use std::collections::{BTreeSet, VecDeque};

use lorikeet_proto::v1::Step;
use rustc_hash::FxHashMap;

use crate::{
    AdapterId, EngineConfig, Event, FailureReason, Request, RequestId, SubmitError, Time,
    fairness::{Fairness, Work},
    flight::InFlight,
    kv::KvCache,
    queue::{QueueKey, Queues},
    residency::Device,
    sequence::{Sequence, SequenceId},
    stats::{Counters, Stats},
};

/// Queues, running sequences, KV blocks and adapter slots of one shard group.
pub struct Engine {
    pub(crate) config: EngineConfig,
    /// Every request that has not ended.
    pub(crate) sequences: FxHashMap<SequenceId, Sequence>,
    requests: FxHashMap<RequestId, SequenceId>,
    deadlines: BTreeSet<(Time, SequenceId)>,
    pub(crate) queues: Queues,
    pub(crate) fairness: Fairness,
    /// Sequences in a slot, in the order of arrival.
    pub(crate) running: BTreeSet<SequenceId>,
    pub(crate) free_slots: Vec<u32>,
    /// Slots that the next step tells the shard to release.
    pub(crate) releases: Vec<u32>,
    pub(crate) kv: KvCache,
    /// Blocks that prefills under way will still take.
    pub(crate) committed: usize,
    /// The sequence that did not fit, until blocks are given back.
    pub(crate) blocked: Option<SequenceId>,
    pub(crate) device: Device,
    pub(crate) in_flight: VecDeque<InFlight>,
    pub(crate) next_step: u64,
    pub(crate) answered: u64,
    pub(crate) next_sequence: u64,
    pub(crate) counters: Counters,
    /// The last time the caller told.
    pub(crate) now: Time,
}

impl Engine {
    pub fn new(config: EngineConfig) -> Self {
        Self {
            sequences: FxHashMap::default(),
            requests: FxHashMap::default(),
            deadlines: BTreeSet::new(),
            queues: Queues::new(config.max_queued_requests, config.max_queued_tokens),
            fairness: Fairness::default(),
            running: BTreeSet::new(),
            free_slots: (0..config.max_sequences).rev().collect(),
            releases: Vec::new(),
            kv: KvCache::new(config.block_size, config.num_blocks, config.prefix_cache),
            committed: 0,
            blocked: None,
            device: Device::new(
                config.adapter_slots,
                config.adapter_bytes,
                config.synchronous_moves,
                // Each block may be of another adapter's prompt.
                config.num_blocks.max(1) as usize,
            ),
            in_flight: VecDeque::new(),
            next_step: 1,
            answered: 0,
            next_sequence: 0,
            counters: Counters::default(),
            now: Time::ZERO,
            config,
        }
    }

    /// Makes an adapter known; `device_bytes` is what it takes in a slot. The same digest gives the same id, until the
    /// adapter is forgotten: one without a slot that has no requests may be, when others are registered. So this is to be
    /// called before each request.
    pub fn register_adapter(&mut self, digest: &str, device_bytes: u64) -> AdapterId {
        self.device.register(digest, device_bytes)
    }

    /// Whether requests for this adapter are queued or running, or a step that moves or uses it is unanswered: its
    /// staged copy must not be dropped.
    pub fn adapter_in_use(&self, adapter: AdapterId) -> bool {
        self.device.in_use(adapter, self.answered)
    }

    /// Queues a request. `max_new_tokens` of 0 counts as 1.
    pub fn submit(&mut self, request: Request, now: Time) -> Result<(), SubmitError> {
        self.now = now;
        if request.tokens.is_empty() {
            return Err(SubmitError::Empty);
        }
        if let Some(adapter) = request.adapter {
            let given = self.device.bytes(adapter).ok_or(SubmitError::UnknownAdapter(adapter))?;
            let limit = self.device.budget();
            if given > limit || self.device.total_slots() == 0 {
                return Err(SubmitError::AdapterNeverFits { given, limit });
            }
        }
        let given = request.tokens.len() + request.max_new_tokens as usize;
        let limit = self.kv.total() * self.kv.block_size();
        if given > limit {
            return Err(SubmitError::NeverFits { given, limit });
        }
        let queue = QueueKey { tenant: request.tenant, adapter: request.adapter };
        self.queues.check(queue, request.tokens.len())?;

        let id = SequenceId(self.next_sequence);
        self.next_sequence += 1;
        self.requests.insert(request.id, id);
        self.deadlines.extend(request.deadline.map(|deadline| (deadline, id)));
        self.sequences.insert(id, Sequence::new(request, now));
        self.enqueue(id);
        Ok(())
    }

    /// Forgets a request wherever it is: queued, prefilling, decoding or preempted. Its slot, blocks and adapter pin
    /// go back with the next step. Unknown ids are ignored (the request may have finished).
    pub fn cancel(&mut self, id: RequestId) {
        if let Some(id) = self.requests.get(&id) {
            self.end(*id);
        }
    }

    /// The next step, or `None` when there is nothing to run, `max_steps_in_flight` steps are unanswered, or all that
    /// could run waits for one of them. Events: requests whose deadline has passed, and `Started`.
    ///
    /// While a move into an adapter slot is under way and there is nothing else to run, the step is empty: its answer
    /// reports the move.
    pub fn plan(&mut self, now: Time, events: &mut Vec<Event>) -> Option<Step> {
        self.now = now;
        self.expire(events);
        if self.in_flight.len() >= self.config.max_steps_in_flight {
            return None;
        }
        self.plan_step(events)
    }

    /// When [`Engine::plan`] has to be called next although nothing else happens: the earliest deadline.
    pub fn next_deadline(&self) -> Option<Time> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    /// The shard group is gone: every request fails with `ShardLost`, and everything the shards held is forgotten
    /// (sequences, blocks, prefix cache, adapters, unanswered steps).
    pub fn shard_lost(&mut self, events: &mut Vec<Event>) {
        let mut lost: Vec<_> = self.sequences.drain().collect();
        lost.sort_unstable_by_key(|(id, _)| *id);
        events.extend(
            lost.into_iter()
                .map(|(_, sequence)| Event::Failed { id: sequence.id, reason: FailureReason::ShardLost }),
        );
        self.requests.clear();
        self.deadlines.clear();
        self.queues.clear();
        self.fairness.clear();
        self.running.clear();
        self.free_slots = (0..self.config.max_sequences).rev().collect();
        self.releases.clear();
        self.kv = KvCache::new(self.config.block_size, self.config.num_blocks, self.config.prefix_cache);
        self.committed = 0;
        self.blocked = None;
        self.device.clear();
        self.in_flight.clear();
        self.answered = self.next_step - 1;
    }

    pub fn stats(&self) -> Stats {
        let (adapter_loads, adapter_evictions) = self.device.counters();
        Stats {
            queued_requests: self.queues.requests(),
            queued_tokens: self.queues.tokens(),
            running_sequences: self.running.len(),
            steps_in_flight: self.in_flight.len(),
            blocks_total: self.kv.total(),
            blocks_used: self.kv.total() - self.kv.available(),
            blocks_cached: self.kv.cached(),
            adapter_slots_total: self.device.total_slots(),
            adapter_slots_used: self.device.total_slots() - self.device.free_slots(),
            adapter_bytes_used: self.device.bytes_used(),
            adapters_pinned: self.device.pinned(),
            adapters_known: self.device.known(),
            resident_adapters: self.device.resident().collect(),
            waiting_adapters: self.device.waiting().collect(),
            adapter_loads,
            adapter_evictions,
            preemptions: self.counters.preemptions,
            prefix_queries_tokens: self.counters.prefix_queries_tokens,
            prefix_hits_tokens: self.counters.prefix_hits_tokens,
        }
    }

    fn expire(&mut self, events: &mut Vec<Event>) {
        while let Some((deadline, id)) = self.deadlines.first().copied() {
            if deadline > self.now {
                break;
            }
            let queued = self.sequences.get(&id).is_some_and(|sequence| !sequence.started);
            self.fail(id, FailureReason::DeadlineExceeded { queued }, events);
            self.deadlines.remove(&(deadline, id));
        }
    }

    /// Puts a sequence into its queue: a new one at the end, a preempted one at the head.
    fn enqueue(&mut self, id: SequenceId) {
        let Some(sequence) = self.sequences.get(&id) else { return };
        let queue = sequence.queue;
        self.queues.wait(queue, id, sequence.tokens.len());
        if let Some(adapter) = queue.adapter {
            self.device.wait(adapter, self.now);
        }
        self.refresh(queue);
    }

    /// Takes a sequence out of its queue.
    pub(crate) fn dequeue(&mut self, id: SequenceId) {
        let Some(sequence) = self.sequences.get(&id) else { return };
        let queue = sequence.queue;
        self.queues.stop_waiting(queue, id, sequence.tokens.len());
        if let Some(adapter) = queue.adapter {
            self.device.stop_waiting(adapter, self.now);
        }
    }

    /// Takes a running sequence out of its slot and gives back its blocks. Steps in flight may still write to them:
    /// whoever gets them next uses them in a later step, and shards run steps in order.
    fn vacate(&mut self, id: SequenceId) {
        let Some(sequence) = self.sequences.get_mut(&id) else { return };
        let Some(run) = sequence.run.take() else { return };
        self.running.remove(&id);
        self.queues.stop_prefilling(sequence.queue, id);
        self.committed -= run.blocks_to_come(self.kv.block_size());
        self.releases.push(run.slot);
        self.free_slots.push(run.slot);
        for block in run.blocks {
            self.kv.release(block);
        }
        self.blocked = None;
        if let Some(adapter) = sequence.queue.adapter {
            self.device.stop_running(adapter, self.now);
        }
    }

    /// Sends a running sequence back to the head of its queue. Its tokens become part of what is prefilled next time;
    /// those that unanswered steps sample for it are discarded, and sampled again: a row's random numbers depend on
    /// seed and position only.
    pub(crate) fn preempt(&mut self, id: SequenceId) {
        self.vacate(id);
        if let Some(sequence) = self.sequences.get_mut(&id) {
            sequence.prompt_tokens.clear();
            self.counters.preemptions += 1;
            self.enqueue(id);
        }
    }

    /// Forgets a sequence.
    pub(crate) fn end(&mut self, id: SequenceId) {
        match self.sequences.get(&id) {
            None => return,
            Some(sequence) if sequence.run.is_some() => self.vacate(id),
            Some(_) => self.dequeue(id),
        }
        if let Some(sequence) = self.sequences.remove(&id) {
            self.requests.remove(&sequence.id);
            if let Some(deadline) = sequence.deadline {
                self.deadlines.remove(&(deadline, id));
            }
            self.refresh(sequence.queue);
        }
    }

    pub(crate) fn fail(&mut self, id: SequenceId, reason: FailureReason, events: &mut Vec<Event>) {
        if let Some(sequence) = self.sequences.get(&id) {
            events.push(Event::Failed { id: sequence.id, reason });
            self.end(id);
        }
    }

    /// Tells fairness what a queue has to do.
    pub(crate) fn refresh(&mut self, queue: QueueKey) {
        let admits = queue.adapter.is_none_or(|adapter| self.device.admits(adapter));
        let work = Work {
            chunk: self.queues.first_prefilling(queue).is_some(),
            admission: admits && self.queues.first_waiting(queue).is_some(),
        };
        self.fairness.set(queue, work);
    }

    /// Tells fairness of adapters whose sequences may be admitted now, or no longer.
    pub(crate) fn refresh_adapters(&mut self) {
        for adapter in self.device.take_changed() {
            let queues: Vec<_> = self.queues.of(adapter).collect();
            for queue in queues {
                self.refresh(queue);
            }
        }
    }
}
