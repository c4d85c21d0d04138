//! The requests of a connection. HTTP/2 has no limit on idle connections of its own, and pings keep them open.

use std::{sync::Arc, time::Duration};

use hyper::Version;
use parking_lot::Mutex;
use tokio::time::{Instant, sleep_until};

pub(super) struct Activity(Mutex<State>);

struct State {
    open: usize,
    /// When the last request ended, or the connection began.
    since: Instant,
    /// Idle connections are hyper's own matter then, which knows when a response has left.
    http1: bool,
}

/// A request whose response has not been handed over.
pub(super) struct Open(Arc<Activity>);

impl Activity {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(State { open: 0, since: Instant::now(), http1: false })))
    }

    /// The request is open until this is dropped.
    pub(super) fn begin(self: &Arc<Self>, version: Version) -> Open {
        let mut state = self.0.lock();
        state.open += 1;
        state.http1 |= version < Version::HTTP_2;
        Open(Arc::clone(self))
    }

    /// Resolves once no request has been open for so long; never on a connection that has spoken HTTP/1.
    pub(super) async fn idle(&self, limit: Duration) {
        while let Some(due) = self.due(limit) {
            sleep_until(due).await;
        }
    }

    /// When to look again; `None`: it is time.
    fn due(&self, limit: Duration) -> Option<Instant> {
        let state = self.0.lock();
        let now = Instant::now();
        let since = if state.open > 0 || state.http1 { now } else { state.since };
        Some(since + limit).filter(|due| *due > now)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let mut state = self.0.0.lock();
        state.open -= 1;
        state.since = Instant::now();
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{sleep, timeout};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(15);

    #[tokio::test(start_paused = true)]
    async fn idle_time_begins_with_the_end_of_the_last_request() {
        let activity = Activity::new();
        sleep(LIMIT / 2).await;
        let requests = [activity.begin(Version::HTTP_2), activity.begin(Version::HTTP_2)];
        assert!(timeout(LIMIT * 3, activity.idle(LIMIT)).await.is_err(), "requests are open");
        drop(requests);
        let ended = Instant::now();
        activity.idle(LIMIT).await;
        // The clock of tests stands still while anything runs; its timers are good to a millisecond.
        assert!(ended.elapsed() >= LIMIT && ended.elapsed() < LIMIT * 2);
    }

    #[tokio::test(start_paused = true)]
    async fn connections_of_http1_are_not_watched() {
        let activity = Activity::new();
        drop(activity.begin(Version::HTTP_11));
        assert!(timeout(LIMIT * 10, activity.idle(LIMIT)).await.is_err());
    }
}
