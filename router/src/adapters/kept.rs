//! What was read from a disk a moment ago.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{sync::watch, time::timeout};

/// How long it is good for.
const FRESH: Duration = Duration::from_secs(5);
/// How long a disk may take. Past that the last value is shown, until this one is there.
const PATIENCE: Duration = Duration::from_secs(2);

/// A value that a blocking thread reads, one however many ask.
pub struct Kept<T> {
    /// From the last value to the next.
    read: Arc<dyn Fn(T) -> T + Send + Sync>,
    last: watch::Sender<Last<T>>,
}

#[derive(Default)]
struct Last<T> {
    value: T,
    at: Option<Instant>,
    reading: bool,
}

impl<T: Clone + Default + Send + Sync + 'static> Kept<T> {
    pub(super) fn new(read: impl Fn(T) -> T + Send + Sync + 'static) -> Self {
        Self { read: Arc::new(read), last: watch::Sender::default() }
    }

    /// What is there now, or was a few seconds ago.
    pub async fn now(&self) -> T {
        self.refresh();
        self.once(|last| !last.reading).await
    }

    /// What was there when the disk was last read. Only the first reading is waited for.
    pub(super) async fn last(&self) -> T {
        self.refresh();
        self.once(|last| last.at.is_some()).await
    }

    /// Has the disk read if that is due.
    pub fn refresh(&self) {
        let due = self.last.send_if_modified(|last| {
            let due = !last.reading && last.at.is_none_or(|at| at.elapsed() >= FRESH);
            last.reading |= due;
            due
        });
        if due {
            let (read, last) = (self.read.clone(), self.last.clone());
            let before = self.last.borrow().value.clone();
            tokio::spawn(async move {
                // A reading that panics has found nothing.
                let value = tokio::task::spawn_blocking(move || read(before)).await.unwrap_or_default();
                last.send_replace(Last { value, at: Some(Instant::now()), reading: false });
            });
        }
    }

    async fn once(&self, ready: impl FnMut(&Last<T>) -> bool) -> T {
        let mut last = self.last.subscribe();
        timeout(PATIENCE, last.wait_for(ready)).await.ok();
        last.borrow().value.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_disk_that_hangs_shows_what_was_there_last() {
        let kept = Kept::new(|before: u32| before + 1);
        kept.last.send_replace(Last { value: 7, at: None, reading: true });
        assert_eq!((kept.now().await, kept.last().await), (7, 7));
        kept.last.send_modify(|last| last.reading = false);
        assert_eq!(kept.now().await, 8, "read again once the disk answers");
        assert_eq!((kept.now().await, kept.last().await), (8, 8), "and not again at once");
    }
}
