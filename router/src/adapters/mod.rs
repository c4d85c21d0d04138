//! From the adapter a client names to weights staged on every shard.

mod failure;
mod flight;
pub mod name;
mod registry;

pub use registry::{Listed, Registry, Staged};
