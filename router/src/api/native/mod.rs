//! The routes of LoRAX and text-generation-inference.

mod convert;
mod generate;
mod stream;
mod types;

pub use generate::{__path_compat_generate, __path_generate, __path_generate_stream};
pub use generate::{compat_generate, generate, generate_stream};
pub use types::*;
