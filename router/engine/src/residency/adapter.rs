//! What the engine knows of one adapter.

use std::sync::Arc;

use crate::{Time, sequence::SequenceId};

pub(super) struct Adapter {
    pub(super) digest: Arc<str>,
    /// In a device slot.
    pub(super) bytes: u64,
    pub(super) place: Place,
    /// Sequences that wait, and sequences in a slot.
    pub(super) queued: u32,
    pub(super) running: u32,
    /// The last step with a row of it, or with its move.
    pub(super) last_step: u64,
    /// Resident: since when. Absent with sequences waiting: since when they do.
    pub(super) since: Time,
    /// Its waiting sequences get no slot until it has made room for an adapter that has waited too long.
    pub(super) draining: bool,
    /// Its place in the order of last use, if it is idle, and if it is dormant.
    pub(super) idle: Option<u64>,
    pub(super) dormant: Option<u64>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Absent,
    /// In a slot, by a move of this step. Sequences that arrived before `newest` asked for no other move.
    Slot {
        slot: u32,
        step: u64,
        newest: SequenceId,
        ready: bool,
    },
}

impl Adapter {
    pub(super) fn dormant(digest: Arc<str>, bytes: u64, since: u64) -> Self {
        Self {
            digest,
            bytes,
            place: Place::Absent,
            queued: 0,
            running: 0,
            last_step: 0,
            since: Time::ZERO,
            draining: false,
            idle: None,
            dormant: Some(since),
        }
    }

    pub(super) fn is_used(&self) -> bool {
        self.queued > 0 || self.running > 0
    }

    pub(super) fn ready_slot(&self) -> Option<u32> {
        match self.place {
            Place::Slot { slot, ready: true, .. } => Some(slot),
            _ => None,
        }
    }

    pub(super) fn is_loading(&self) -> bool {
        matches!(self.place, Place::Slot { ready: false, .. })
    }

    /// No sequence in a slot uses it. Those that wait keep it resident, unless it is draining.
    pub(super) fn is_idle(&self) -> bool {
        self.ready_slot().is_some() && self.running == 0 && (self.queued == 0 || self.draining)
    }

    /// In no slot and not asked for. What its id still stands for are the prefixes that are cached for it.
    pub(super) fn is_dormant(&self) -> bool {
        self.place == Place::Absent && !self.is_used()
    }

    /// Waits for a device slot.
    pub(super) fn is_wanted(&self) -> bool {
        self.place == Place::Absent && self.queued > 0
    }
}
