//! Response bodies that hold something until they end.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use axum::{body::Bytes, response::Response};
use hyper::body::{Body, Frame, SizeHint};

/// A body that keeps `guard` alive until its last byte is taken, or nobody wants it any more.
#[derive(Debug)]
pub(super) struct Guarded<G> {
    inner: axum::body::Body,
    guard: G,
}

/// Told of each piece of a body that is sent.
pub(super) trait Guard: Unpin + Send + 'static {
    fn sent(&mut self, _bytes: usize) {}
    fn ended(&mut self) {}
}

impl Guard for tokio::sync::OwnedSemaphorePermit {}

impl<G: Guard> Guarded<G> {
    pub(super) fn wrap(response: Response, mut guard: G) -> Response {
        if response.body().is_end_stream() {
            guard.ended();
        }
        response.map(|inner| axum::body::Body::new(Self { inner, guard }))
    }
}

impl<G: Guard> Body for Guarded<G> {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = &mut *self;
        let polled = Pin::new(&mut this.inner).poll_frame(context);
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                this.guard.sent(frame.data_ref().map_or(0, Bytes::len));
                // A body of known length is not polled again after its last frame.
                if this.inner.is_end_stream() {
                    this.guard.ended();
                }
            }
            Poll::Ready(None) => this.guard.ended(),
            _ => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
