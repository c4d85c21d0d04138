//! The adapters that must stay staged although no request holds them.

use lorikeet_engine::{AdapterId, Engine};
use rustc_hash::FxHashMap;

use crate::adapters::Staged;

#[derive(Default)]
pub(super) struct AdaptersInUse {
    /// Of adapters whose last request has ended while a step that moves them is unanswered: the shard may still read
    /// the staged copy. One pin each is enough.
    held: FxHashMap<AdapterId, Staged>,
}

impl AdaptersInUse {
    /// Takes the pins of requests that have ended, and lets go of those the engine does not need.
    pub(super) fn release(&mut self, pins: Vec<(AdapterId, Staged)>, engine: &Engine) {
        for (id, staged) in pins {
            if engine.adapter_in_use(id) {
                self.held.insert(id, staged);
            }
        }
    }

    /// After each result: lets go of what no step needs any more.
    pub(super) fn review(&mut self, engine: &Engine) {
        self.held.retain(|id, _| engine.adapter_in_use(*id));
    }

    /// The shards are gone, and nothing is staged.
    pub(super) fn let_go(&mut self) {
        self.held.clear();
    }
}
