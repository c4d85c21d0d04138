//! The shapes of `/v1/chat/completions` on the wire.

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::api::{
    openai::{Usage, body::body, reply::UsageField},
    wire::objects,
};

body! {
    pub struct ChatBody {
        #[serde(deserialize_with = "objects")]
        pub messages: Vec<Message>,
        /// All that the context has left, if neither this nor `max_tokens` is given.
        #[serde(default)]
        #[schema(minimum = 1)]
        pub max_completion_tokens: Option<u32>,
        #[serde(default)]
        #[schema(minimum = 1)]
        pub max_tokens: Option<u32>,
        #[serde(default)]
        pub logprobs: Option<bool>,
        /// Alternatives with each token; needs `logprobs`.
        #[serde(default)]
        pub top_logprobs: Option<u32>,
        /// Refused unless empty.
        #[serde(default)]
        #[schema(value_type = Option<Vec<Object>>)]
        pub tools: Option<Vec<Value>>,
        /// Refused unless `none` or `auto`.
        #[serde(default)]
        #[schema(value_type = Option<String>, pattern = "^(none|auto)$")]
        pub tool_choice: Option<Value>,
        /// Refused unless empty.
        #[serde(default)]
        #[schema(value_type = Option<Vec<Object>>)]
        pub functions: Option<Vec<Value>>,
        /// Refused unless `text` only.
        #[serde(default)]
        pub modalities: Option<Vec<String>>,
        /// Refused: the template comes with the model.
        #[serde(default)]
        pub chat_template: Option<String>,
        /// Refused unless empty.
        #[serde(default)]
        #[schema(value_type = Option<Object>)]
        pub chat_template_kwargs: Option<IndexMap<String, Value>>,
        /// LoRAX's; refused.
        #[serde(default)]
        pub tool_prompt: Option<String>,
        /// LoRAX's; refused.
        #[serde(default)]
        pub guideline: Option<String>,
        /// OpenAI's older `tool_choice`. Refused unless `none` or `auto`.
        #[serde(default)]
        #[schema(value_type = Option<String>, pattern = "^(none|auto)$")]
        pub function_call: Option<Value>,
        /// vLLM's: refused when true.
        #[serde(default)]
        pub continue_final_message: Option<bool>,
        /// vLLM's: refused when true.
        #[serde(default)]
        pub add_special_tokens: Option<bool>,
        /// vLLM's: refused when true.
        #[serde(default)]
        pub echo: Option<bool>,
        /// vLLM's: refused unless empty.
        #[serde(default)]
        #[schema(value_type = Option<Vec<Object>>)]
        pub documents: Option<Vec<Value>>,
        /// Extension: end the prompt where the assistant's turn begins. True if not given.
        #[serde(default)]
        pub add_generation_prompt: Option<bool>,
    }
}

#[derive(Debug, Deserialize, ToSchema)]
pub struct Message {
    #[schema(example = "user")]
    pub role: String,
    #[serde(default)]
    pub content: Option<Content>,
    #[serde(default)]
    pub name: Option<String>,
    /// Of an assistant's message.
    #[serde(default)]
    #[schema(value_type = Option<Vec<Object>>)]
    pub tool_calls: Option<Vec<Map<String, Value>>>,
    /// Of a tool's message.
    #[serde(default)]
    pub tool_call_id: Option<String>,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(untagged, expecting = "expected a string or a list of content parts")]
pub enum Content {
    Text(String),
    #[serde(deserialize_with = "objects")]
    Parts(Vec<ContentPart>),
}

#[derive(Debug, Deserialize, ToSchema)]
pub struct ContentPart {
    /// Only `text` is supported.
    #[serde(rename = "type")]
    #[schema(example = "text")]
    pub kind: String,
    #[serde(default)]
    pub text: Option<String>,
}

#[derive(Serialize, ToSchema)]
pub struct ChatCompletion {
    pub id: String,
    #[schema(value_type = String, example = "chat.completion")]
    pub object: &'static str,
    pub created: u64,
    pub model: String,
    #[schema(value_type = String)]
    pub system_fingerprint: &'static str,
    pub choices: Vec<ChatChoice>,
    pub usage: Usage,
}

#[derive(Serialize, ToSchema)]
pub struct ChatChoice {
    pub index: usize,
    pub message: AssistantMessage,
    #[schema(required)]
    pub logprobs: Option<ChatLogprobs>,
    /// `stop` or `length`.
    #[schema(value_type = String)]
    pub finish_reason: &'static str,
}

#[derive(Serialize, ToSchema)]
pub struct AssistantMessage {
    #[schema(value_type = String, example = "assistant")]
    pub role: &'static str,
    #[schema(required)]
    pub content: Option<String>,
    #[schema(required)]
    pub refusal: Option<String>,
}

#[derive(Debug, Default, PartialEq, Serialize, ToSchema)]
pub struct ChatLogprobs {
    pub content: Vec<ChatTokenLogprob>,
    #[schema(required)]
    pub refusal: Option<Vec<ChatTokenLogprob>>,
}

#[derive(Debug, PartialEq, Serialize, ToSchema)]
pub struct ChatTokenLogprob {
    pub token: String,
    pub logprob: f32,
    /// Null when the token is a part of a character.
    #[schema(required)]
    pub bytes: Option<Vec<u8>>,
    pub top_logprobs: Vec<ChatTopLogprob>,
}

#[derive(Debug, PartialEq, Serialize, ToSchema)]
pub struct ChatTopLogprob {
    pub token: String,
    pub logprob: f32,
    #[schema(required)]
    pub bytes: Option<Vec<u8>>,
}

/// One event of a stream.
#[derive(Serialize, ToSchema)]
pub struct ChatChunk<'a> {
    pub id: &'a str,
    #[schema(value_type = String, example = "chat.completion.chunk")]
    pub object: &'static str,
    pub created: u64,
    pub model: &'a str,
    #[schema(value_type = String)]
    pub system_fingerprint: &'static str,
    #[schema(value_type = Vec<ChatChunkChoice>)]
    pub choices: &'a [ChatChunkChoice<'a>],
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Usage>)]
    pub usage: UsageField,
}

#[derive(Serialize, ToSchema)]
pub struct ChatChunkChoice<'a> {
    pub index: usize,
    pub delta: Delta<'a>,
    #[schema(required)]
    pub logprobs: Option<ChatLogprobs>,
    #[schema(required, value_type = Option<String>)]
    pub finish_reason: Option<&'static str>,
}

#[derive(Default, Serialize, ToSchema)]
pub struct Delta<'a> {
    /// In the first chunk only.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<&'a str>,
}
