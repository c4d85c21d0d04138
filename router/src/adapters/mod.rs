//! From the adapter a client names to weights staged on every shard.

mod catalogue;
mod failure;
mod flight;
pub mod name;
mod registry;

pub use catalogue::Catalogue;
pub use registry::{Listed, Registry, Staged};
