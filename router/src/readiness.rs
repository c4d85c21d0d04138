//! Told by the driver and the shutdown, asked by probes and `infer`.

/// Whether the server can take traffic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Readiness {
    /// The shards have not been ready yet.
    #[default]
    Starting,
    Ready,
    /// The shards were lost and are being connected again.
    ShardLost,
    /// The server was told to stop.
    Draining,
}
