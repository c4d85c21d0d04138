//! From a dialect-free request to a stream of outputs: the one path every API goes through.

mod generation;
mod request;

pub use generation::Generation;
pub use request::{
    AdapterRef, AdapterSource, Alternative, FinishReason, GenerateRequest, GenerationInfo, Output, Params, Prompt,
    PromptToken, TokenOutput,
};

use crate::error::Error;

/// Takes requests. Cloning is cheap.
#[derive(Clone)]
pub struct Infer {}

impl Infer {
    /// Validates, tokenises, resolves the adapter and queues. Returns once the request is queued; later failures come
    /// as the stream's last item. `best_of` and `n` are several calls.
    ///
    /// Dropping the future or the [`Generation`] takes the request back, wherever it is.
    pub async fn generate(&self, _request: GenerateRequest) -> Result<Generation, Error> {
        Err(Error::NotReady)
    }
}
