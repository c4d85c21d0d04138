//! Blocks and prefixes together: allocation that gives up cached blocks, reuse that holds what it hands out.

use std::{collections::hash_map::RandomState, hash::BuildHasher};

use super::{
    blocks::Blocks,
    prefix::{Namespace, Parent, PrefixIndex},
};

/// Every block is free, held by sequences, or parked: held by none and kept for reuse.
pub(crate) struct KvCache<S = RandomState> {
    block_size: usize,
    reuse: bool,
    blocks: Blocks,
    prefix: PrefixIndex<S>,
}

impl KvCache {
    pub(crate) fn new(block_size: u32, num_blocks: u32, reuse: bool) -> Self {
        Self::with_hasher(block_size, num_blocks, reuse, RandomState::new())
    }
}

impl<S: BuildHasher> KvCache<S> {
    fn with_hasher(block_size: u32, num_blocks: u32, reuse: bool, hasher: S) -> Self {
        let blocks = Blocks::new(num_blocks);
        let prefix = PrefixIndex::new(num_blocks, hasher);
        Self { block_size: block_size.max(1) as usize, reuse, blocks, prefix }
    }

    pub(crate) fn block_size(&self) -> usize {
        self.block_size
    }

    pub(crate) fn total(&self) -> usize {
        self.blocks.total()
    }

    /// Blocks that [`KvCache::allocate`] can hand out.
    pub(crate) fn available(&self) -> usize {
        self.blocks.free() + self.prefix.parked()
    }

    /// Blocks in the prefix index, held or parked.
    pub(crate) fn cached(&self) -> usize {
        self.prefix.len()
    }

    /// A block held once, its content undefined: a free one, else the least recently used parked leaf.
    pub(crate) fn allocate(&mut self) -> Option<u32> {
        if self.blocks.free() == 0 {
            let evicted = self.prefix.evict()?;
            self.blocks.put_back(evicted);
        }
        self.blocks.take()
    }

    /// Holds the blocks that contain the longest known prefix of `tokens`, in whole blocks.
    pub(crate) fn reuse(&mut self, namespace: Namespace, tokens: &[u32]) -> Vec<u32> {
        let mut found = Vec::new();
        if !self.reuse {
            return found;
        }
        let mut parent = Parent::Root(namespace);
        for chunk in tokens.chunks_exact(self.block_size) {
            let Some(block) = self.prefix.find(parent, chunk) else { break };
            self.hold(block);
            found.push(block);
            parent = Parent::Block(block);
        }
        found
    }

    /// Offers a held block, filled with `tokens` by a step that was answered, for reuse. Its parent is held by the same
    /// sequence. False: another block stands for this content already, and the rest of the sequence cannot be offered:
    /// its blocks would be filed under one that it does not hold.
    pub(crate) fn publish(&mut self, parent: Parent, tokens: &[u32], block: u32) -> bool {
        if !self.reuse || self.prefix.find(parent, tokens).is_some() {
            return false;
        }
        self.prefix.insert(parent, tokens, block);
        true
    }

    pub(crate) fn release(&mut self, block: u32) {
        if self.blocks.release(block) == 0 {
            if self.prefix.contains(block) {
                self.prefix.park(block);
            } else {
                self.blocks.put_back(block);
            }
        }
    }

    fn hold(&mut self, block: u32) {
        if self.blocks.hold(block) == 0 {
            self.prefix.unpark(block);
        }
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
