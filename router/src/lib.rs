//! HTTP in, steps out.

pub mod adapters;
pub mod api;
pub mod app;
pub mod chat;
pub mod config;
pub mod driver;
pub mod error;
pub mod infer;
pub mod middleware;
pub mod routes;
pub mod shard;
pub mod telemetry;
pub mod validate;
