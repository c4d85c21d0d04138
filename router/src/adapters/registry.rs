//! Which adapters are known and staged: the pure state machine of the engine, with the calls it asks for.

use std::{sync::Arc, time::Duration};

use lorikeet_engine::{
    Time,
    residency::{Acquire, Digest, HostConfig, HostStats, HostTier, Pin, Work},
};
use parking_lot::Mutex;
use rustc_hash::FxHashMap;
use tokio::{
    runtime::Handle,
    sync::{Notify, Semaphore, watch},
    time::{Instant, timeout, timeout_at},
};

use super::{
    catalogue::Catalogue,
    failure::{self, LoadFailure},
    name,
    source::AdapterSource,
};
use crate::{clock::unix_time, config::Adapters, error::Error, shard::Group, telemetry::Metrics};

/// Fetches for one request: a second one, should the store have lost what the first one brought.
const MAX_FETCHES: u32 = 2;

/// How long a failure is remembered at least: whoever waited for it is to hear of it, on a busy machine too, and not to
/// try again.
const SHORTEST_FAILURE: Duration = Duration::from_millis(100);

/// Names of adapters that cannot be had, each with its reason, are remembered up to some megabytes.
const MAX_FAILURES: usize = 4096;

/// Knows every adapter that was asked for. One per router.
pub struct Registry {
    /// What could be asked for.
    pub catalogue: Catalogue,
    pub(super) group: Arc<Group>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) config: Adapters,
    pub(super) state: Mutex<State>,
    /// Notified after every change of the tier.
    pub(super) changed: Notify,
    /// How often the shards were lost. What was staged before is gone.
    pub(super) epoch: watch::Sender<u64>,
    /// For those who wait until an adapter is staged.
    places: Semaphore,
    started: Instant,
    /// Flights are started from `Drop` too, wherever that runs.
    pub(super) runtime: Handle,
}

pub(super) struct State {
    pub(super) tier: HostTier<LoadFailure>,
    /// What an adapter takes in a device slot, of every digest that was staged once.
    pub(super) device_bytes: FxHashMap<Digest, u64>,
    /// Unix seconds at which a name first got its digest.
    created: FxHashMap<Arc<str>, u64>,
}

/// An adapter as `/v1/models` lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// What clients put in `model` or `adapter_id`.
    pub id: String,
    /// `source:id`.
    pub root: String,
    pub digest: String,
    /// Unix seconds at which it was first resolved.
    pub created: u64,
}

/// An adapter staged on every shard. It stays so until this is dropped.
pub struct Staged {
    pub digest: Digest,
    /// What it takes in a device slot, on the rank where it takes most.
    pub device_bytes: u64,
    epoch: u64,
    pin: Option<Pin>,
    registry: Arc<Registry>,
}

impl Registry {
    /// Within a runtime, in which it runs the calls to the shards. `places`: how many may wait for adapters at once.
    pub fn new(
        group: Arc<Group>,
        config: Adapters,
        base: &str,
        metrics: Arc<Metrics>,
        places: usize,
    ) -> Self {
        let tier = HostTier::new(HostConfig {
            host_bytes: config.adapter_host_bytes,
            disk_bytes: config.adapter_disk_bytes,
            max_adapter_bytes: config.max_adapter_bytes,
            failure_ttl: config.adapter_failure_ttl.max(SHORTEST_FAILURE),
            max_failures: MAX_FAILURES,
            max_names: config.max_adapter_names,
        });
        let state = State { tier, device_bytes: FxHashMap::default(), created: FxHashMap::default() };
        Self {
            catalogue: Catalogue::new(config.adapter_root.clone(), base),
            group,
            metrics,
            config,
            state: Mutex::new(state),
            changed: Notify::new(),
            epoch: watch::Sender::new(0),
            places: Semaphore::new(places.min(Semaphore::MAX_PERMITS)),
            started: Instant::now(),
            runtime: Handle::current(),
        }
    }

    /// Fetches and stages an adapter if need be. However many ask at once, the work is done once, and goes on
    /// when they stop waiting. Those who wait when the shards are lost are told so: what they waited for can only begin
    /// again with other shards.
    pub async fn resolve(self: &Arc<Self>, id: &str, source: AdapterSource) -> Result<Staged, Error> {
        name::check(id)?;
        let key = name::key(id, source);
        let limit = self.config.adapter_load_timeout;
        timeout(limit, self.acquire(id, &key))
            .await
            .unwrap_or_else(|_| Err(Error::AdapterTimeout { id: id.to_owned(), limit }))
    }

    async fn acquire(self: &Arc<Self>, id: &str, key: &Arc<str>) -> Result<Staged, Error> {
        let mut fetches = 0;
        let mut place = None;
        let asked = self.epoch();
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // Listens from here on, so that no change between the question and the wait is missed.
            changed.as_mut().enable();
            let (answer, epoch) = {
                let mut state = self.state.lock();
                let epoch = self.epoch();
                if epoch != asked {
                    return Err(Error::ShardLost);
                }
                (state.tier.acquire(key, self.now()), epoch)
            };
            match answer {
                Acquire::Ready(pin) => return Ok(self.staged(pin, epoch)),
                Acquire::Start(flight) => {
                    fetches += u32::from(matches!(flight.work, Work::Fetch { .. }));
                    if fetches > MAX_FETCHES {
                        self.give_up(flight.id);
                    } else {
                        self.launch(flight, epoch);
                    }
                }
                Acquire::Failed(failure) => {
                    return Err(failure::error(id, failure, self.config.adapter_load_timeout));
                }
                Acquire::Wait { until } => {
                    if place.is_none() {
                        place = Some(self.places.try_acquire().map_err(|_| Error::full())?);
                    }
                    timeout_at(self.started + until, changed).await.ok();
                }
            }
        }
    }

    fn staged(self: &Arc<Self>, pin: Pin, epoch: u64) -> Staged {
        let digest = pin.digest().clone();
        let device_bytes = self.state.lock().device_bytes.get(&digest).copied().unwrap_or(0);
        Staged { digest, device_bytes, epoch, pin: Some(pin), registry: Arc::clone(self) }
    }

    /// The shards are gone, with all that was staged on them.
    pub fn shard_lost(&self) {
        let mut state = self.state.lock();
        self.epoch.send_modify(|epoch| *epoch += 1);
        state.tier.shard_lost();
        drop(state);
        self.changed.notify_waiters();
    }

    /// The adapters that have been resolved, in no order.
    pub fn list(&self) -> Vec<Listed> {
        let state = self.state.lock();
        state.tier.names().filter_map(|key| state.listed(key)).collect()
    }

    /// One of them. An adapter that was never asked for is not listed, and may exist all the same.
    pub fn find(&self, id: &str) -> Option<Listed> {
        let state = self.state.lock();
        let key = name::key(id, AdapterSource::Local);
        state.listed(&key)
    }

    /// Whether an adapter of this name was asked for, or lay below a root when that was last read.
    pub async fn has(&self, id: &str) -> bool {
        self.find(id).is_some() || self.catalogue.has(id).await
    }

    /// Every digest that a name stands for, with the name; a digest may have several.
    pub fn names(&self) -> Vec<(Digest, String)> {
        let state = self.state.lock();
        let names = state.tier.names();
        names
            .filter_map(|key| Some((state.tier.digest(key)?.clone(), name::split(key).1.to_owned())))
            .collect()
    }

    pub fn stats(&self) -> HostStats {
        self.state.lock().tier.stats()
    }

    pub(super) fn now(&self) -> Time {
        self.started.elapsed()
    }

    fn epoch(&self) -> u64 {
        *self.epoch.borrow()
    }

    fn release(self: &Arc<Self>, pin: Pin) {
        self.state.lock().tier.release(pin);
        self.keep_budgets();
    }

    /// To be called after every change of the tier.
    pub(super) fn keep_budgets(self: &Arc<Self>) {
        let (flights, epoch) = {
            let mut state = self.state.lock();
            (state.tier.over_budget(), self.epoch())
        };
        for flight in flights {
            self.launch(flight, epoch);
        }
        self.changed.notify_waiters();
    }
}

impl State {
    fn listed(&self, key: &str) -> Option<Listed> {
        let digest = self.tier.digest(key)?.to_string();
        let created = self.created.get(key).copied().unwrap_or_default();
        Some(Listed { id: name::split(key).1.to_owned(), root: key.to_owned(), digest, created })
    }

    pub(super) fn name_fetched(&mut self, name: &Arc<str>) {
        self.created.entry(Arc::clone(name)).or_insert_with(|| unix_time().as_secs());
        let Self { tier, device_bytes, created } = self;
        if created.len() > 2 * tier.names().len() {
            created.retain(|name, _| tier.digest(name).is_some());
            device_bytes.retain(|digest, _| tier.knows(digest));
        }
    }
}

impl Staged {
    /// Whether the shards that it was staged on are still there.
    pub fn is_current(&self) -> bool {
        self.epoch == self.registry.epoch()
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if let Some(pin) = self.pin.take() {
            self.registry.release(pin);
        }
    }
}
