//! What waits: one first-in first-out queue for each (tenant, adapter).

use std::collections::BTreeSet;

use rustc_hash::FxHashMap;

use crate::{AdapterId, SubmitError, TenantId, sequence::SequenceId};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct QueueKey {
    pub(crate) tenant: TenantId,
    pub(crate) adapter: Option<AdapterId>,
}

/// A queue may hold so many times what is free of the bounds over all of them. So one that is flooded leaves room for
/// the others, less the more of them there are: one takes 8/9 of a bound, two 16/17 (the dynamic thresholds of Choudhury
/// and Hahne, IEEE/ACM Transactions on Networking 1998).
const TIMES_FREE: usize = 8;

/// Sequences are numbered in the order of arrival, so a preempted one is at the head of its queue by itself.
#[derive(Default)]
struct Queue {
    waiting: BTreeSet<SequenceId>,
    /// Of those that wait.
    tokens: usize,
    /// In a slot, with a part of the prompt still to be given to a step.
    prefilling: BTreeSet<SequenceId>,
}

/// All queues that are not empty, and the bounds over them.
pub(crate) struct Queues {
    by_key: FxHashMap<QueueKey, Queue>,
    /// The tenants that have a queue for an adapter.
    tenants: FxHashMap<AdapterId, BTreeSet<TenantId>>,
    max_requests: usize,
    max_tokens: usize,
    requests: usize,
    tokens: usize,
}

impl Queues {
    pub(crate) fn new(max_requests: usize, max_tokens: usize) -> Self {
        Self {
            by_key: FxHashMap::default(),
            tenants: FxHashMap::default(),
            max_requests,
            max_tokens,
            requests: 0,
            tokens: 0,
        }
    }

    pub(crate) fn requests(&self) -> usize {
        self.requests
    }

    pub(crate) fn tokens(&self) -> usize {
        self.tokens
    }

    /// Whether one more request of this many tokens is within the bounds. Preempted sequences go back beyond them.
    pub(crate) fn check(&self, key: QueueKey, tokens: usize) -> Result<(), SubmitError> {
        let (held, held_tokens) =
            self.by_key.get(&key).map_or((0, 0), |queue| (queue.waiting.len(), queue.tokens));
        let free = self.max_requests.saturating_sub(self.requests);
        if free == 0 || held >= free.saturating_mul(TIMES_FREE) {
            return Err(SubmitError::TooManyRequests { queued: self.requests });
        }
        let free = self.max_tokens.saturating_sub(self.tokens);
        // One that is alone is taken, however long: nobody could tell it when to come again.
        if self.requests > 0 && (tokens > free || held_tokens >= free.saturating_mul(TIMES_FREE)) {
            return Err(SubmitError::TooManyTokens {
                queued: self.tokens,
                given: tokens,
                limit: self.max_tokens,
            });
        }
        Ok(())
    }

    pub(crate) fn wait(&mut self, key: QueueKey, id: SequenceId, tokens: usize) {
        let queue = self.queue(key);
        queue.waiting.insert(id);
        queue.tokens += tokens;
        self.requests += 1;
        self.tokens += tokens;
    }

    pub(crate) fn stop_waiting(&mut self, key: QueueKey, id: SequenceId, tokens: usize) {
        let Some(queue) = self.by_key.get_mut(&key) else { return };
        if queue.waiting.remove(&id) {
            queue.tokens -= tokens;
            self.requests -= 1;
            self.tokens -= tokens;
            self.tidy(key);
        }
    }

    pub(crate) fn prefill(&mut self, key: QueueKey, id: SequenceId) {
        self.queue(key).prefilling.insert(id);
    }

    pub(crate) fn stop_prefilling(&mut self, key: QueueKey, id: SequenceId) {
        if self.by_key.get_mut(&key).is_some_and(|queue| queue.prefilling.remove(&id)) {
            self.tidy(key);
        }
    }

    pub(crate) fn first_waiting(&self, key: QueueKey) -> Option<SequenceId> {
        self.by_key.get(&key)?.waiting.first().copied()
    }

    pub(crate) fn first_prefilling(&self, key: QueueKey) -> Option<SequenceId> {
        self.by_key.get(&key)?.prefilling.first().copied()
    }

    /// The queues for an adapter.
    pub(crate) fn of(&self, adapter: AdapterId) -> impl Iterator<Item = QueueKey> {
        let tenants = self.tenants.get(&adapter).into_iter().flatten();
        tenants.map(move |tenant| QueueKey { tenant: *tenant, adapter: Some(adapter) })
    }

    pub(crate) fn clear(&mut self) {
        *self = Self::new(self.max_requests, self.max_tokens);
    }

    fn queue(&mut self, key: QueueKey) -> &mut Queue {
        self.by_key.entry(key).or_insert_with(|| {
            if let Some(adapter) = key.adapter {
                self.tenants.entry(adapter).or_default().insert(key.tenant);
            }
            Queue::default()
        })
    }

    fn tidy(&mut self, key: QueueKey) {
        let Some(queue) = self.by_key.get(&key) else { return };
        if !queue.waiting.is_empty() || !queue.prefilling.is_empty() {
            return;
        }
        self.by_key.remove(&key);
        if let Some(adapter) = key.adapter
            && let Some(tenants) = self.tenants.get_mut(&adapter)
        {
            tenants.remove(&key.tenant);
            if tenants.is_empty() {
                self.tenants.remove(&adapter);
            }
        }
    }
}
