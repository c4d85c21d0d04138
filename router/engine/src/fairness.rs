//! Whose turn it is: a virtual counter of tokens served for each queue, the smallest is next.
//!
//! After the virtual token counter of Sheng et al. (OSDI 2024). A queue that has something to do again is lifted to the
//! smallest counter of those that have, so idleness earns no credit, and a debt is kept only as long as it matters.

use std::collections::BTreeSet;

use rustc_hash::FxHashMap;

use crate::{AdapterId, queue::QueueKey};

/// What a queue could give the step under construction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Work {
    /// A chunk of a prompt that has a slot.
    pub(crate) chunk: bool,
    /// A sequence that waits for a slot, with its adapter at hand.
    pub(crate) admission: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    Chunk(QueueKey),
    Admission(QueueKey),
}

/// Counter units per token at weight 1.
const TOKEN: f32 = 65536.0;
/// Weights beyond these are taken for these.
const WEIGHTS: std::ops::RangeInclusive<f32> = 0.01..=100.0;
/// Counters kept for queues with nothing to do, beyond which those of no consequence are dropped.
const SPARE: usize = 4096;

/// A queue's place in the order: its counter, then whose last turn is longest ago.
type Place = (u64, u64, QueueKey);

#[derive(Default)]
struct Share {
    counter: u64,
    turn: u64,
    work: Work,
    /// Where it stands in the sets, if it does; behind `counter` after a charge.
    place: Option<(u64, u64)>,
    stale: bool,
}

#[derive(Default)]
pub(crate) struct Fairness {
    shares: FxHashMap<QueueKey, Share>,
    chunks: BTreeSet<Place>,
    admissions: BTreeSet<Place>,
    /// Queues whose place is behind their counter.
    stale: Vec<QueueKey>,
    /// The smallest counter when last somebody had something to do.
    floor: u64,
    turns: u64,
    prune_at: usize,
}

impl Fairness {
    /// Says what a queue has to do now.
    pub(crate) fn set(&mut self, key: QueueKey, work: Work) {
        if work == Work::default() && !self.shares.contains_key(&key) {
            return;
        }
        let floor = self.floor();
        let share = self.shares.entry(key).or_default();
        if share.work == work {
            return;
        }
        if share.work == Work::default() {
            share.counter = share.counter.max(floor);
        }
        self.unlist(key);
        if let Some(share) = self.shares.get_mut(&key) {
            share.work = work;
        }
        self.list(key);
        self.prune();
    }

    /// Counts tokens served to a queue.
    pub(crate) fn charge(&mut self, key: QueueKey, tokens: usize, weight: f32) {
        let weight = if weight.is_nan() { 1.0 } else { weight.clamp(*WEIGHTS.start(), *WEIGHTS.end()) };
        let floor = self.floor;
        let share = self.shares.entry(key).or_insert_with(|| Share { counter: floor, ..Share::default() });
        share.counter = share.counter.saturating_add((tokens as f32 * TOKEN / weight) as u64);
        if share.place.is_some() && !share.stale {
            share.stale = true;
            self.stale.push(key);
        }
    }

    /// The queue whose turn it is, among those with a chunk and, if `admissions`, those with a sequence to admit.
    pub(crate) fn next(&mut self, admissions: bool) -> Option<Turn> {
        self.settle();
        let chunk = self.chunks.first();
        let admission = self.admissions.first().filter(|_| admissions);
        let (place, turn) = match (chunk, admission) {
            (Some(chunk), Some(admission)) if admission < chunk => (admission, Turn::Admission(admission.2)),
            (Some(chunk), _) => (chunk, Turn::Chunk(chunk.2)),
            (None, Some(admission)) => (admission, Turn::Admission(admission.2)),
            (None, None) => return None,
        };
        let key = place.2;
        self.floor = self.floor();
        self.turns += 1;
        self.unlist(key);
        if let Some(share) = self.shares.get_mut(&key) {
            share.turn = self.turns;
        }
        self.list(key);
        Some(turn)
    }

    /// Drops the counters of an adapter that has no queue.
    pub(crate) fn forget(&mut self, adapter: AdapterId) {
        self.shares.retain(|key, share| key.adapter != Some(adapter) || share.work != Work::default());
    }

    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }

    fn floor(&mut self) -> u64 {
        self.settle();
        let places = [self.chunks.first(), self.admissions.first()];
        places.into_iter().flatten().map(|place| place.0).min().unwrap_or(0).max(self.floor)
    }

    fn settle(&mut self) {
        while let Some(key) = self.stale.pop() {
            self.unlist(key);
            self.list(key);
        }
    }

    fn unlist(&mut self, key: QueueKey) {
        if let Some(share) = self.shares.get_mut(&key)
            && let Some((counter, turn)) = share.place.take()
        {
            self.chunks.remove(&(counter, turn, key));
            self.admissions.remove(&(counter, turn, key));
        }
    }

    fn list(&mut self, key: QueueKey) {
        let Some(share) = self.shares.get_mut(&key) else { return };
        share.stale = false;
        if share.work == Work::default() {
            return;
        }
        share.place = Some((share.counter, share.turn));
        let place = (share.counter, share.turn, key);
        if share.work.chunk {
            self.chunks.insert(place);
        }
        if share.work.admission {
            self.admissions.insert(place);
        }
    }

    /// A counter that would be lifted anyway says nothing; beyond that the smallest debts are forgiven.
    fn prune(&mut self) {
        if self.shares.len() < self.prune_at.max(SPARE) {
            return;
        }
        let floor = self.floor();
        self.shares.retain(|_, share| share.work != Work::default() || share.counter > floor);
        let mut spare: Vec<_> =
            self.shares.iter().filter(|(_, share)| share.work == Work::default()).collect();
        if spare.len() > SPARE / 2 {
            spare.sort_unstable_by_key(|(_, share)| share.counter);
            spare.truncate(spare.len() - SPARE / 2);
            let dropped: Vec<_> = spare.into_iter().map(|(key, _)| *key).collect();
            for key in dropped {
                self.shares.remove(&key);
            }
        }
        self.prune_at = self.shares.len() * 2;
    }
}
