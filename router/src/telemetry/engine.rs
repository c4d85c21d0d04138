//! What the engine says of itself.

use lorikeet_engine::{EngineConfig, Stats};

/// The engine's numbers at one moment.
#[derive(Clone, Debug, Default)]
pub struct EngineSnapshot {
    pub stats: Stats,
    /// `None` until the shards have been warmed up.
    pub config: Option<EngineConfig>,
}
