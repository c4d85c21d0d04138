//! The words that [`super::HostTier`] and its caller exchange.

use std::{fmt, sync::Arc};

use crate::Time;

/// The identity of an adapter: the digest of its bytes, as the shard computed it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(Arc<str>);

impl Digest {
    pub fn new(digest: &str) -> Self {
        Self(digest.into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// What [`super::HostTier::acquire`] says. `F` is the caller's error.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub enum Acquire<F> {
    /// Staged on every shard, and it stays so until the pin is given to [`super::HostTier::release`].
    Ready(Pin),
    /// Another caller's flight has to end, or a pin to be released: ask again after the next change, and at this time
    /// although nothing has changed.
    Wait { until: Time },
    /// Run this flight, report its outcome, then ask again. Nobody else is given the same work meanwhile.
    Start(Flight),
    /// It cannot be had now. Failures of flights are remembered for [`super::HostConfig::failure_ttl`].
    Failed(Failure<F>),
}

/// Work for a shard, given out once. Its outcome is reported under its id.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct Flight {
    pub id: FlightId,
    pub work: Work,
}

/// Never reused: an outcome reported late, for work given out before the shards were lost, is ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FlightId(pub(super) u64);

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Work {
    /// `FetchAdapter` on rank 0. Ends with `fetched` or `failed`.
    Fetch { name: Arc<str>, max_bytes: u64 },
    /// `DropAdapter` (host memory only) of every digest in `evict` on every rank, to make room, then `StageAdapter` of
    /// `digest` on every rank. Ends with `staged`, `failed`, or `unstored` if the store has lost the bytes. The drops
    /// are done whatever becomes of the staging.
    Stage { digest: Digest, evict: Vec<Digest> },
    /// `DropAdapter` on every rank, with the files where `from_store` says so. Ends with `dropped`.
    Drop { digest: Digest, from_store: bool },
}

/// Why an adapter cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure<F> {
    /// What the flight was reported to have failed with.
    #[error("{0}")]
    Flight(F),
    #[error("the adapter takes {given} bytes, the budget is {limit}")]
    TooLarge { given: u64, limit: u64 },
    /// The name was served with other bytes before. New bytes are served after `forget`, or under another name.
    #[error("the adapter's bytes have changed: it is served as {serving}, its source now has {found}")]
    Changed { serving: Digest, found: Digest },
    #[error("{limit} adapter names are known, the bound")]
    TooManyNames { limit: usize },
}

/// Keeps an adapter staged. Counted: one per `Ready`, to be given back once.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a pin that is not released keeps the adapter in host memory"]
pub struct Pin {
    pub(super) digest: Digest,
    pub(super) generation: u64,
}

impl Pin {
    pub fn digest(&self) -> &Digest {
        &self.digest
    }
}
