//! From the adapter a client names to weights staged on every shard.

/// Knows every adapter that was asked for. One per router.
pub struct Registry {}

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

impl Registry {
    /// The adapters that have been resolved, by name.
    pub fn list(&self) -> Vec<Listed> {
        Vec::new()
    }

    /// One of them. An adapter that was never asked for is not listed, and may exist all the same.
    pub fn find(&self, _id: &str) -> Option<Listed> {
        None
    }
}
