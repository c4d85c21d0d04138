//! What every request passes through, whichever route it is for. `routes` says in which order.

mod access_log;
mod body;
mod concurrency;
mod cors;
mod errors;
mod header_size;
mod request_id;
mod unread;

pub use access_log::access_log;
pub use concurrency::{Places, limit_concurrency};
pub use cors::cors;
pub use errors::{catch_panic, render_errors};
pub use header_size::limit_headers;
pub use request_id::request_id;
pub use unread::refuse;
