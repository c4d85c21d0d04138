//! Why a chat template is of no use.

use std::io;

use crate::error::Error;

/// Why a chat template cannot be loaded, or a chat not rendered.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    #[error("cannot read {file}")]
    Read { file: &'static str, source: io::Error },
    #[error("{file} is not JSON")]
    Json { file: &'static str, source: serde_json::Error },
    #[error("the chat template does not compile: {0}")]
    Compile(String),
    /// The text is for the user: the message that the template raised, or what went wrong in it.
    #[error("{0}")]
    Render(String),
}

impl From<TemplateError> for Error {
    fn from(error: TemplateError) -> Self {
        Self::Template(error.to_string())
    }
}
