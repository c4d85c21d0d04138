//! The device tier: which adapter is in which device slot, who uses it, who waits for one.

use std::{collections::BTreeSet, sync::Arc};

use lorikeet_proto::v1::AdapterMove;
use rustc_hash::FxHashMap;

use super::adapter::{Adapter, Place};
use crate::{AdapterId, Time, sequence::SequenceId};

pub(crate) struct Device {
    pub(super) slots: Vec<Option<AdapterId>>,
    pub(super) free: Vec<u32>,
    /// Slots that the shard still has filled and the next step empties.
    pub(super) emptied: Vec<u32>,
    pub(super) budget: u64,
    pub(super) used: u64,
    pub(super) synchronous: bool,
    pub(super) adapters: FxHashMap<AdapterId, Adapter>,
    ids: FxHashMap<Arc<str>, AdapterId>,
    next_id: u64,
    /// Adapters that wait for a slot, by when they began to.
    pub(super) wanted: BTreeSet<(Time, AdapterId)>,
    /// Adapters that may be evicted once no unanswered step uses them, by last use.
    pub(super) idle: BTreeSet<(u64, AdapterId)>,
    /// Adapters without a slot that nobody asks for, by last use: at most so many are known.
    dormant: BTreeSet<(u64, AdapterId)>,
    max_dormant: usize,
    pub(super) draining: Vec<AdapterId>,
    /// See [`Device::hold`].
    pub(super) held: Option<AdapterId>,
    /// Adapters whose sequences may be admitted, or may no longer be, since this was last taken.
    pub(super) changed: Vec<AdapterId>,
    loading: usize,
    used_adapters: usize,
    clock: u64,
    pub(super) loads: u64,
    pub(super) evictions: u64,
}

impl Device {
    pub(crate) fn new(slots: u32, budget: u64, synchronous: bool, max_dormant: usize) -> Self {
        Self {
            slots: vec![None; slots as usize],
            free: (0..slots).rev().collect(),
            emptied: Vec::new(),
            budget,
            used: 0,
            synchronous,
            adapters: FxHashMap::default(),
            ids: FxHashMap::default(),
            next_id: 0,
            wanted: BTreeSet::new(),
            idle: BTreeSet::new(),
            dormant: BTreeSet::new(),
            max_dormant,
            draining: Vec::new(),
            held: None,
            changed: Vec::new(),
            loading: 0,
            used_adapters: 0,
            clock: 0,
            loads: 0,
            evictions: 0,
        }
    }

    pub(crate) fn register(&mut self, digest: &str, bytes: u64) -> AdapterId {
        if let Some(id) = self.ids.get(digest) {
            return *id;
        }
        let id = AdapterId(self.next_id);
        self.next_id += 1;
        let digest: Arc<str> = digest.into();
        self.ids.insert(digest.clone(), id);
        self.clock += 1;
        self.adapters.insert(id, Adapter::dormant(digest, bytes, self.clock));
        self.dormant.insert((self.clock, id));
        self.forget_dormant();
        id
    }

    pub(crate) fn in_use(&self, id: AdapterId, answered: u64) -> bool {
        let used =
            |adapter: &Adapter| adapter.is_used() || adapter.is_loading() || adapter.last_step > answered;
        self.adapters.get(&id).is_some_and(used)
    }

    /// The bytes of a known adapter.
    pub(crate) fn bytes(&self, id: AdapterId) -> Option<u64> {
        self.adapters.get(&id).map(|adapter| adapter.bytes)
    }

    pub(crate) fn budget(&self) -> u64 {
        if self.slots.is_empty() { 0 } else { self.budget }
    }

    /// Where rows of this adapter find it now.
    pub(crate) fn slot(&self, id: AdapterId) -> Option<u32> {
        self.adapters.get(&id)?.ready_slot()
    }

    /// Whether waiting sequences of this adapter may be given slots.
    pub(crate) fn admits(&self, id: AdapterId) -> bool {
        self.adapters.get(&id).is_some_and(|adapter| adapter.ready_slot().is_some() && !adapter.draining)
    }

    pub(crate) fn wait(&mut self, id: AdapterId, now: Time) {
        self.update(id, now, |adapter| adapter.queued += 1);
    }

    /// The next sequence to get a slot, for which all others wait, is of this adapter: it is not drained meanwhile, or
    /// those that are admitted instead would take what the sequence waits for.
    pub(crate) fn hold(&mut self, id: Option<AdapterId>) {
        self.held = id;
    }

    pub(crate) fn stop_waiting(&mut self, id: AdapterId, now: Time) {
        self.update(id, now, |adapter| adapter.queued -= 1);
    }

    pub(crate) fn run(&mut self, id: AdapterId, now: Time) {
        self.update(id, now, |adapter| adapter.running += 1);
    }

    pub(crate) fn stop_running(&mut self, id: AdapterId, now: Time) {
        self.update(id, now, |adapter| adapter.running -= 1);
    }

    /// A step has rows of this adapter.
    pub(crate) fn used_by(&mut self, id: AdapterId, step: u64) {
        if let Some(adapter) = self.adapters.get_mut(&id) {
            adapter.last_step = step;
        }
    }

    /// The answer to `step` reports that the move into this slot has completed.
    pub(crate) fn moved(&mut self, slot: u32, step: u64, now: Time) {
        let Some(id) = self.slots.get(slot as usize).copied().flatten() else { return };
        self.update(id, now, |adapter| {
            if let Place::Slot { step: moved, ready, .. } = &mut adapter.place
                && *moved <= step
                && !*ready
            {
                *ready = true;
                adapter.since = now;
            }
        });
    }

    /// The answer to `step` reports that a move failed: the slot is empty. Returns the adapter and, of its sequences,
    /// the first that asked for it after that move.
    pub(crate) fn move_failed(
        &mut self,
        slot: u32,
        digest: &str,
        step: u64,
        now: Time,
    ) -> Option<(AdapterId, SequenceId)> {
        let id = self.slots.get(slot as usize).copied().flatten()?;
        let adapter = self.adapters.get(&id)?;
        let Place::Slot { step: moved, newest, .. } = adapter.place else { return None };
        if *adapter.digest != *digest || moved > step {
            return None;
        }
        self.vacate(id, slot);
        self.update(id, now, |adapter| adapter.place = Place::Absent);
        Some((id, newest))
    }

    pub(crate) fn is_loading(&self) -> bool {
        self.loading > 0
    }

    /// Adapters of which [`Device::admits`] may have changed since the last call.
    pub(crate) fn take_changed(&mut self) -> Vec<AdapterId> {
        std::mem::take(&mut self.changed)
    }

    /// The shard is gone, and with it all sequences, all content of slots and every prefix cached for an adapter: no
    /// adapter is known any more.
    pub(crate) fn clear(&mut self) {
        let empty = Self::new(self.slots.len() as u32, self.budget, self.synchronous, self.max_dormant);
        let lost = std::mem::replace(self, empty);
        self.next_id = lost.next_id;
        self.loads = lost.loads;
        self.evictions = lost.evictions;
    }

    pub(crate) fn known(&self) -> usize {
        self.adapters.len()
    }

    pub(crate) fn total_slots(&self) -> usize {
        self.slots.len()
    }

    pub(crate) fn free_slots(&self) -> usize {
        self.free.len()
    }

    pub(crate) fn bytes_used(&self) -> u64 {
        self.used
    }

    pub(crate) fn counters(&self) -> (u64, u64) {
        (self.loads, self.evictions)
    }

    pub(crate) fn pinned(&self) -> usize {
        self.used_adapters
    }

    /// Digests of the adapters that rows can use.
    pub(crate) fn resident(&self) -> impl Iterator<Item = Arc<str>> {
        self.in_slots().filter(|adapter| adapter.ready_slot().is_some()).map(|adapter| adapter.digest.clone())
    }

    /// Digests of the adapters with sequences waiting that are not yet in a slot.
    pub(crate) fn waiting(&self) -> impl Iterator<Item = Arc<str>> {
        let wanted = self.wanted.iter().filter_map(|(_, id)| self.adapters.get(id));
        let loading = self.in_slots().filter(|adapter| adapter.is_loading() && adapter.queued > 0);
        wanted.chain(loading).map(|adapter| adapter.digest.clone())
    }

    fn in_slots(&self) -> impl Iterator<Item = &Adapter> {
        self.slots.iter().flatten().filter_map(|id| self.adapters.get(id))
    }

    pub(crate) fn take_emptied(&mut self, moves: &mut Vec<AdapterMove>) {
        moves.extend(self.emptied.drain(..).map(|slot| AdapterMove { slot, digest: String::new() }));
    }

    /// Takes an adapter out of its slot. The shard is told with the next step.
    pub(super) fn evict(&mut self, id: AdapterId) {
        let Some(Adapter { place: Place::Slot { slot, .. }, .. }) = self.adapters.get(&id) else { return };
        let slot = *slot;
        self.vacate(id, slot);
        self.emptied.push(slot);
        self.evictions += 1;
    }

    fn vacate(&mut self, id: AdapterId, slot: u32) {
        self.slots[slot as usize] = None;
        self.free.push(slot);
        self.used -= self.adapters.get(&id).map_or(0, |adapter| adapter.bytes);
    }

    /// Changes an adapter and keeps the lists true.
    pub(super) fn update(&mut self, id: AdapterId, now: Time, change: impl FnOnce(&mut Adapter)) {
        let Some(adapter) = self.adapters.get_mut(&id) else { return };
        let before = (adapter.is_wanted(), adapter.is_loading(), adapter.is_used());
        let since = adapter.since;
        let admitted = adapter.ready_slot().is_some() && !adapter.draining;
        change(adapter);
        let after = (adapter.is_wanted(), adapter.is_loading(), adapter.is_used());
        if before.0 && !after.0 {
            self.wanted.remove(&(since, id));
        } else if after.0 && !before.0 {
            adapter.since = now;
            self.wanted.insert((now, id));
        }
        self.loading = self.loading + usize::from(after.1) - usize::from(before.1);
        self.used_adapters = self.used_adapters + usize::from(after.2) - usize::from(before.2);
        let (idle, dormant) = (adapter.is_idle(), adapter.is_dormant());
        for (rests, since, list) in
            [(idle, &mut adapter.idle, &mut self.idle), (dormant, &mut adapter.dormant, &mut self.dormant)]
        {
            if let (Some(time), false) = (*since, rests) {
                list.remove(&(time, id));
                *since = None;
            } else if rests && since.is_none() {
                self.clock += 1;
                *since = Some(self.clock);
                list.insert((self.clock, id));
            }
        }
        if admitted != (adapter.ready_slot().is_some() && !adapter.draining) {
            self.changed.push(id);
        }
        self.forget_dormant();
    }

    /// Those that were used the longest time ago.
    fn forget_dormant(&mut self) {
        while self.dormant.len() > self.max_dormant {
            let Some((_, id)) = self.dormant.pop_first() else { return };
            self.adapters.remove(&id).and_then(|adapter| self.ids.remove(&adapter.digest));
        }
    }
}
