//! What a caller hands to the engine.

use std::{sync::Arc, time::Duration};

use lorikeet_proto::v1::Sampling;

/// A point in time, as the duration since an epoch of the caller's choice. The engine never reads a clock.
pub type Time = Duration;

/// Names a request for as long as it is in the engine. Chosen by the caller, never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// An adapter the engine has been told of by [`crate::Engine::register_adapter`]: one per digest of its bytes. Never
/// reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AdapterId(pub u64);

/// Whose request it is. Fairness counts per (tenant, adapter); KV is never shared between tenants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TenantId(pub u32);

/// Weight of a request's queue in the fair share of the step: a queue of weight 2 is served twice the tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Priority(pub f32);

impl Default for Priority {
    fn default() -> Self {
        Self(1.0)
    }
}

/// One sequence to generate.
#[derive(Clone, Debug)]
pub struct Request {
    pub id: RequestId,
    pub tenant: TenantId,
    pub priority: Priority,
    /// `None`: the base model. An adapter must be staged on every shard before a request for it is submitted, and
    /// stay staged until the request's last event.
    pub adapter: Option<AdapterId>,
    /// The prompt, at least one token.
    pub tokens: Vec<u32>,
    pub max_new_tokens: u32,
    /// Tokens that end the sequence (the model's EOS tokens). Empty to ignore them.
    pub stop_tokens: Arc<[u32]>,
    pub sampling: Sampling,
    /// `Some(n)`: log-probabilities of the prompt's tokens with `n` alternatives each. Such a request reuses no prefix.
    pub prompt_logprobs: Option<u32>,
    /// When the request fails with [`crate::FailureReason::DeadlineExceeded`], wherever it is.
    pub deadline: Option<Time>,
}

/// Why a request was not queued. Nothing of it is kept.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    #[error("the queue holds {queued} requests, its bound")]
    TooManyRequests { queued: usize },
    #[error("the queue holds {queued} prompt tokens, {given} more would exceed its bound of {limit}")]
    TooManyTokens { queued: usize, given: usize, limit: usize },
    #[error("{given} tokens (prompt and output) can never fit the {limit} tokens of the KV cache")]
    NeverFits { given: usize, limit: usize },
    #[error("the adapter takes {given} bytes on the device, its share is {limit}")]
    AdapterNeverFits { given: u64, limit: u64 },
    #[error("the request has no tokens")]
    Empty,
    #[error("adapter {0:?} is not registered")]
    UnknownAdapter(AdapterId),
}
