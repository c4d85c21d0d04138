//! A language model that is a hash: the KV of a position is a hash of the adapter and all tokens up to it, and the next
//! token a function of that, the seed and the position. Whoever reads a wrong block says something else.

use std::sync::Arc;

use lorikeet_engine::{AdapterId, Priority, Request, RequestId, TenantId, Time};
use lorikeet_proto::v1::Sampling;

pub const VOCABULARY: u32 = 11;
/// The token that ends a sequence.
pub const STOP: u32 = 0;

/// A request as the test made it.
#[derive(Clone, Debug)]
pub struct Job {
    pub id: u64,
    pub tenant: u32,
    pub adapter: Option<usize>,
    pub prompt: Vec<u32>,
    pub max_new_tokens: u32,
    pub stops: bool,
    pub penalty: bool,
    pub prompt_logprobs: Option<u32>,
    pub weight: f32,
    pub deadline: Option<Time>,
}

impl Default for Job {
    fn default() -> Self {
        Self {
            id: 0,
            tenant: 0,
            adapter: None,
            prompt: vec![1],
            max_new_tokens: 1,
            stops: false,
            penalty: false,
            prompt_logprobs: None,
            weight: 1.0,
            deadline: None,
        }
    }
}

fn mix(a: u64, b: u64) -> u64 {
    let mut x = (a ^ b.wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_add(0xd1b5_4a32_d192_ed03);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x ^ (x >> 27)
}

/// The KV before the first token.
pub fn empty(digest: Option<&str>) -> u64 {
    digest.map_or(1, |digest| digest.bytes().fold(2, |hash, byte| mix(hash, u64::from(byte))))
}

/// The KV of a token after that of the one before.
pub fn extend(kv: u64, token: u32) -> u64 {
    mix(kv, u64::from(token))
}

/// The token sampled at `position`, after the KV of the one before it.
pub fn sample(kv: u64, seed: u64, position: usize) -> u32 {
    (mix(mix(kv, seed), position as u64) % u64::from(VOCABULARY)) as u32
}

pub fn logprob(kv: u64, token: u32) -> f32 {
    -((mix(kv, u64::from(token)) % 1000) as f32) / 100.0
}

impl Job {
    pub fn request(&self, adapter: Option<AdapterId>) -> Request {
        Request {
            id: RequestId(self.id),
            tenant: TenantId(self.tenant),
            priority: Priority(self.weight),
            adapter,
            tokens: self.prompt.clone(),
            max_new_tokens: self.max_new_tokens,
            stop_tokens: if self.stops { Arc::from([STOP]) } else { Arc::from([]) },
            sampling: Sampling {
                seed: self.id,
                temperature: 1.0,
                top_logprobs: (self.id % 3) as u32,
                repetition_penalty: if self.penalty { 1.2 } else { 0.0 },
                ..Sampling::default()
            },
            prompt_logprobs: self.prompt_logprobs,
            deadline: self.deadline,
        }
    }

    pub fn digest(&self) -> Option<String> {
        self.adapter.map(digest)
    }

    /// What the model says when the request is alone.
    pub fn solo(&self) -> Vec<u32> {
        let mut kv = self.prompt.iter().fold(empty(self.digest().as_deref()), |kv, token| extend(kv, *token));
        let mut output = Vec::new();
        while output.len() < self.max_new_tokens as usize {
            let token = sample(kv, self.id, self.prompt.len() + output.len());
            output.push(token);
            if self.stops && token == STOP {
                break;
            }
            kv = extend(kv, token);
        }
        output
    }
}

pub fn digest(adapter: usize) -> String {
    format!("sha-{adapter}")
}
