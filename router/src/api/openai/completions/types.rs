//! The shapes of `/v1/completions` on the wire.

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::api::openai::{Usage, body::body, reply::UsageField};

body! {
    pub struct CompletionBody {
        pub prompt: PromptField,
        /// 16 if not given. 0 with `echo` answers the prompt alone.
        #[serde(default)]
        #[schema(minimum = 0)]
        pub max_tokens: Option<u32>,
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
        /// Extension: put the tokens around the prompt that the model expects, such as the one for its beginning. True if
        /// not given.
        #[serde(default)]
        pub add_special_tokens: Option<bool>,
        /// Refused unless empty.
        #[serde(default)]
        pub suffix: Option<String>,
    }
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
