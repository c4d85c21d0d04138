//! The id that a request goes by in logs.

use std::sync::Arc;

/// The id of the HTTP request, in its extensions.
#[derive(Clone, Debug)]
pub struct RequestId(pub Arc<str>);
