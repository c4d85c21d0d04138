//! How flights end, and the lists that follow from each adapter's state.

use std::{sync::Arc, time::Duration};

use super::{
    flight::{Acquire, Digest, Failure, FlightId},
    host::{Adapter, FIRST_PIN, Fetch, HostTier, Name, Target, Tier},
};
use crate::Time;

/// How long those who wait sleep at most.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// Outcomes of flights that the tier no longer knows (the shards were lost meanwhile) are ignored.
impl<F: Clone> HostTier<F> {
    /// A fetch ended: the store has the bytes under this digest.
    pub fn fetched(&mut self, flight: FlightId, digest: &Digest, stored_bytes: u64, now: Time) {
        let Some(name) = self.fetch_ended(flight) else { return };
        let adapter = self.adapters.entry(digest.clone()).or_insert_with(|| Adapter::absent(stored_bytes));
        if adapter.tier == Tier::Absent {
            adapter.tier = Tier::Stored;
            adapter.disk_bytes = stored_bytes;
            self.disk_bytes += stored_bytes;
        }
        let mut names = 0;
        let mut reserved_until = None;
        if let Some(entry) = self.names.get_mut(&name).filter(|entry| entry.awaits(flight)) {
            match &entry.digest {
                Some(serving) if serving != digest => {
                    let failure = Failure::Changed { serving: serving.clone(), found: digest.clone() };
                    self.fetch_failed(&name, failure, now);
                }
                known => {
                    names = u32::from(known.is_none());
                    entry.digest = Some(digest.clone());
                    entry.fetch = Fetch::Idle;
                    // Whoever asked is about to stage it: a full store makes room with another one.
                    reserved_until = Some(now + FIRST_PIN);
                }
            }
        }
        self.reserved.extend(reserved_until.map(|until| (until, digest.clone())));
        self.update(digest, |adapter| {
            adapter.names += names;
            adapter.reserved_until = reserved_until.or(adapter.reserved_until);
        });
    }

    /// A staging ended. `host_bytes`: what the copies take together on this machine.
    pub fn staged(&mut self, flight: FlightId, host_bytes: u64, now: Time) {
        let Some((digest, reserved)) = self.stage_ended(flight) else { return };
        self.host_bytes = self.host_bytes - reserved + host_bytes;
        // One that turns out larger than the whole budget is refused from now on, and dropped at once.
        let reserved_until = (host_bytes <= self.config.host_bytes).then_some(now + FIRST_PIN);
        self.reserved.extend(reserved_until.map(|until| (until, digest.clone())));
        self.update(&digest, |adapter| {
            adapter.tier = Tier::Staged;
            adapter.host_bytes = host_bytes;
            adapter.reserved_until = reserved_until;
        });
    }

    /// A fetch or a staging failed. Those who ask in the next `failure_ttl` get this reason.
    pub fn failed(&mut self, flight: FlightId, reason: F, now: Time) {
        let failure = Failure::Flight(reason);
        if let Some(name) = self.fetch_ended(flight) {
            if self.names.get(&name).is_some_and(|entry| entry.awaits(flight)) {
                self.fetch_failed(&name, failure, now);
            }
        } else if let Some((digest, reserved)) = self.stage_ended(flight) {
            self.host_bytes -= reserved;
            let until = now + self.config.failure_ttl;
            self.update(&digest, |adapter| {
                adapter.tier = Tier::Stored;
                adapter.failure = Some((until, failure));
            });
        }
    }

    /// A fetch or a staging ended without telling anything of the adapter: who asks next begins again.
    pub fn abandoned(&mut self, flight: FlightId) {
        if let Some(name) = self.fetch_ended(flight) {
            self.idle_if(&name, |entry| entry.awaits(flight));
        } else if let Some((digest, reserved)) = self.stage_ended(flight) {
            self.host_bytes -= reserved;
            self.update(&digest, |adapter| adapter.tier = Tier::Stored);
        }
    }

    /// A staging found that the store has lost the bytes, or that they are no longer those of the digest (`NOT_FOUND`,
    /// `DATA_LOSS`): the next to ask fetches again.
    pub fn unstored(&mut self, flight: FlightId) {
        let Some((digest, reserved)) = self.stage_ended(flight) else { return };
        self.host_bytes -= reserved;
        self.vanished(&digest);
    }

    /// A drop ended.
    pub fn dropped(&mut self, flight: FlightId) {
        let Some(Target::Drop { digest, from_store, staged }) = self.flights.remove(&flight) else { return };
        if staged && let Some(adapter) = self.adapters.get(&digest) {
            self.host_bytes -= adapter.host_bytes;
            self.leaving_host -= adapter.host_bytes;
        }
        if from_store {
            self.leaving_disk -= self.adapters.get(&digest).map_or(0, |adapter| adapter.disk_bytes);
            self.vanished(&digest);
        } else {
            self.update(&digest, |adapter| adapter.tier = Tier::Stored);
        }
    }

    /// The shard group is gone, and with it host memory and every flight. Pins given out before are void. What was in
    /// the store is taken to be there still; a staging that does not find it is reported with `unstored`.
    pub fn shard_lost(&mut self) {
        self.generation += 1;
        self.flights.clear();
        self.reserved.clear();
        self.idle_staged.clear();
        self.idle_stored.clear();
        self.orphans.clear();
        self.host_bytes = 0;
        self.leaving_host = 0;
        self.leaving_disk = 0;
        for entry in self.names.values_mut() {
            if matches!(entry.fetch, Fetch::InFlight(_)) {
                entry.fetch = Fetch::Idle;
            }
        }
        self.names.retain(|_, entry| entry.is_worth_keeping());
        for adapter in self.adapters.values_mut() {
            adapter.pins = 0;
            adapter.reserved_until = None;
            if adapter.tier != Tier::Absent {
                adapter.tier = Tier::Stored;
            }
        }
        let digests: Vec<_> = self.adapters.keys().cloned().collect();
        for digest in &digests {
            self.list(digest);
        }
    }

    /// Forgets failures whose time has come, and reservations that nobody took up.
    pub(super) fn expire(&mut self, now: Time) {
        while self.expiring.first().is_some_and(|(until, _)| *until <= now) {
            let Some((until, name)) = self.expiring.pop_first() else { break };
            let expired = |entry: &Name<F>| matches!(entry.fetch, Fetch::Failed { until: expiry, .. } if expiry == until);
            self.idle_if(&name, expired);
        }
        while self.reserved.first().is_some_and(|(until, _)| *until <= now) {
            let Some((until, digest)) = self.reserved.pop_first() else { break };
            if self.adapters.get(&digest).is_some_and(|adapter| adapter.reserved_until == Some(until)) {
                self.update(&digest, |adapter| adapter.reserved_until = None);
            }
        }
    }

    /// The end of a reservation makes room although nobody reports it. And nobody sleeps for long on the strength of a
    /// report alone.
    pub(super) fn wait(&self, now: Time) -> Acquire<F> {
        let asks = now + ASK_AGAIN;
        let until = self.reserved.first().map_or(asks, |(end, _)| asks.min(*end));
        Acquire::Wait { until }
    }

    /// Changes an adapter, as the most recently used one, and keeps the lists true.
    pub(super) fn update(&mut self, digest: &Digest, change: impl FnOnce(&mut Adapter<F>)) {
        let Some(adapter) = self.adapters.get_mut(digest) else { return };
        self.idle_staged.remove(&adapter.tick);
        self.idle_stored.remove(&adapter.tick);
        self.orphans.remove(digest);
        change(adapter);
        self.list(digest);
    }

    fn list(&mut self, digest: &Digest) {
        let Some(adapter) = self.adapters.get_mut(digest) else { return };
        self.tick += 1;
        adapter.tick = self.tick;
        let busy = adapter.pins > 0 || adapter.reserved_until.is_some();
        match adapter.tier {
            Tier::Absent if adapter.names == 0 => {
                self.adapters.remove(digest);
            }
            Tier::Absent | Tier::Staging | Tier::Dropping => {}
            Tier::Stored | Tier::Staged if busy => {}
            Tier::Stored | Tier::Staged if adapter.names == 0 => {
                self.orphans.insert(digest.clone());
            }
            Tier::Stored => {
                self.idle_stored.insert(self.tick, digest.clone());
            }
            Tier::Staged => {
                self.idle_staged.insert(self.tick, digest.clone());
            }
        }
    }

    /// Takes a name's fetch for over, in a state that is told, and forgets it if nothing else is known of it.
    fn idle_if(&mut self, name: &str, over: impl FnOnce(&Name<F>) -> bool) {
        let Some(entry) = self.names.get_mut(name).filter(|entry| over(entry)) else { return };
        entry.fetch = Fetch::Idle;
        if !entry.is_worth_keeping() {
            self.names.remove(name);
        }
    }

    /// Ends a flight, if it is a fetch: the name that it was for.
    fn fetch_ended(&mut self, flight: FlightId) -> Option<Arc<str>> {
        let Some(Target::Fetch { .. }) = self.flights.get(&flight) else { return None };
        let Some(Target::Fetch { name }) = self.flights.remove(&flight) else { return None };
        Some(name)
    }

    /// Ends a staging flight: what it staged, and the bytes that were reserved for it.
    fn stage_ended(&mut self, flight: FlightId) -> Option<(Digest, u64)> {
        let Some(Target::Stage { .. }) = self.flights.get(&flight) else { return None };
        let Some(Target::Stage { digest, evict }) = self.flights.remove(&flight) else { return None };
        for evicted in &evict {
            self.update(evicted, |adapter| adapter.tier = Tier::Stored);
        }
        let reserved = self.adapters.get(&digest)?.host_bytes;
        Some((digest, reserved))
    }

    fn vanished(&mut self, digest: &Digest) {
        if let Some(adapter) = self.adapters.get(digest) {
            self.disk_bytes -= adapter.disk_bytes;
        }
        self.update(digest, |adapter| adapter.tier = Tier::Absent);
    }

    fn fetch_failed(&mut self, name: &Arc<str>, failure: Failure<F>, now: Time) {
        let until = now + self.config.failure_ttl;
        if let Some(entry) = self.names.get_mut(name) {
            entry.fetch = Fetch::Failed { until, failure };
            self.expiring.insert((until, name.clone()));
        }
        if self.expiring.len() > self.config.max_failures {
            self.forget_failure();
        }
    }
}
