//! The prefix cache against a map that is obviously right, with hashes that nearly always collide.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
};

use proptest::prelude::*;

use super::*;
use crate::{AdapterId, TenantId};

/// Sixteen hashes for everything.
#[derive(Default)]
struct FourBits(u64);

impl Hasher for FourBits {
    fn finish(&self) -> u64 {
        (self.0 ^ self.0 >> 4 ^ self.0 >> 8) & 15
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0 = bytes.iter().fold(self.0, |hash, byte| hash.wrapping_mul(31).wrapping_add(u64::from(*byte)));
    }
}

type Cache = KvCache<BuildHasherDefault<FourBits>>;

const BLOCK: usize = 2;
const BLOCKS: u32 = 12;

fn cache() -> Cache {
    KvCache::with_hasher(BLOCK as u32, BLOCKS, true, BuildHasherDefault::default())
}

fn namespace(tenant: u32, adapter: Option<u32>) -> Namespace {
    Namespace { tenant: TenantId(tenant), adapter: adapter.map(|adapter| AdapterId(adapter.into())) }
}

/// A sequence as the engine would run it, computed at once: reused blocks, then its own, published.
fn run(cache: &mut Cache, contents: &mut Contents, ns: Namespace, tokens: &[u32]) -> Option<Vec<u32>> {
    let mut held = cache.reuse(ns, tokens);
    contents.check(ns, tokens, &held);
    let mut parent = held.last().map_or(Parent::Root(ns), |block| Parent::Block(*block));
    let mut publishes = true;
    for (i, chunk) in tokens.chunks(BLOCK).enumerate().skip(held.len()) {
        let Some(block) = cache.allocate() else {
            release(cache, &held);
            return None;
        };
        held.push(block);
        contents.0.insert(block, (ns, tokens[..(i * BLOCK + chunk.len())].to_vec()));
        if chunk.len() == BLOCK {
            publishes = publishes && cache.publish(parent, chunk, block);
            parent = Parent::Block(block);
        }
    }
    Some(held)
}

fn release(cache: &mut Cache, blocks: &[u32]) {
    for block in blocks {
        cache.release(*block);
    }
}

/// What every block was last filled with: the whole history up to its end.
#[derive(Default)]
struct Contents(HashMap<u32, (Namespace, Vec<u32>)>);

impl Contents {
    fn check(&self, ns: Namespace, tokens: &[u32], blocks: &[u32]) {
        for (i, block) in blocks.iter().enumerate() {
            self.check_block(ns, &tokens[..(i + 1) * BLOCK], *block);
        }
    }

    fn check_block(&self, ns: Namespace, history: &[u32], block: u32) {
        assert_eq!(self.0[&block], (ns, history.to_vec()), "block {block} holds another history");
    }
}

#[test]
fn a_branch_is_not_taken_for_the_trunk() {
    let (mut cache, mut contents, ns) = (cache(), Contents::default(), namespace(0, None));
    let trunk = run(&mut cache, &mut contents, ns, &[1, 2, 3, 4]).unwrap();
    run(&mut cache, &mut contents, ns, &[1, 2, 3, 4, 5, 6]).unwrap();
    assert_eq!(cache.reuse(ns, &[1, 2, 5, 6]), trunk[..1]);
}

#[test]
fn what_was_never_published_is_never_found() {
    let (mut cache, ns) = (cache(), namespace(0, None));
    let block = cache.allocate().unwrap();
    cache.release(block);
    assert!(cache.reuse(ns, &[1, 2]).is_empty());
    assert_eq!((cache.available(), cache.cached()), (BLOCKS as usize, 0));
}

#[test]
fn a_reused_block_is_not_evicted_while_it_is_held() {
    let (mut cache, mut contents, ns) = (cache(), Contents::default(), namespace(0, None));
    let first = run(&mut cache, &mut contents, ns, &[1, 2, 3, 4]).unwrap();
    release(&mut cache, &first);
    let held = cache.reuse(ns, &[1, 2, 3, 4]);
    assert_eq!(held, first);
    let others: Vec<_> = std::iter::from_fn(|| cache.allocate()).collect();
    assert_eq!(others.len(), BLOCKS as usize - 2);
    assert!(others.iter().all(|block| !held.contains(block)));
}

#[test]
fn the_least_recently_used_branch_goes_first_and_leaves_before_their_parents() {
    let (mut cache, mut contents, ns) = (cache(), Contents::default(), namespace(0, None));
    let old = run(&mut cache, &mut contents, ns, &[1, 2, 3, 4]).unwrap();
    let new = run(&mut cache, &mut contents, ns, &[5, 6, 7, 8]).unwrap();
    release(&mut cache, &old);
    release(&mut cache, &new);
    for _ in 0..BLOCKS - 4 {
        cache.allocate().unwrap();
    }
    let evicted: Vec<_> = std::iter::from_fn(|| cache.allocate()).collect();
    assert_eq!(evicted, [old[1], old[0], new[1], new[0]]);
}

#[test]
fn namespaces_share_nothing() {
    let (mut cache, mut contents) = (cache(), Contents::default());
    run(&mut cache, &mut contents, namespace(0, None), &[1, 2]).unwrap();
    assert!(cache.reuse(namespace(1, None), &[1, 2]).is_empty());
    assert!(cache.reuse(namespace(0, Some(0)), &[1, 2]).is_empty());
    assert_eq!(cache.reuse(namespace(0, None), &[1, 2]).len(), 1);
}

proptest! {
    /// Whatever is reused contains exactly the history asked for; blocks are conserved; all of them can be had back.
    #[test]
    fn reuse_is_equality_of_history(
        operations in prop::collection::vec(
            (0..2u32, prop::option::of(0..2u32), prop::collection::vec(0..2u32, 1..10), any::<prop::sample::Index>(), any::<bool>()),
            1..200,
        )
    ) {
        let (mut cache, mut contents) = (cache(), Contents::default());
        let mut live: Vec<Vec<u32>> = Vec::new();
        for (tenant, adapter, tokens, index, done) in operations {
            if done && !live.is_empty() {
                let held = live.swap_remove(index.index(live.len()));
                release(&mut cache, &held);
            } else if let Some(held) = run(&mut cache, &mut contents, namespace(tenant, adapter), &tokens) {
                live.push(held);
            }
            let mut held: Vec<_> = live.iter().flatten().collect();
            held.sort_unstable();
            held.dedup();
            prop_assert_eq!(held.len() + cache.available(), BLOCKS as usize);
        }
        release(&mut cache, &live.concat());
        prop_assert_eq!(cache.available(), BLOCKS as usize);
        let all: Vec<_> = std::iter::from_fn(|| cache.allocate()).collect();
        prop_assert_eq!(all.len(), BLOCKS as usize);
        prop_assert_eq!(cache.cached(), 0);
    }
}
