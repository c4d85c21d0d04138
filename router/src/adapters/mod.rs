//! From the adapter a client names to weights staged on every shard.

mod catalogue;
mod contents;
mod failure;
mod flight;
mod kept;
pub(crate) mod name;
mod registry;
mod source;

pub use catalogue::Catalogue;
pub use registry::{Listed, Registry, Staged};
pub use source::{AdapterSource, source_name};
