//! The shapes of LoRAX and TGI on the wire. Every field that `lorax-client` sends may be null.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    api::wire::{finite, object},
    output::{Alternative, FinishReason, PromptToken, TokenOutput},
};

/// Body of `/`, `/generate` and `/generate_stream`.
#[derive(Deserialize, ToSchema)]
pub struct GenerateBody {
    #[schema(example = "What is LoRA?")]
    pub inputs: String,
    #[serde(default, deserialize_with = "object")]
    pub parameters: Option<GenerateParameters>,
    /// Read on `/` only.
    #[serde(default)]
    pub stream: Option<bool>,
    /// Refused: it belongs into `parameters`.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    pub adapter_id: Option<serde_json::Value>,
}

#[derive(Default, Deserialize, ToSchema)]
#[serde(default)]
pub struct GenerateParameters {
    /// The adapter; null or empty is the base model.
    #[schema(example = "sql")]
    pub adapter_id: Option<String>,
    #[schema(example = "local")]
    pub adapter_source: Option<String>,
    /// Refused: merging adapters is not supported.
    #[schema(value_type = Option<Object>)]
    pub merged_adapters: Option<serde_json::Value>,
    /// Generate this many sequences and answer the likeliest.
    #[schema(minimum = 1)]
    pub best_of: Option<usize>,
    /// 0 is greedy.
    #[serde(deserialize_with = "finite")]
    #[schema(minimum = 0.0)]
    pub temperature: Option<f32>,
    #[serde(deserialize_with = "finite")]
    #[schema(exclusive_minimum = 0.0)]
    pub repetition_penalty: Option<f32>,
    #[serde(deserialize_with = "finite")]
    #[schema(minimum = -2.0, maximum = 2.0)]
    pub frequency_penalty: Option<f32>,
    #[serde(deserialize_with = "finite")]
    #[schema(minimum = -2.0, maximum = 2.0)]
    pub presence_penalty: Option<f32>,
    #[schema(minimum = 1)]
    pub top_k: Option<i32>,
    #[serde(deserialize_with = "finite")]
    #[schema(exclusive_minimum = 0.0, maximum = 1.0)]
    pub top_p: Option<f32>,
    #[serde(deserialize_with = "finite")]
    #[schema(exclusive_minimum = 0.0, exclusive_maximum = 1.0)]
    pub typical_p: Option<f32>,
    /// Sample. Also switched on by `temperature`, `top_k`, `top_p` and `typical_p`.
    pub do_sample: Option<bool>,
    /// All that the context has left, if not given.
    #[schema(minimum = 1)]
    pub max_new_tokens: Option<u32>,
    pub ignore_eos_token: Option<bool>,
    /// Prepend the prompt to `generated_text`.
    pub return_full_text: Option<bool>,
    pub stop: Option<Vec<String>>,
    /// Keep the last so many tokens of the prompt.
    #[schema(minimum = 1)]
    pub truncate: Option<u64>,
    /// Refused when true.
    pub watermark: Option<bool>,
    pub details: Option<bool>,
    /// Return the prompt's tokens with their log-probabilities.
    pub decoder_input_details: Option<bool>,
    /// Return the likeliest tokens at each place, as `alternative_tokens`.
    #[schema(minimum = 1)]
    pub return_k_alternatives: Option<i32>,
    /// TGI's name and shape of the same, as `top_tokens`; 0 is none.
    #[schema(minimum = 0)]
    pub top_n_tokens: Option<i32>,
    /// Render the prompt as one user message by the chat template.
    pub apply_chat_template: Option<bool>,
    pub seed: Option<u64>,
    /// Refused unless of type `text`.
    #[schema(value_type = Option<Object>)]
    pub response_format: Option<serde_json::Value>,
    /// Refused.
    #[schema(value_type = Option<Object>)]
    pub grammar: Option<serde_json::Value>,
}

#[derive(Serialize, ToSchema)]
pub struct GenerateResponse {
    pub generated_text: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub details: Option<Details>,
}

#[derive(Serialize, ToSchema)]
pub struct Details {
    pub finish_reason: FinishReasonName,
    pub prompt_tokens: u32,
    pub generated_tokens: u32,
    pub skipped_tokens: u32,
    /// Null unless sampling.
    #[schema(required)]
    pub seed: Option<u64>,
    pub prefill: Vec<PrefillToken>,
    pub tokens: Vec<Token>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_tokens: Option<Vec<Vec<Token>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub best_of_sequences: Option<Vec<BestOfSequence>>,
}

#[derive(Serialize, ToSchema)]
pub struct BestOfSequence {
    pub generated_text: String,
    pub finish_reason: FinishReasonName,
    pub generated_tokens: u32,
    #[schema(required)]
    pub seed: Option<u64>,
    pub prefill: Vec<PrefillToken>,
    pub tokens: Vec<Token>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum FinishReasonName {
    Length,
    EosToken,
    StopSequence,
}

impl From<FinishReason> for FinishReasonName {
    fn from(reason: FinishReason) -> Self {
        match reason {
            FinishReason::Length => Self::Length,
            FinishReason::Eos => Self::EosToken,
            FinishReason::StopSequence => Self::StopSequence,
        }
    }
}

#[derive(Serialize, ToSchema)]
pub struct PrefillToken {
    pub id: u32,
    pub text: String,
    /// Null for the first token, which nothing predicts.
    #[schema(required)]
    pub logprob: Option<f32>,
}

impl From<PromptToken> for PrefillToken {
    fn from(token: PromptToken) -> Self {
        Self { id: token.id, text: token.text, logprob: token.logprob }
    }
}

#[derive(Serialize, ToSchema)]
pub struct Token {
    pub id: u32,
    /// What this token adds to the text. The concatenation over the tokens that are not special is the text,
    /// without the replacement of a character that a special token cut off.
    pub text: String,
    pub logprob: f32,
    pub special: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alternative_tokens: Option<Vec<AlternativeToken>>,
    pub skipped: bool,
}

#[derive(Serialize, ToSchema)]
pub struct AlternativeToken {
    pub id: u32,
    pub text: String,
    pub logprob: f32,
}

impl From<&Alternative> for AlternativeToken {
    fn from(alternative: &Alternative) -> Self {
        Self { id: alternative.id, text: alternative.text.clone(), logprob: alternative.logprob }
    }
}

impl Token {
    /// A special token shows as the vocabulary writes it, and clients skip it; any other as the text it
    /// completes, so that a character of several tokens appears whole, with the last of them.
    pub fn new(token: &TokenOutput, alternatives: Option<usize>) -> Self {
        Self {
            id: token.id,
            text: if token.special { token.text.clone() } else { token.delta.clone() },
            logprob: token.logprob,
            special: token.special,
            alternative_tokens: alternatives
                .map(|count| token.alternatives.iter().take(count).map(Into::into).collect()),
            skipped: false,
        }
    }

    /// The likeliest tokens in a token's place, in TGI's shape.
    pub fn top(token: &TokenOutput, count: usize) -> Vec<Self> {
        token.alternatives.iter().take(count).map(Into::into).collect()
    }
}

impl From<&Alternative> for Token {
    fn from(alternative: &Alternative) -> Self {
        Self {
            id: alternative.id,
            text: alternative.text.clone(),
            logprob: alternative.logprob,
            special: alternative.special,
            alternative_tokens: None,
            skipped: false,
        }
    }
}

/// One SSE event of a native stream.
#[derive(Serialize, ToSchema)]
pub struct StreamResponse {
    pub token: Token,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_tokens: Option<Vec<Token>>,
    /// In the last event only.
    #[schema(required)]
    pub generated_text: Option<String>,
    /// In the last event only, when asked for.
    #[schema(required)]
    pub details: Option<StreamDetails>,
}

#[derive(Serialize, ToSchema)]
pub struct StreamDetails {
    pub finish_reason: FinishReasonName,
    pub prompt_tokens: u32,
    pub generated_tokens: u32,
    #[schema(required)]
    pub seed: Option<u64>,
}
