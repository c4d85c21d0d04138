//! What every OpenAI answer says about itself.

use serde::Serialize;
use utoipa::ToSchema;

use crate::{clock::unix_time, output::FinishReason};

/// Names the build: two answers with one fingerprint come from the same code.
pub(super) const FINGERPRINT: &str = concat!("lorikeet-", env!("CARGO_PKG_VERSION"));

/// The same on every chunk of a stream.
#[derive(Clone, Debug)]
pub(super) struct Head {
    pub(super) id: String,
    pub(super) created: u64,
    pub(super) model: String,
}

impl Head {
    pub(super) fn new(prefix: &str, model: String) -> Self {
        let id = format!("{prefix}-{:032x}", rand::random::<u128>());
        let created = unix_time().as_secs();
        Self { id, created, model }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct Usage {
    pub prompt_tokens: u64,
    pub completion_tokens: u64,
    pub total_tokens: u64,
    /// Once the prompt has been computed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_tokens_details: Option<PromptTokensDetails>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct PromptTokensDetails {
    /// Tokens whose computation was reused.
    pub cached_tokens: u64,
}

/// The `usage` of a chunk: absent, null, or there.
pub(super) type UsageField = Option<Option<Usage>>;

impl Usage {
    pub(super) fn new(prompt_tokens: u64, completion_tokens: u64, cached_tokens: Option<u64>) -> Self {
        Self {
            prompt_tokens,
            completion_tokens,
            total_tokens: prompt_tokens + completion_tokens,
            prompt_tokens_details: cached_tokens.map(|cached_tokens| PromptTokensDetails { cached_tokens }),
        }
    }
}

pub(super) fn finish_reason(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Length => "length",
        FinishReason::Eos | FinishReason::StopSequence => "stop",
    }
}
