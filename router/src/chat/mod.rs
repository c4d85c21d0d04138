//! Chat: messages in, prompt text out.

mod literal;
mod python;
mod source;
mod template;

pub use template::{ChatTemplate, TemplateError};
