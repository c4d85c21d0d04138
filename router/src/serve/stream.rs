//! Responses over HTTP/2. A client that reads its socket, and answers pings, may still take nothing of one response: its
//! window stays closed. Writes never wait then, so the task of the stream is watched instead, and ended: that resets the
//! stream, and frees what the request holds.

use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use axum::body::Bytes;
use hyper::{
    body::{Body, Frame, SizeHint},
    rt::Executor,
};
use tokio::{
    task_local,
    time::{Instant, sleep},
};

use super::activity::Open;

/// Largest piece of a response that is handed over at once; as soon as it is there, it may all wait for the window.
const PIECE: usize = 16 << 10;

task_local! {
    /// Pieces handed over since the response last had nothing to send; 0 when it is the server that is waited for.
    static HANDED: Arc<AtomicUsize>;
}

/// Runs the streams of HTTP/2, and resets those whose client takes nothing for so long.
#[derive(Clone, Copy)]
pub(super) struct Streams {
    pub(super) write_timeout: Duration,
}

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Streams {
    fn execute(&self, stream: F) {
        tokio::spawn(watched(stream, self.write_timeout));
    }
}

async fn watched(stream: impl Future<Output = ()>, write_timeout: Duration) {
    let handed = Arc::new(AtomicUsize::new(0));
    let (mut stream, mut stalled) = (pin!(stream), pin!(sleep(write_timeout)));
    let mut before = 0;
    poll_fn(|context| {
        if HANDED.sync_scope(Arc::clone(&handed), || stream.as_mut().poll(context)).is_ready() {
            return Poll::Ready(());
        }
        let now = handed.load(Relaxed);
        if now != before {
            stalled.as_mut().reset(Instant::now() + write_timeout);
            before = now;
        }
        if now == 0 { Poll::Pending } else { stalled.as_mut().poll(context) }
    })
    .await;
}

/// A response's body on its way to the connection.
pub(super) struct Response {
    inner: axum::body::Body,
    /// What is left of a frame that was too large for one piece.
    rest: Bytes,
    /// Only over HTTP/2.
    handed: Option<Arc<AtomicUsize>>,
    _open: Open,
}

impl Response {
    /// To be called in the task of the stream.
    pub(super) fn new(inner: axum::body::Body, open: Open) -> Self {
        Self { inner, rest: Bytes::new(), handed: HANDED.try_with(Arc::clone).ok(), _open: open }
    }
}

impl Body for Response {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = &mut *self;
        let Some(handed) = &this.handed else { return Pin::new(&mut this.inner).poll_frame(context) };
        if this.rest.is_empty() {
            match Pin::new(&mut this.inner).poll_frame(context) {
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => this.rest = data,
                    Err(frame) => return Poll::Ready(Some(Ok(frame))),
                },
                other => {
                    handed.store(0, Relaxed);
                    return other;
                }
            }
        }
        handed.fetch_add(1, Relaxed);
        let piece = this.rest.split_to(this.rest.len().min(PIECE));
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        // Asked for before the first frame.
        self.inner.size_hint()
    }
}
