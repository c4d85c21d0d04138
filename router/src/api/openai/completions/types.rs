//! The shapes of `/v1/completions` on the wire.

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::api::{
    openai::{StopField, StreamOptions, Usage, reply::UsageField},
    wire::finite,
};

#[derive(Deserialize, ToSchema)]
pub struct CompletionBody {
    /// The base model, or an adapter.
    pub model: String,
    pub prompt: PromptField,
    /// 16 if not given. 0 with `echo` answers the prompt alone.
    #[serde(default)]
    #[schema(minimum = 0)]
    pub max_tokens: Option<u32>,
    /// 1 if not given; 0 is greedy.
    #[serde(default, deserialize_with = "finite")]
    #[schema(minimum = 0.0)]
    pub temperature: Option<f32>,
    #[serde(default, deserialize_with = "finite")]
    #[schema(exclusive_minimum = 0.0, maximum = 1.0)]
    pub top_p: Option<f32>,
    #[serde(default, deserialize_with = "finite")]
    #[schema(minimum = -2.0, maximum = 2.0)]
    pub frequency_penalty: Option<f32>,
    #[serde(default, deserialize_with = "finite")]
    #[schema(minimum = -2.0, maximum = 2.0)]
    pub presence_penalty: Option<f32>,
    /// Added to the scores of tokens, by their ids.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    pub logit_bias: Option<IndexMap<String, f32>>,
    #[serde(default)]
    pub seed: Option<u64>,
    #[serde(default)]
    pub stop: Option<StopField>,
    /// Choices for each prompt.
    #[serde(default)]
    #[schema(minimum = 1)]
    pub n: Option<u32>,
    /// Sequences generated for each prompt, of which the likeliest `n` are answered.
    #[serde(default)]
    #[schema(minimum = 1)]
    pub best_of: Option<u32>,
    /// Log-probabilities of the tokens, with this many alternatives each.
    #[serde(default)]
    pub logprobs: Option<u32>,
    /// Put the prompt before the completion.
    #[serde(default)]
    pub echo: Option<bool>,
    #[serde(default)]
    pub stream: Option<bool>,
    #[serde(default)]
    pub stream_options: Option<StreamOptions>,
    /// Refused unless empty.
    #[serde(default)]
    pub suffix: Option<String>,
    /// Refused unless of type `text`.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    pub response_format: Option<serde_json::Value>,
    /// Extension: 0 and -1 are off.
    #[serde(default)]
    pub top_k: Option<i32>,
    /// Extension.
    #[serde(default, deserialize_with = "finite")]
    #[schema(exclusive_minimum = 0.0)]
    pub repetition_penalty: Option<f32>,
    /// Extension: do not end at the model's end-of-sequence tokens.
    #[serde(default)]
    pub ignore_eos: Option<bool>,
    /// Another name of `ignore_eos`.
    #[serde(default)]
    pub ignore_eos_token: Option<bool>,
    /// Extension: the adapter, when `model` is the base model.
    #[serde(default)]
    pub adapter_id: Option<String>,
    /// Extension.
    #[serde(default)]
    pub adapter_source: Option<String>,
    /// Refused: merging adapters is not supported.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    pub merged_adapters: Option<serde_json::Value>,
}

#[derive(Deserialize, ToSchema)]
#[serde(
    untagged,
    expecting = "expected a string, a list of strings, a list of token ids, or a list of such lists"
)]
pub enum PromptField {
    Text(String),
    Tokens(Vec<u32>),
    Texts(Vec<String>),
    TokenLists(Vec<Vec<u32>>),
}

#[derive(Serialize, ToSchema)]
pub struct Completion {
    pub id: String,
    #[schema(value_type = String, example = "text_completion")]
    pub object: &'static str,
    pub created: u64,
    pub model: String,
    #[schema(value_type = String)]
    pub system_fingerprint: &'static str,
    pub choices: Vec<CompletionChoice>,
    pub usage: Usage,
}

#[derive(Serialize, ToSchema)]
pub struct CompletionChoice {
    pub index: usize,
    pub text: String,
    #[schema(required)]
    pub logprobs: Option<CompletionLogprobs>,
    /// `stop` or `length`.
    #[schema(value_type = String)]
    pub finish_reason: &'static str,
}

/// Lists of one length, an entry for each token.
#[derive(Debug, Default, PartialEq, Serialize, ToSchema)]
pub struct CompletionLogprobs {
    pub tokens: Vec<String>,
    /// Null for the first token of a prompt.
    pub token_logprobs: Vec<Option<f32>>,
    /// The likeliest tokens in each place, and the chosen one.
    #[schema(value_type = Vec<Option<Object>>)]
    pub top_logprobs: Vec<Option<IndexMap<String, f32>>>,
    /// Where each token begins, in characters of `text`.
    pub text_offset: Vec<usize>,
}

/// One event of a stream.
#[derive(Serialize, ToSchema)]
pub struct CompletionChunk<'a> {
    pub id: &'a str,
    #[schema(value_type = String, example = "text_completion")]
    pub object: &'static str,
    pub created: u64,
    pub model: &'a str,
    #[schema(value_type = String)]
    pub system_fingerprint: &'static str,
    #[schema(value_type = Vec<CompletionChunkChoice>)]
    pub choices: &'a [CompletionChunkChoice<'a>],
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Usage>)]
    pub usage: UsageField,
}

#[derive(Serialize, ToSchema)]
pub struct CompletionChunkChoice<'a> {
    pub index: usize,
    pub text: &'a str,
    #[schema(required)]
    pub logprobs: Option<CompletionLogprobs>,
    #[schema(required, value_type = Option<String>)]
    pub finish_reason: Option<&'static str>,
}
