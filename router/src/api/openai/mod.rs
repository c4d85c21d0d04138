//! The routes of OpenAI's API, with the extensions that LoRAX and vLLM clients send.

pub mod chat;
pub mod completions;
pub mod models;

mod answer;
mod batch;
mod body;
mod envelope;
mod params;
mod reply;
mod stream;

pub use params::{StopField, StreamOptions};
pub use reply::{PromptTokensDetails, Usage};
