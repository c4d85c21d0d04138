//! One request's outputs as they come.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use futures::Stream;

use super::{GenerationInfo, Output};
use crate::error::Error;

/// A queued or running request. Dropping it cancels the request and gives back all that it holds.
pub struct Generation {
    /// What was known when the request was queued.
    pub info: GenerationInfo,
}

impl Stream for Generation {
    /// `Output::Finished` or an error is the last item.
    type Item = Result<Output, Error>;

    fn poll_next(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Poll::Ready(None)
    }
}
