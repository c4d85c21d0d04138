//! Chat: messages in, prompt text out.

mod error;
mod literal;
mod python;
mod source;
mod template;

pub use error::TemplateError;
pub use template::ChatTemplate;
