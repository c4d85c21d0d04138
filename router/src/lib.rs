//! HTTP in, steps out.

pub mod adapters;
pub mod app;
pub mod chat;
pub mod config;
pub mod error;
pub mod infer;
pub mod telemetry;
pub mod validate;
