//! The time of day.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Since the Unix epoch; zero by a clock that is behind it.
pub(crate) fn unix_time() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO)
}
