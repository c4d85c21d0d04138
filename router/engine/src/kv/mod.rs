//! The KV cache as the router sees it: numbers of blocks, who holds them, and what they contain.

mod blocks;
mod cache;
mod prefix;

pub(crate) use cache::KvCache;
pub(crate) use prefix::{Namespace, Parent};
