//! Where the bytes of each adapter are: with their owner, on disk, in host memory, in a device slot.

mod flight;
mod host;
mod outcome;

pub use flight::{Acquire, Digest, Failure, Flight, FlightId, Pin, Work};
pub use host::{HostConfig, HostStats, HostTier, NameState};
