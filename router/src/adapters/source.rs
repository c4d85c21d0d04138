//! Where an adapter comes from.

/// Where an adapter is fetched from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AdapterSource {
    /// The shard's own file system.
    Local,
}

/// The source as clients and the shard write it.
pub fn source_name(source: AdapterSource) -> &'static str {
    match source {
        AdapterSource::Local => "local",
    }
}
