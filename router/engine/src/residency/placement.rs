//! Which adapters move into device slots with the next step, and which give way.
//!
//! Adapters are served in the order in which they began to wait. One that does not fit is passed by, until it has waited
//! beyond the patience: from then on, what becomes free is kept for it, and the longest resident adapters are drained
//! (their waiting sequences get no slot, their running ones end) until it fits. So nobody waits for ever, and nobody
//! waits for the slow or large adapter of another before that.

use std::time::Duration;

use lorikeet_proto::v1::AdapterMove;

use super::{
    adapter::{Adapter, Place},
    device::Device,
};
use crate::{AdapterId, Time, sequence::SequenceId};

/// Moves in one step: a move may delay the step that carries it.
const MAX_LOADS: usize = 4;
/// Waiting adapters considered for one step.
const LOOKAHEAD: usize = 32;
/// How long an adapter waits for a slot before a resident one is drained for it, and how long a resident one is safe
/// from that.
const PATIENCE: Duration = Duration::from_secs(2);

/// Room for adapters: slots, and bytes of the budget.
#[derive(Clone, Copy, Default)]
struct Room {
    slots: usize,
    bytes: u64,
}

impl Room {
    fn add(&mut self, bytes: u64) {
        self.slots += 1;
        self.bytes += bytes;
    }

    /// Whether there is room for another adapter beside what is claimed.
    fn fits(self, claimed: Self, bytes: u64) -> bool {
        self.slots > claimed.slots && self.bytes >= claimed.bytes.saturating_add(bytes)
    }

    fn covers(self, claimed: Self) -> bool {
        self.slots >= claimed.slots && self.bytes >= claimed.bytes
    }
}

/// The step that moves are planned for.
#[derive(Clone, Copy)]
pub(crate) struct MoveContext {
    pub(crate) now: Time,
    pub(crate) step: u64,
    /// The last step that was answered: adapters used by later ones stay.
    pub(crate) answered: u64,
    /// The number that the next sequence will get.
    pub(crate) newest: SequenceId,
}

impl Device {
    /// Adds the moves of the next step.
    pub(crate) fn plan_moves(&mut self, context: MoveContext, moves: &mut Vec<AdapterMove>) {
        let mut loads = Vec::new();
        if !self.wanted.is_empty() {
            self.serve(context, &mut loads);
        } else if !self.draining.is_empty() {
            self.drain(Room::default(), Room::default(), context.now);
        }
        self.take_emptied(moves);
        moves.append(&mut loads);
    }

    fn serve(&mut self, context: MoveContext, loads: &mut Vec<AdapterMove>) {
        let wanted: Vec<_> = self.wanted.iter().take(LOOKAHEAD).copied().collect();
        let mut starving = Vec::new();
        let mut claimed = Room::default();
        let mut room = self.room(context.answered, |adapter| adapter.queued == 0);
        for (since, id) in wanted {
            let Some(bytes) = self.bytes(id) else { continue };
            if loads.len() < MAX_LOADS && room.fits(claimed, bytes) {
                self.load(id, context, loads);
                room = self.room(context.answered, |adapter| adapter.queued == 0);
            } else if since + PATIENCE <= context.now {
                claimed.add(bytes);
                starving.push((id, bytes));
            }
        }
        self.drain(claimed, room, context.now);
        for (id, bytes) in starving {
            let room = self.room(context.answered, |_| true);
            if loads.len() == MAX_LOADS || !room.fits(Room::default(), bytes) {
                break;
            }
            self.load(id, context, loads);
        }
    }

    /// What is free, and what idle adapters would leave.
    fn room(&self, answered: u64, give_way: impl Fn(&Adapter) -> bool) -> Room {
        let mut room = Room { slots: self.free.len(), bytes: self.budget - self.used };
        for adapter in self.idle.iter().filter_map(|(_, id)| self.adapters.get(id)) {
            if adapter.last_step <= answered && give_way(adapter) {
                room.add(adapter.bytes);
            }
        }
        room
    }

    fn load(&mut self, id: AdapterId, context: MoveContext, loads: &mut Vec<AdapterMove>) {
        let Some((digest, bytes)) = self.adapters.get(&id).map(|a| (a.digest.to_string(), a.bytes)) else {
            return;
        };
        while self.free.is_empty() || self.used + bytes > self.budget {
            let Some(victim) = self.victim(context.answered) else { return };
            self.evict(victim);
            self.update(victim, context.now, |adapter| {
                adapter.place = Place::Absent;
                adapter.draining = false;
            });
        }
        let Some(slot) = self.free.pop() else { return };
        self.slots[slot as usize] = Some(id);
        self.used += bytes;
        self.loads += 1;
        let MoveContext { now, step, newest, .. } = context;
        let ready = self.synchronous;
        self.update(id, now, |adapter| {
            adapter.place = Place::Slot { slot, step, newest, ready };
            adapter.last_step = step;
            adapter.since = now;
        });
        loads.push(AdapterMove { slot, digest });
    }

    /// The least recently used adapter without waiting sequences, else one that was drained.
    fn victim(&self, answered: u64) -> Option<AdapterId> {
        let evictable =
            |id: &AdapterId| self.adapters.get(id).filter(|adapter| adapter.last_step <= answered);
        let mut idle = self.idle.iter().map(|(_, id)| *id).filter(|id| evictable(id).is_some());
        let first = idle.clone().next();
        idle.find(|id| evictable(id).is_some_and(|adapter| adapter.queued == 0)).or(first)
    }

    /// Drains as many adapters as it takes to cover the claims, the longest resident first, and lets the others live.
    fn drain(&mut self, claimed: Room, mut room: Room, now: Time) {
        let was_draining = std::mem::take(&mut self.draining);
        if !room.covers(claimed) {
            let mut residents: Vec<_> = self.slots.iter().flatten().copied().collect();
            residents.retain(|id| self.may_drain(*id, now));
            residents.sort_by_key(|id| self.adapters.get(id).map(|adapter| adapter.since));
            for id in residents {
                if room.covers(claimed) {
                    break;
                }
                room.add(self.bytes(id).unwrap_or_default());
                self.draining.push(id);
            }
        }
        for id in was_draining {
            if !self.draining.contains(&id) {
                self.update(id, now, |adapter| adapter.draining = false);
            }
        }
        for id in self.draining.clone() {
            self.update(id, now, |adapter| adapter.draining = true);
        }
    }

    fn may_drain(&self, id: AdapterId, now: Time) -> bool {
        let Some(adapter) = self.adapters.get(&id).filter(|_| self.held != Some(id)) else { return false };
        adapter.ready_slot().is_some()
            && adapter.is_used()
            && (adapter.draining || adapter.since + PATIENCE <= now)
    }
}
