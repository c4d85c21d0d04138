//! The device tier: which adapter is in which device slot, who uses it, who waits for one.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use lorikeet_proto::v1::AdapterMove;
use rustc_hash::FxHashMap;

use super::adapter::{Adapter, Place};
use crate::{AdapterId, Time, sequence::SequenceId};

/// How long an adapter waits for a slot before a resident one is drained for it, and how long a resident one is safe
/// from that.
const PATIENCE: Duration = Duration::from_secs(2);

pub(crate) struct Device {
    pub(super) slots: Vec<Option<AdapterId>>,
    pub(super) free: Vec<u32>,
    /// Slots that the shard still has filled and the next step empties.
    pub(super) emptied: Vec<u32>,
    pub(super) budget: u64,
    pub(super) used: u64,
    pub(super) synchronous: bool,
    pub(super) patience: Duration,
    pub(super) adapters: FxHashMap<AdapterId, Adapter>,
    ids: FxHashMap<Arc<str>, AdapterId>,
    next_id: u32,
    /// Adapters that wait for a slot, by when they began to.
    pub(super) wanted: BTreeSet<(Time, AdapterId)>,
    /// Adapters that may be evicted once no unanswered step uses them, by last use.
    pub(super) idle: BTreeSet<(u64, AdapterId)>,
    pub(super) draining: Vec<AdapterId>,
    /// Adapters whose sequences may be admitted, or may no longer be, since this was last taken.
    pub(super) changed: Vec<AdapterId>,
    loading: usize,
    used_adapters: usize,
    clock: u64,
    pub(super) loads: u64,
    pub(super) evictions: u64,
}

impl Device {
    pub(crate) fn new(slots: u32, budget: u64, synchronous: bool) -> Self {
        Self {
            slots: vec![None; slots as usize],
            free: (0..slots).rev().collect(),
            emptied: Vec::new(),
            budget,
            used: 0,
            synchronous,
            patience: PATIENCE,
            adapters: FxHashMap::default(),
            ids: FxHashMap::default(),
            next_id: 0,
            wanted: BTreeSet::new(),
            idle: BTreeSet::new(),
            draining: Vec::new(),
            changed: Vec::new(),
            loading: 0,
            used_adapters: 0,
            clock: 0,
            loads: 0,
            evictions: 0,
        }
    }

    pub(crate) fn set_patience(&mut self, patience: Duration) {
        self.patience = patience;
    }

    pub(crate) fn register(&mut self, digest: &str, bytes: u64) -> AdapterId {
        if let Some(id) = self.ids.get(digest) {
            return *id;
        }
        let id = AdapterId(self.next_id);
        self.next_id += 1;
        let digest: Arc<str> = digest.into();
        self.ids.insert(digest.clone(), id);
        self.adapters.insert(id, Adapter::new(digest, bytes));
        id
    }

    /// Forgets an adapter, unless a sequence or an unanswered step uses it.
    pub(crate) fn forget(&mut self, id: AdapterId, answered: u64) -> bool {
        if self.in_use(id, answered) {
            return false;
        }
        self.evict(id);
        if let Some(adapter) = self.adapters.remove(&id) {
            self.ids.remove(&adapter.digest);
            self.idle.retain(|(_, idle)| *idle != id);
        }
        true
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

    /// The shard is gone, and with it all sequences and all content of slots. Adapters stay known.
    pub(crate) fn clear(&mut self) {
        let empty = Self::new(self.slots.len() as u32, self.budget, self.synchronous);
        let lost = std::mem::replace(self, empty);
        self.patience = lost.patience;
        self.ids = lost.ids;
        self.next_id = lost.next_id;
        self.loads = lost.loads;
        self.evictions = lost.evictions;
        let fresh = |(id, adapter): (AdapterId, Adapter)| (id, Adapter::new(adapter.digest, adapter.bytes));
        self.adapters = lost.adapters.into_iter().map(fresh).collect();
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

    pub(crate) fn resident(&self) -> impl Iterator<Item = AdapterId> {
        self.slots.iter().flatten().copied().filter(|id| self.slot(*id).is_some())
    }

    /// Adapters with sequences waiting that are not yet in a slot.
    pub(crate) fn waiting(&self) -> impl Iterator<Item = AdapterId> {
        let loading = self.slots.iter().flatten().copied();
        let loading =
            loading.filter(|id| self.adapters.get(id).is_some_and(|a| a.is_loading() && a.queued > 0));
        self.wanted.iter().map(|(_, id)| *id).chain(loading)
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
        if let (Some(time), false) = (adapter.idle, adapter.is_idle()) {
            self.idle.remove(&(time, id));
            adapter.idle = None;
        } else if adapter.is_idle() && adapter.idle.is_none() {
            self.clock += 1;
            adapter.idle = Some(self.clock);
            self.idle.insert((self.clock, id));
        }
        if admitted != (adapter.ready_slot().is_some() && !adapter.draining) {
            self.changed.push(id);
        }
    }
}
