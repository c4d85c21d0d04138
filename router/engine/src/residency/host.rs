//! The host and disk tiers: which adapters are in the store and in host memory, who is fetching what, what gives way.
//!
//! Owns no bytes and makes no call: it hands out [`Flight`]s and is told how they ended. The loop of a caller that
//! wants an adapter, with one notification for every change:
//!
//! ```text
//! loop {
//!     match tier.acquire(&name, now) {
//!         Ready(pin)     => break pin,                       // tier.release(pin) after the request's last event
//!         Wait { until } => timeout_at(until, changed.notified()).await,
//!         Start(flight)  => spawn(run(flight)),              // reports, then runs all of tier.over_budget(), notifies
//!         Failed(error)  => return Err(error),
//!     }
//! }
//! ```
//!
//! ```text
//! name:    Registered ──▶ Fetching ──▶ Known(digest)         digest:  Stored ──▶ Staging ──▶ Staged
//!              ▲              │                                          ▲           │          │
//!              └── (expires) ─ Failed                                    ├─ Failed ◀─┘          │
//!                                                                        └────── Dropping ◀─────┘
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use rustc_hash::FxHashMap;

use super::flight::{Acquire, Digest, Failure, Flight, FlightId, Pin, Work};
use crate::Time;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostConfig {
    /// Bytes that staged adapters may take. Kept before a staging starts, by the size in the store; should an adapter
    /// turn out larger in memory, until the next [`HostTier::over_budget`].
    pub host_bytes: u64,
    /// Bytes of the store. Exceeded by the fetches in flight until the next [`HostTier::over_budget`].
    pub disk_bytes: u64,
    /// Largest adapter that is fetched.
    pub max_adapter_bytes: u64,
    /// How long a failure is answered from memory.
    pub failure_ttl: Duration,
    /// Names remembered to have failed, beside those that were fetched before.
    pub max_failures: usize,
    /// Names remembered at once. Past it, new names take the places of those that are only remembered to have failed, then
    /// of those that were used the longest time ago and are not in host memory.
    pub max_names: usize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostStats {
    pub names: usize,
    /// Digests in the store.
    pub stored: usize,
    pub staged: usize,
    pub pinned: usize,
    pub flights: usize,
    pub host_bytes: u64,
    pub disk_bytes: u64,
}

pub(super) struct Name<F> {
    /// Set by the first fetch and never changed: a name serves the same bytes until it is forgotten.
    pub(super) digest: Option<Digest>,
    pub(super) fetch: Fetch<F>,
}

pub(super) enum Fetch<F> {
    Idle,
    InFlight(FlightId),
    Failed { until: Time, failure: Failure<F> },
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Tier {
    /// The store does not have it, though a name stands for it.
    Absent,
    Stored,
    Staging,
    Staged,
    Dropping,
}

pub(super) struct Adapter<F> {
    pub(super) tier: Tier,
    pub(super) failure: Option<(Time, Failure<F>)>,
    pub(super) disk_bytes: u64,
    /// In host memory: the size in the store until a staging has told better.
    pub(super) host_bytes: u64,
    pub(super) pins: u32,
    /// Names that stand for it. With none left it is dropped.
    pub(super) names: u32,
    /// Just staged: its first pin is kept for whoever asked, until then.
    pub(super) reserved_until: Option<Time>,
    /// Its place in the order of last use, unique.
    pub(super) tick: u64,
}

pub(super) enum Target {
    Fetch { name: Arc<str> },
    Stage { digest: Digest, evict: Vec<Digest> },
    Drop { digest: Digest, from_store: bool, staged: bool },
}

/// How long a fetched or staged adapter waits for the first of those who asked for it before it may be evicted again.
/// Without this, two callers with room for one adapter could evict each other's for ever.
pub(super) const FIRST_PIN: Duration = Duration::from_secs(5);

/// See the module's documentation. `F` is the caller's error, kept for the negative cache.
pub struct HostTier<F> {
    pub(super) config: HostConfig,
    pub(super) names: FxHashMap<Arc<str>, Name<F>>,
    pub(super) adapters: FxHashMap<Digest, Adapter<F>>,
    pub(super) flights: FxHashMap<FlightId, Target>,
    /// Names whose failure is forgotten at a time.
    pub(super) expiring: BTreeSet<(Time, Arc<str>)>,
    /// Staged adapters whose reservation ends at a time.
    pub(super) reserved: BTreeSet<(Time, Digest)>,
    /// Staged and unpinned, by last use.
    pub(super) idle_staged: BTreeMap<u64, Digest>,
    /// In the store only, by last use.
    pub(super) idle_stored: BTreeMap<u64, Digest>,
    /// Unpinned and without a name.
    pub(super) orphans: BTreeSet<Digest>,
    /// Bytes in host memory, those of stagings in flight included.
    pub(super) host_bytes: u64,
    pub(super) disk_bytes: u64,
    /// The parts of both that drops in flight give back.
    pub(super) leaving_host: u64,
    pub(super) leaving_disk: u64,
    pub(super) tick: u64,
    pub(super) next_flight: u64,
    /// Counts losses of the shards; a pin of an earlier generation is void.
    pub(super) generation: u64,
}

impl<F> Name<F> {
    /// Whether this flight is for the name as it is now: it may have been forgotten, and asked for again.
    pub(super) fn awaits(&self, flight: FlightId) -> bool {
        matches!(self.fetch, Fetch::InFlight(current) if current == flight)
    }

    pub(super) fn is_worth_keeping(&self) -> bool {
        self.digest.is_some() || !matches!(self.fetch, Fetch::Idle)
    }
}

impl<F> Adapter<F> {
    pub(super) fn absent(bytes: u64) -> Self {
        Self {
            tier: Tier::Absent,
            failure: None,
            disk_bytes: bytes,
            host_bytes: bytes,
            pins: 0,
            names: 0,
            reserved_until: None,
            tick: 0,
        }
    }
}

impl<F: Clone> HostTier<F> {
    pub fn new(config: HostConfig) -> Self {
        Self {
            config,
            names: FxHashMap::default(),
            adapters: FxHashMap::default(),
            flights: FxHashMap::default(),
            expiring: BTreeSet::new(),
            reserved: BTreeSet::new(),
            idle_staged: BTreeMap::new(),
            idle_stored: BTreeMap::new(),
            orphans: BTreeSet::new(),
            host_bytes: 0,
            disk_bytes: 0,
            leaving_host: 0,
            leaving_disk: 0,
            tick: 0,
            next_flight: 0,
            generation: 0,
        }
    }

    /// Asks for the adapter of this name. Never waits; see [`Acquire`].
    pub fn acquire(&mut self, name: &str, now: Time) -> Acquire<F> {
        self.expire(now);
        let entry = match self.name(name) {
            Ok(entry) => entry,
            Err(failure) => return Acquire::Failed(failure),
        };
        match &entry.fetch {
            Fetch::InFlight(_) => return self.wait(now),
            Fetch::Failed { failure, .. } => return Acquire::Failed(failure.clone()),
            Fetch::Idle => {}
        }
        if let Some(digest) = entry.digest.clone()
            && let Some(answer) = self.acquire_digest(&digest, now)
        {
            return answer;
        }
        let name: Arc<str> = name.into();
        let max_bytes = self.config.max_adapter_bytes.min(self.config.disk_bytes);
        let id = self.take_off(Target::Fetch { name: name.clone() });
        if let Some(entry) = self.names.get_mut(&name) {
            entry.fetch = Fetch::InFlight(id);
        }
        Acquire::Start(Flight { id, work: Work::Fetch { name, max_bytes } })
    }

    /// Gives a pin back. The adapter stays staged until its room is wanted.
    #[expect(clippy::needless_pass_by_value, reason = "a pin is given back once")]
    pub fn release(&mut self, pin: Pin) {
        if pin.generation == self.generation {
            self.update(&pin.digest, |adapter| adapter.pins = adapter.pins.saturating_sub(1));
        }
    }

    /// Forgets a name, so that its next use fetches what its source has then. The adapter is dropped when no pin and
    /// no other name needs it. Returns whether the name was known.
    pub fn forget(&mut self, name: &str) -> bool {
        let Some(entry) = self.names.remove(name) else { return false };
        if let Some(digest) = entry.digest {
            self.update(&digest, |adapter| adapter.names = adapter.names.saturating_sub(1));
        }
        true
    }

    /// Drops that bring the tiers back into their budgets, and rid them of adapters without a name: least recently
    /// used first, never a pinned one. To be run after every change; usually empty.
    pub fn over_budget(&mut self) -> Vec<Flight> {
        let mut flights = Vec::new();
        while let Some(digest) = self.orphans.first().cloned() {
            flights.push(self.drop_flight(digest, true));
        }
        while self.host_bytes - self.leaving_host > self.config.host_bytes
            && let Some(digest) = self.idle_staged.values().next().cloned()
        {
            flights.push(self.drop_flight(digest, false));
        }
        while self.disk_bytes - self.leaving_disk > self.config.disk_bytes
            && let Some(digest) = self.idle_stored.values().chain(self.idle_staged.values()).next().cloned()
        {
            flights.push(self.drop_flight(digest, true));
        }
        flights
    }

    /// The digest a name stands for, once it was fetched.
    pub fn digest(&self, name: &str) -> Option<&Digest> {
        self.names.get(name)?.digest.as_ref()
    }

    /// Every known name, in no order.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &Arc<str>> {
        self.names.keys()
    }

    /// Whether some name stands for this digest.
    pub fn knows(&self, digest: &Digest) -> bool {
        self.adapters.contains_key(digest)
    }

    pub fn stats(&self) -> HostStats {
        let count = |wanted: fn(&Adapter<F>) -> bool| self.adapters.values().filter(|a| wanted(a)).count();
        HostStats {
            names: self.names.len(),
            stored: count(|adapter| adapter.tier != Tier::Absent),
            staged: count(|adapter| adapter.tier == Tier::Staged),
            pinned: count(|adapter| adapter.pins > 0),
            flights: self.flights.len(),
            host_bytes: self.host_bytes,
            disk_bytes: self.disk_bytes,
        }
    }

    fn name(&mut self, name: &str) -> Result<&mut Name<F>, Failure<F>> {
        let limit = self.config.max_names;
        let known = self.names.contains_key(name);
        if !known && self.names.len() >= limit && !self.forget_failure() && !self.forget_unused() {
            return Err(Failure::TooManyNames { limit });
        }
        Ok(self.names.entry(name.into()).or_insert(Name { digest: None, fetch: Fetch::Idle }))
    }

    /// Forgets the oldest failure before its time, so that names nobody has cannot keep out those that somebody has.
    pub(super) fn forget_failure(&mut self) -> bool {
        let failed_only = |(until, name): &&(Time, Arc<str>)| {
            let entry = self.names.get(name);
            entry.is_some_and(|entry| {
                let failed = matches!(&entry.fetch, Fetch::Failed { until: expiry, .. } if expiry == until);
                failed && entry.digest.is_none()
            })
        };
        let Some(oldest) = self.expiring.iter().find(failed_only).cloned() else { return false };
        self.names.remove(&oldest.1);
        self.expiring.remove(&oldest)
    }

    /// Forgets the name whose adapter was used the longest time ago, of those that nobody uses or loads.
    fn forget_unused(&mut self) -> bool {
        let last_use = |entry: &Name<F>| {
            let adapter = self.adapters.get(entry.digest.as_ref()?)?;
            let kept = adapter.pins > 0 || adapter.reserved_until.is_some();
            let unused = !kept && matches!(adapter.tier, Tier::Absent | Tier::Stored);
            (unused && matches!(entry.fetch, Fetch::Idle)).then_some(adapter.tick)
        };
        let names = self.names.iter().filter_map(|(name, entry)| Some((last_use(entry)?, name)));
        let oldest = names.min().map(|(_, name)| Arc::clone(name));
        oldest.is_some_and(|name| self.forget(&name))
    }

    /// `None`: the store does not have it, it must be fetched again.
    fn acquire_digest(&mut self, digest: &Digest, now: Time) -> Option<Acquire<F>> {
        let adapter = self.adapters.get(digest)?;
        if adapter.host_bytes > self.config.host_bytes {
            let limit = self.config.host_bytes;
            return Some(Acquire::Failed(Failure::TooLarge { given: adapter.host_bytes, limit }));
        }
        match (&adapter.failure, adapter.tier) {
            (_, Tier::Absent) => None,
            (Some((until, failure)), _) if now < *until => Some(Acquire::Failed(failure.clone())),
            (_, Tier::Staging | Tier::Dropping) => Some(self.wait(now)),
            (_, Tier::Staged) => {
                self.update(digest, |adapter| {
                    adapter.pins += 1;
                    adapter.reserved_until = None;
                });
                Some(Acquire::Ready(Pin { digest: digest.clone(), generation: self.generation }))
            }
            (_, Tier::Stored) => Some(self.stage(digest, adapter.host_bytes, now)),
        }
    }

    fn stage(&mut self, digest: &Digest, bytes: u64, now: Time) -> Acquire<F> {
        let mut evict = Vec::new();
        let mut evicted = 0;
        let mut idle = self.idle_staged.values();
        while self.host_bytes - evicted + bytes > self.config.host_bytes {
            let Some(digest) = idle.next() else { return self.wait(now) };
            evicted += self.adapters.get(digest).map_or(0, |adapter| adapter.host_bytes);
            evict.push(digest.clone());
        }
        for digest in &evict {
            self.update(digest, |adapter| adapter.tier = Tier::Dropping);
        }
        self.host_bytes = self.host_bytes - evicted + bytes;
        self.update(digest, |adapter| {
            adapter.tier = Tier::Staging;
            adapter.failure = None;
        });
        let id = self.take_off(Target::Stage { digest: digest.clone(), evict: evict.clone() });
        Acquire::Start(Flight { id, work: Work::Stage { digest: digest.clone(), evict } })
    }

    fn drop_flight(&mut self, digest: Digest, from_store: bool) -> Flight {
        if let Some(adapter) = self.adapters.get(&digest) {
            self.leaving_host += if adapter.tier == Tier::Staged { adapter.host_bytes } else { 0 };
            self.leaving_disk += if from_store { adapter.disk_bytes } else { 0 };
        }
        let staged = self.adapters.get(&digest).is_some_and(|adapter| adapter.tier == Tier::Staged);
        self.update(&digest, |adapter| adapter.tier = Tier::Dropping);
        let id = self.take_off(Target::Drop { digest: digest.clone(), from_store, staged });
        Flight { id, work: Work::Drop { digest, from_store } }
    }

    fn take_off(&mut self, target: Target) -> FlightId {
        self.next_flight += 1;
        let id = FlightId(self.next_flight);
        self.flights.insert(id, target);
        id
    }
}
