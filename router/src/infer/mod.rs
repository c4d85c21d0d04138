//! From a dialect-free request to a stream of outputs: the one path every API goes through.

mod request;

pub use request::{
    AdapterRef, AdapterSource, Alternative, FinishReason, GenerateRequest, GenerationInfo, Output, Params, Prompt, PromptToken,
    TokenOutput,
};
