//! What runs next, decided by state machines without I/O, threads or clocks.
//!
//! The owner (the router's driver task) calls [`Engine::submit`] and [`Engine::cancel`] as requests come and go,
//! [`Engine::plan`] whenever a step may be sent, and [`Engine::apply`] with each result. Time is an argument.
//!
//! [`residency::HostTier`] is a machine of its own: it decides what is fetched and staged before a request is submitted.

mod apply;
mod config;
mod engine;
mod event;
mod fairness;
mod flight;
mod kv;
mod plan;
mod queue;
mod request;
pub mod residency;
mod sequence;
mod stats;

pub use apply::UnexpectedResult;
pub use config::EngineConfig;
pub use engine::Engine;
pub use event::{Alternative, Event, FailureReason, FinishReason, PromptToken};
pub use request::{AdapterId, Priority, Request, RequestId, SubmitError, TenantId, Time};
pub use stats::Stats;
