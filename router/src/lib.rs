//! HTTP in, steps out.

pub mod error;
pub mod infer;
