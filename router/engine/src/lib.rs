//! What runs next, decided by state machines without I/O, threads or clocks.
//!
//! The owner (the router's driver task) calls [`Engine::submit`] and [`Engine::cancel`] as requests come and go,
//! [`Engine::plan`] whenever a step may be sent, and [`Engine::apply`] with each result. Time is an argument.

mod config;
mod engine;
mod event;
mod request;
pub mod residency;

pub use config::EngineConfig;
pub use engine::{Engine, Stats, UnexpectedResult};
pub use event::{Alternative, Event, FailureReason, FinishReason, PromptToken};
pub use request::{AdapterId, Priority, Request, RequestId, SubmitError, TenantId, Time};
