//! Which blocks are held, and by how many sequences.

/// Reference counts of all blocks. Knows nothing of their content.
pub(super) struct Blocks {
    references: Vec<u32>,
    free: Vec<u32>,
}

impl Blocks {
    pub(super) fn new(count: u32) -> Self {
        Self { references: vec![0; count as usize], free: (0..count).rev().collect() }
    }

    pub(super) fn total(&self) -> usize {
        self.references.len()
    }

    pub(super) fn free(&self) -> usize {
        self.free.len()
    }

    /// A free block, held once.
    pub(super) fn take(&mut self) -> Option<u32> {
        let block = self.free.pop()?;
        self.references[block as usize] = 1;
        Some(block)
    }

    /// Puts a block that nobody holds among the free ones.
    pub(super) fn put_back(&mut self, block: u32) {
        debug_assert_eq!(self.references[block as usize], 0);
        self.free.push(block);
    }

    /// One holder more. Returns how many there were.
    pub(super) fn hold(&mut self, block: u32) -> u32 {
        let references = &mut self.references[block as usize];
        *references += 1;
        *references - 1
    }

    /// One holder less. Returns how many are left.
    pub(super) fn release(&mut self, block: u32) -> u32 {
        let references = &mut self.references[block as usize];
        debug_assert!(*references > 0, "block {block} is released more often than it was held");
        *references = references.saturating_sub(1);
        *references
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_free_again_when_its_last_holder_releases_it() {
        let mut blocks = Blocks::new(2);
        let block = blocks.take().unwrap();
        assert_eq!(blocks.hold(block), 1);
        assert_eq!(blocks.release(block), 1);
        assert_eq!(blocks.release(block), 0);
        blocks.put_back(block);
        assert_eq!(blocks.free(), blocks.total());
    }

    #[test]
    fn no_block_is_given_twice() {
        let mut blocks = Blocks::new(3);
        let mut taken: Vec<_> = std::iter::from_fn(|| blocks.take()).collect();
        taken.sort_unstable();
        assert_eq!(taken, [0, 1, 2]);
    }
}
