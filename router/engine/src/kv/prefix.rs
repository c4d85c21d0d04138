//! Which computed blocks can be reused, found by what they contain.
//!
//! Cached blocks form a forest: a block's parent holds the tokens before it, a root is a namespace. A child is found by
//! its parent and the *equality* of all its tokens; the hash only says where to look. A parent is named by its block
//! number, which identifies it for as long as a child refers to it because leaves are evicted first.

use std::{
    collections::{BTreeSet, hash_map::RandomState},
    hash::{BuildHasher, Hash, Hasher},
    sync::Arc,
};

use indexmap::{Equivalent, IndexMap};

use crate::{AdapterId, TenantId};

/// Whose KV may be shared: the same weights, for the same tenant. The base model and its numeric type are the same for
/// all that one engine knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Namespace {
    pub(crate) tenant: TenantId,
    pub(crate) adapter: Option<AdapterId>,
}

/// What precedes a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Parent {
    Root(Namespace),
    Block(u32),
}

#[derive(PartialEq, Eq)]
struct Edge {
    parent: Parent,
    tokens: Arc<[u32]>,
}

struct EdgeRef<'a> {
    parent: Parent,
    tokens: &'a [u32],
}

impl Hash for Edge {
    fn hash<H: Hasher>(&self, state: &mut H) {
        EdgeRef { parent: self.parent, tokens: &self.tokens }.hash(state);
    }
}

impl Hash for EdgeRef<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.parent.hash(state);
        self.tokens.hash(state);
    }
}

impl Equivalent<Edge> for EdgeRef<'_> {
    fn equivalent(&self, edge: &Edge) -> bool {
        self.parent == edge.parent && *self.tokens == *edge.tokens
    }
}

struct Node {
    parent: Parent,
    tokens: Arc<[u32]>,
    children: u32,
    /// When it was parked last, if no sequence holds it.
    parked: Option<u64>,
}

/// The hash is keyed at random for each process, so that nobody can prepare collisions.
pub(super) struct PrefixIndex<S = RandomState> {
    edges: IndexMap<Edge, u32, S>,
    nodes: Vec<Option<Node>>,
    /// Parked blocks without children, by the time they were parked: the next to be evicted.
    leaves: BTreeSet<(u64, u32)>,
    parked: usize,
    clock: u64,
}

impl<S: BuildHasher> PrefixIndex<S> {
    pub(super) fn new(blocks: u32, hasher: S) -> Self {
        let nodes = std::iter::repeat_with(|| None).take(blocks as usize).collect();
        Self { edges: IndexMap::with_hasher(hasher), nodes, leaves: BTreeSet::new(), parked: 0, clock: 0 }
    }

    /// Blocks that no sequence holds. All of them can be evicted, one after the other.
    pub(super) fn parked(&self) -> usize {
        self.parked
    }

    pub(super) fn len(&self) -> usize {
        self.edges.len()
    }

    pub(super) fn contains(&self, block: u32) -> bool {
        self.nodes[block as usize].is_some()
    }

    pub(super) fn find(&self, parent: Parent, tokens: &[u32]) -> Option<u32> {
        self.edges.get(&EdgeRef { parent, tokens }).copied()
    }

    /// Makes a held block known. Its parent is known and held too, and no other block has the same parent and tokens.
    pub(super) fn insert(&mut self, parent: Parent, tokens: &[u32], block: u32) {
        let tokens: Arc<[u32]> = tokens.into();
        self.edges.insert(Edge { parent, tokens: tokens.clone() }, block);
        self.nodes[block as usize] = Some(Node { parent, tokens, children: 0, parked: None });
        if let Parent::Block(parent) = parent
            && let Some(node) = &mut self.nodes[parent as usize]
        {
            node.children += 1;
        }
    }

    /// The last sequence that held the block is done with it.
    pub(super) fn park(&mut self, block: u32) {
        self.clock += 1;
        if let Some(node) = &mut self.nodes[block as usize] {
            node.parked = Some(self.clock);
            self.parked += 1;
            if node.children == 0 {
                self.leaves.insert((self.clock, block));
            }
        }
    }

    /// A sequence holds the block again.
    pub(super) fn unpark(&mut self, block: u32) {
        if let Some(node) = &mut self.nodes[block as usize]
            && let Some(time) = node.parked.take()
        {
            self.parked -= 1;
            self.leaves.remove(&(time, block));
        }
    }

    /// Forgets the parked leaf that was used the longest time ago.
    pub(super) fn evict(&mut self) -> Option<u32> {
        let (_, block) = self.leaves.pop_first()?;
        let node = self.nodes[block as usize].take()?;
        self.parked -= 1;
        self.edges.swap_remove(&EdgeRef { parent: node.parent, tokens: &node.tokens });
        if let Parent::Block(parent) = node.parent
            && let Some(node) = &mut self.nodes[parent as usize]
        {
            node.children -= 1;
            if let (0, Some(time)) = (node.children, node.parked) {
                self.leaves.insert((time, parent));
            }
        }
        Some(block)
    }
}
