//! Who hears of which request.

use std::time::Duration;

use lorikeet_engine::{AdapterId, Event, RequestId};
use rustc_hash::FxHashMap;
use tokio::{sync::mpsc, time::Instant};

use super::Message;
use crate::{adapters::Staged, error::Error};

/// The requests in the engine.
#[derive(Default)]
pub(super) struct Table {
    entries: FxHashMap<RequestId, Entry>,
    /// The adapters of requests that have ended.
    released: Vec<(AdapterId, Staged)>,
    /// Seconds between two requests that end, on average of late.
    interval: f64,
    last_end: Option<Instant>,
}

struct Entry {
    messages: mpsc::Sender<Message>,
    /// Keeps the adapter staged until the request has ended.
    adapter: Option<(AdapterId, Staged)>,
}

impl Table {
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn insert(
        &mut self,
        id: RequestId,
        messages: mpsc::Sender<Message>,
        adapter: Option<(AdapterId, Staged)>,
    ) {
        self.entries.insert(id, Entry { messages, adapter });
    }

    /// Whether it was there.
    pub(super) fn remove(&mut self, id: RequestId) -> bool {
        let Some(entry) = self.entries.remove(&id) else { return false };
        self.released.extend(entry.adapter);
        true
    }

    /// The adapters of requests that have ended since the last call.
    pub(super) fn take_released(&mut self) -> Vec<(AdapterId, Staged)> {
        std::mem::take(&mut self.released)
    }

    /// Sends events to those they concern. Returns the requests nobody listens to any more.
    pub(super) fn deliver(&mut self, events: &mut Vec<Event>) -> Vec<RequestId> {
        let now = Instant::now();
        let mut deaf = Vec::new();
        for event in events.drain(..) {
            let id = event.id();
            let last = matches!(&event, Event::Failed { .. } | Event::Token { finish: Some(_), .. });
            let Some(entry) = self.entries.get(&id) else { continue };
            // The channel has room for everything, so what cannot be sent has no receiver.
            let heard = entry.messages.try_send(Message::Event(event, now)).is_ok();
            if last {
                self.remove(id);
                self.ended(now);
            } else if !heard {
                self.remove(id);
                deaf.push(id);
            }
        }
        deaf
    }

    /// Ends every request with an error, and returns which there were.
    pub(super) fn fail_all(&mut self, error: &Error) -> Vec<RequestId> {
        let entries = std::mem::take(&mut self.entries);
        entries
            .into_iter()
            .map(|(id, entry)| {
                entry.messages.try_send(Message::Failed(error.clone())).ok();
                self.released.extend(entry.adapter);
                id
            })
            .collect()
    }

    /// When room can be expected, from how fast requests have ended of late.
    pub(super) fn retry_after(&self) -> Duration {
        // Half of those who are here now will have ended.
        Duration::from_secs_f64((self.interval * self.len() as f64 / 2.0).clamp(1.0, 60.0).ceil())
    }

    fn ended(&mut self, now: Instant) {
        if let Some(last) = self.last_end.replace(now) {
            let interval = now.duration_since(last).as_secs_f64().min(60.0);
            self.interval += (interval - self.interval) / 16.0;
        }
    }
}
