//! Runs the calls that the host tier asks for, each in a task of its own, and reports how they ended.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures::FutureExt;
use lorikeet_engine::residency::{Digest, Flight, FlightId, Work};
use tokio::time::Instant;
use tonic::{Code, Status};

use super::{failure::LoadFailure, name, registry::Registry};
use crate::shard::is_transport;

/// Forgetting an adapter is quick; a shard that does not is about to be found dead.
const DROP_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the driver takes at most to notice that a connection is gone.
const LOSS_NOTICED: Duration = Duration::from_secs(1);

impl Registry {
    /// Starts a flight of this epoch; its outcome comes back into the tier whoever waits for it. If the shards are lost
    /// it ends where it is: the tier knows it no more, and what it would still do to the shards, other flights may have
    /// undone.
    pub(super) fn launch(self: &Arc<Self>, flight: Flight, epoch: u64) {
        let registry = Arc::clone(self);
        let mut epochs = self.epoch.subscribe();
        self.runtime.spawn(async move {
            let id = flight.id;
            let flown = tokio::select! {
                biased;
                _ = epochs.wait_for(|now| *now != epoch) => return,
                flown = AssertUnwindSafe(registry.fly(flight)).catch_unwind() => flown,
            };
            if flown.is_err() {
                // A flight that never ends would block its adapter for good.
                registry.end(|registry| {
                    registry.state.lock().tier.failed(id, LoadFailure::Internal, registry.now());
                });
            }
        });
    }

    /// Ends a flight that is not worth running: what it fetches is lost again and again.
    pub(super) fn give_up(self: &Arc<Self>, id: FlightId) {
        self.end(|registry| {
            let failure = LoadFailure::Unavailable("the store does not keep it".into());
            registry.state.lock().tier.failed(id, failure, registry.now());
        });
    }

    async fn fly(self: &Arc<Self>, flight: Flight) {
        let id = flight.id;
        match flight.work {
            Work::Fetch { name, max_bytes } => self.fetch(id, &name, max_bytes).await,
            Work::Stage { digest, evict } => self.stage(id, &digest, &evict).await,
            Work::Drop { digest, from_store } => {
                self.drop_copies(&digest, from_store).await;
                self.end(|registry| registry.state.lock().tier.dropped(id));
            }
        }
    }

    async fn fetch(self: &Arc<Self>, id: FlightId, key: &Arc<str>, max_bytes: u64) {
        let started = Instant::now();
        let (source, adapter) = name::split(key);
        let fetched = self.group.fetch(source, adapter, max_bytes, self.config.adapter_load_timeout).await;
        match fetched {
            Ok(last) => {
                self.metrics.adapter_fetched(started.elapsed());
                tracing::info!(
                    adapter,
                    digest = last.digest,
                    bytes = last.stored_bytes,
                    "fetched an adapter"
                );
                self.end(|registry| {
                    let mut state = registry.state.lock();
                    state.tier.fetched(id, &Digest::new(&last.digest), last.stored_bytes, registry.now());
                    state.name_fetched(key);
                });
            }
            Err(status) => self.failed(id, adapter, &status).await,
        }
    }

    async fn stage(self: &Arc<Self>, id: FlightId, digest: &Digest, evict: &[Digest]) {
        for evicted in evict {
            self.drop_copies(evicted, false).await;
        }
        let started = Instant::now();
        match self.group.stage(digest.as_str(), self.config.adapter_load_timeout).await {
            Ok(copies) => {
                self.metrics.adapter_staged(started.elapsed());
                let host_bytes = copies.iter().map(|copy| copy.host_bytes).sum();
                let device_bytes = copies.iter().map(|copy| copy.device_bytes).max().unwrap_or(0);
                let rank = copies.first().map_or(0, |copy| copy.max_rank);
                tracing::info!(%digest, rank, host_bytes, device_bytes, "staged an adapter");
                self.end(|registry| {
                    let mut state = registry.state.lock();
                    state.device_bytes.insert(digest.clone(), device_bytes);
                    state.tier.staged(id, host_bytes, registry.now());
                });
            }
            Err(status) => {
                // All ranks or none.
                self.drop_copies(digest, false).await;
                if matches!(status.code(), Code::NotFound | Code::DataLoss) {
                    tracing::warn!(%digest, %status, "the store has lost an adapter");
                    self.end(|registry| registry.state.lock().tier.unstored(id));
                } else {
                    self.failed(id, digest.as_str(), &status).await;
                }
            }
        }
    }

    async fn drop_copies(&self, digest: &Digest, from_store: bool) {
        match self.group.drop_adapter(digest.as_str(), from_store, DROP_TIMEOUT).await {
            Ok(()) => self.metrics.adapter_dropped(from_store),
            Err(status) => tracing::warn!(%digest, %status, "cannot drop an adapter"),
        }
    }

    async fn failed(self: &Arc<Self>, id: FlightId, adapter: &str, status: &Status) {
        self.metrics.adapter_failed();
        tracing::info!(adapter, code = ?status.code(), message = status.message(), "an adapter cannot be loaded");
        if is_transport(status) {
            // The driver loses its streams as well, and with the shards the tier forgets this flight. Otherwise it is
            // tried again: what is a loss of the shards must not be remembered as the adapter's failure.
            tokio::time::sleep(LOSS_NOTICED).await;
            self.end(|registry| registry.state.lock().tier.abandoned(id));
        } else {
            let failure = LoadFailure::from(status);
            self.end(|registry| registry.state.lock().tier.failed(id, failure, registry.now()));
        }
    }

    /// Reports an outcome, and does what follows from it.
    fn end(self: &Arc<Self>, report: impl FnOnce(&Self)) {
        report(self);
        self.keep_budgets();
    }
}
