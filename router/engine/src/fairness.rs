//! Whose turn it is: a virtual counter of tokens served for each queue, the smallest is next.
//!
//! After the virtual token counter of Sheng et al. (OSDI 2024). A queue that has something to do again is lifted to the
//! smallest counter of those that have, or if none has, to the largest that was charged since: idleness earns no credit,
//! and a debt is kept only as long as it matters.

use std::collections::BTreeSet;

use rustc_hash::FxHashMap;

use crate::queue::QueueKey;

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

/// A queue's place in the order: its counter, then who came or was served first. So nobody who is passed over for want of
/// room is overtaken by a newcomer.
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
    /// The smallest counter when last somebody had something to do, or the largest charged since.
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
            self.turns += 1;
            share.turn = self.turns;
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
        self.turns += 1;
        share.turn = self.turns;
        // Nobody waits, so nobody is owed what others get: whoever comes now starts from here.
        if self.chunks.is_empty() && self.admissions.is_empty() {
            self.floor = self.floor.max(share.counter);
        }
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
        self.floor = self.floor.max(place.0);
        Some(turn)
    }

    /// Whether some queue has a chunk to give.
    pub(crate) fn has_chunks(&self) -> bool {
        !self.chunks.is_empty()
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{AdapterId, TenantId};

    const CHUNK: Work = Work { chunk: true, admission: false };
    const ADMISSION: Work = Work { chunk: false, admission: true };

    fn key(tenant: u32) -> QueueKey {
        QueueKey { tenant: TenantId(tenant), adapter: Some(AdapterId(tenant.into())) }
    }

    #[test]
    fn the_smallest_counter_is_next() {
        let mut fairness = Fairness::default();
        for tenant in 0..3 {
            fairness.set(key(tenant), ADMISSION);
        }
        fairness.charge(key(0), 10, 1.0);
        fairness.charge(key(1), 10, 4.0);
        fairness.charge(key(2), 3, 1.0);
        assert_eq!(fairness.next(true), Some(Turn::Admission(key(1))));
        fairness.charge(key(1), 10, 4.0);
        assert_eq!(fairness.next(true), Some(Turn::Admission(key(2))));
    }

    #[test]
    fn without_admissions_chunks_go_on() {
        let mut fairness = Fairness::default();
        fairness.set(key(0), ADMISSION);
        assert_eq!(fairness.next(false), None);
        fairness.set(key(1), CHUNK);
        assert_eq!(fairness.next(false), Some(Turn::Chunk(key(1))));
        assert_eq!(fairness.next(true), Some(Turn::Admission(key(0))));
    }

    #[test]
    fn a_newcomer_is_lifted_and_overtakes_nobody() {
        let mut fairness = Fairness::default();
        fairness.set(key(0), ADMISSION);
        fairness.charge(key(0), 1000, 1.0);
        fairness.set(key(1), ADMISSION);
        assert_eq!(fairness.next(true), Some(Turn::Admission(key(0))));
        fairness.charge(key(0), 1, 1.0);
        assert_eq!(fairness.next(true), Some(Turn::Admission(key(1))));
        // It is charged with what it gets only.
        fairness.charge(key(1), 2, 1.0);
        assert_eq!(fairness.next(true), Some(Turn::Admission(key(0))));
    }

    #[test]
    fn a_debt_outlives_idleness() {
        let mut fairness = Fairness::default();
        fairness.set(key(0), ADMISSION);
        fairness.set(key(1), ADMISSION);
        fairness.charge(key(0), 100, 1.0);
        fairness.set(key(0), Work::default());
        fairness.charge(key(1), 50, 1.0);
        fairness.set(key(0), ADMISSION);
        assert_eq!(fairness.next(true), Some(Turn::Admission(key(1))));
    }

    #[test]
    fn what_nobody_waited_for_is_no_debt() {
        let mut fairness = Fairness::default();
        fairness.set(key(0), ADMISSION);
        assert_eq!(fairness.next(true), Some(Turn::Admission(key(0))));
        fairness.set(key(0), Work::default());
        fairness.charge(key(0), 1000, 1.0);
        fairness.set(key(1), ADMISSION);
        fairness.set(key(0), ADMISSION);
        fairness.charge(key(1), 10, 1.0);
        assert_eq!(fairness.next(true), Some(Turn::Admission(key(0))));
    }

    #[test]
    fn queues_that_come_and_go_are_not_kept() {
        let mut fairness = Fairness::default();
        for tenant in 0..100_000 {
            fairness.set(key(tenant), ADMISSION);
            assert_eq!(fairness.next(true), Some(Turn::Admission(key(tenant))));
            fairness.charge(key(tenant), 1 + tenant as usize % 7, 1.0);
            fairness.set(key(tenant), Work::default());
        }
        assert!(fairness.shares.len() <= 2 * SPARE, "{} are kept", fairness.shares.len());
    }

    #[test]
    fn weights_are_bounded() {
        let mut fairness = Fairness::default();
        for tenant in 0..4 {
            fairness.set(key(tenant), ADMISSION);
        }
        for (tenant, weight) in [0.0, -1.0, f32::NAN, f32::INFINITY].into_iter().enumerate() {
            fairness.charge(key(tenant as u32), 100, weight);
        }
        assert_eq!(fairness.next(true), Some(Turn::Admission(key(3))));
    }
}
