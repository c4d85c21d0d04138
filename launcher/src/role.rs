//! The parts that processes have in a server.

use std::fmt;

/// What a process is to the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Resolves the model to local files, then ends.
    Prepare,
    /// Speaks HTTP.
    Router,
    /// Computes; one per rank.
    Shard(u32),
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Prepare => f.write_str("prepare"),
            Self::Router => f.write_str("router"),
            Self::Shard(rank) => write!(f, "shard {rank}"),
        }
    }
}
