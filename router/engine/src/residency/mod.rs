//! Where the bytes of each adapter are: with their owner, on disk, in host memory, in a device slot.

mod adapter;
mod device;
mod flight;
mod host;
mod outcome;
mod placement;

pub(crate) use device::Device;
pub use flight::{Acquire, Digest, Failure, Flight, FlightId, Pin, Work};
pub use host::{HostConfig, HostStats, HostTier};
pub(crate) use placement::MoveContext;
