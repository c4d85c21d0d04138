//! HTTP in, steps out.

pub mod chat;
pub mod error;
pub mod infer;
