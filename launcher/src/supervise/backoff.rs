//! When a group of shards that died is started again, and when that is given up.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(500);
const LONGEST: Duration = Duration::from_secs(30);

/// A group that served this long was healthy: its next death counts as the first.
const STABLE: Duration = Duration::from_secs(120);

/// Counts deaths in a row. Pure: time comes in as an argument.
#[derive(Debug)]
pub(super) struct Backoff {
    max_restarts: u32,
    restarts: u32,
    /// Starts in a row that were none of those.
    tries: u32,
}

impl Backoff {
    pub(super) fn new(max_restarts: u32) -> Self {
        Self { max_restarts, restarts: 0, tries: 0 }
    }

    /// Restarts since the group last served long enough to be called stable.
    pub(super) fn restarts(&self) -> u32 {
        self.restarts
    }

    /// How long to wait before the restart, given how long the group served; `None` to give up.
    pub(super) fn after(&mut self, served: Duration) -> Option<Duration> {
        if served >= STABLE {
            self.restarts = 0;
        }
        if self.restarts >= self.max_restarts {
            return None;
        }
        self.tries = 0;
        self.restarts += 1;
        Some(wait(self.restarts))
    }

    /// How long to wait before a start that is no restart, however many there have been: the last one failed for want
    /// of other machines.
    pub(super) fn again(&mut self) -> Duration {
        self.tries = self.tries.saturating_add(1);
        wait(self.tries)
    }
}

/// Before the first start, the second, and so on.
fn wait(start: u32) -> Duration {
    FIRST.saturating_mul(1 << (start - 1).min(16)).min(LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_bound() {
        let mut backoff = Backoff::new(100);
        let waits: Vec<_> = (0..9).filter_map(|_| backoff.after(Duration::ZERO)).collect();
        assert_eq!(waits[..4], [500, 1000, 2000, 4000].map(Duration::from_millis));
        assert_eq!(waits[8], LONGEST);
    }

    #[test]
    fn gives_up_after_the_allowed_restarts() {
        let mut backoff = Backoff::new(2);
        assert!(backoff.after(Duration::ZERO).is_some());
        assert!(backoff.after(Duration::ZERO).is_some());
        assert_eq!(backoff.after(Duration::ZERO), None);
        assert_eq!(Backoff::new(0).after(STABLE), None, "0 means that no death is forgiven");
    }

    #[test]
    fn other_machines_are_waited_for_without_end() {
        let mut backoff = Backoff::new(1);
        let waits: Vec<_> = (0..50).map(|_| backoff.again()).collect();
        assert_eq!((waits[0], waits[1], waits[49]), (FIRST, 2 * FIRST, LONGEST));
        assert_eq!(backoff.after(Duration::ZERO), Some(FIRST), "none of them was a restart");
        assert_eq!(backoff.again(), FIRST);
        assert_eq!(backoff.after(Duration::ZERO), None);
    }

    #[test]
    fn a_stable_run_is_forgiven() {
        let mut backoff = Backoff::new(1);
        assert_eq!(backoff.after(Duration::ZERO), Some(FIRST));
        assert_eq!(backoff.after(STABLE), Some(FIRST));
        assert_eq!(backoff.restarts(), 1);
    }
}
