//! Chat: messages in, prompt text out.

mod python;
mod template;

pub use template::{ChatTemplate, TemplateError};
