//! The dialects: requests of each become one `GenerateRequest`, and what comes back is told in the dialect's
//! words.

pub mod extract;
pub mod health;
pub mod info;
pub mod metrics;
pub mod native;
pub mod openai;
pub mod tokenize;

mod adapter;
mod collect;
mod error;
mod headers;
mod one_line;
mod refuse;
mod request_id;
mod sequences;
mod sse;
mod wire;

pub use error::{Dialect, ErrorResponse, OpenAiError, OpenAiErrorResponse};
pub use request_id::RequestId;
