//! Server-sent events: `data: {json}` and a blank line, and a comment every 15 s that nothing else is sent.
//!
//! This is the token path. Events are written straight into one buffer per stream, and whatever is ready when the
//! connection can take more goes out in one piece: a client that keeps up sees each token at once, and one that does
//! not costs fewer, larger writes.

use std::{
    convert::Infallible,
    ops::ControlFlow,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    body::{Body, Bytes},
    http::{HeaderMap, HeaderValue, header},
    response::Response,
};
use bytes::{BufMut, BytesMut};
use futures::{Stream, StreamExt};
use serde::Serialize;
use tokio::time::{Instant, Sleep, sleep};

use super::one_line::json;

/// Some clients take text of unnamed encoding for ISO-8859-1, whatever the standard of event streams says.
const EVENTS: &str = "text/event-stream; charset=utf-8";
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// The piece that one write takes at most, give or take an event.
const PIECE: usize = 16 << 10;

/// Turns what a stream yields into events.
pub(super) trait Encoder: Unpin + Send + 'static {
    type Item;

    /// Writes the events for an item. `Break` ends the response.
    fn item(&mut self, item: Self::Item, out: &mut BytesMut) -> ControlFlow<()>;

    /// The source has nothing more at the moment: writes what was held back for its successor.
    fn idle(&mut self, _out: &mut BytesMut) {}

    /// The source has ended without a `Break`.
    fn end(&mut self, out: &mut BytesMut);
}

/// A response that streams `source` as `encoder` words it.
pub(super) fn respond<S, E>(headers: HeaderMap, source: S, encoder: E) -> Response
where
    S: Stream<Item = E::Item> + Unpin + Send + 'static,
    E: Encoder,
{
    let body = Body::from_stream(Events {
        source,
        encoder,
        buffer: BytesMut::with_capacity(1024),
        keep_alive: Box::pin(sleep(KEEP_ALIVE)),
        last_sent: Instant::now(),
        ended: false,
    });
    let mut response = Response::new(body);
    *response.headers_mut() = headers;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(EVENTS));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

/// Writes one event.
pub(super) fn event(out: &mut BytesMut, payload: &impl Serialize) {
    raw_event(out, &[&json(payload)]);
}

/// Writes one event whose payload is JSON already, in several parts.
pub(super) fn raw_event(out: &mut BytesMut, payload: &[&[u8]]) {
    out.put_slice(b"data: ");
    for part in payload {
        out.put_slice(part);
    }
    out.put_slice(b"\n\n");
}

struct Events<S, E> {
    source: S,
    encoder: E,
    buffer: BytesMut,
    /// Re-armed only when it fires: touching the timer for each token would cost more than the token.
    keep_alive: Pin<Box<Sleep>>,
    last_sent: Instant,
    ended: bool,
}

impl<S, E> Stream for Events<S, E>
where
    S: Stream<Item = E::Item> + Unpin,
    E: Encoder,
{
    type Item = Result<Bytes, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        while !this.ended && this.buffer.len() < PIECE {
            match this.source.poll_next_unpin(context) {
                Poll::Ready(Some(item)) => this.ended = this.encoder.item(item, &mut this.buffer).is_break(),
                Poll::Ready(None) => {
                    this.encoder.end(&mut this.buffer);
                    this.ended = true;
                }
                Poll::Pending => {
                    this.encoder.idle(&mut this.buffer);
                    if this.buffer.is_empty() && !this.keep_alive_due(context) {
                        return Poll::Pending;
                    }
                    break;
                }
            }
        }
        if this.buffer.is_empty() {
            return Poll::Ready(None);
        }
        this.last_sent = Instant::now();
        Poll::Ready(Some(Ok(this.buffer.split().freeze())))
    }
}

impl<S, E> Events<S, E> {
    /// Writes the comment if nothing was sent for long enough; if not, arranges to be polled when it would be.
    fn keep_alive_due(&mut self, context: &mut Context<'_>) -> bool {
        while self.keep_alive.as_mut().poll(context).is_ready() {
            let now = Instant::now();
            let due = self.last_sent + KEEP_ALIVE;
            if now >= due {
                self.buffer.put_slice(b":\n\n");
                self.keep_alive.as_mut().reset(now + KEEP_ALIVE);
                return true;
            }
            self.keep_alive.as_mut().reset(due);
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use futures::stream;

    use super::*;

    struct Words;

    impl Encoder for Words {
        type Item = &'static str;

        fn item(&mut self, item: &'static str, out: &mut BytesMut) -> ControlFlow<()> {
            event(out, &item);
            if item == "stop" { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        }

        fn end(&mut self, out: &mut BytesMut) {
            raw_event(out, &[b"[DONE]"]);
        }
    }

    async fn pieces(source: impl Stream<Item = &'static str> + Unpin + Send + 'static) -> Vec<String> {
        let mut body = respond(HeaderMap::new(), source, Words).into_body().into_data_stream();
        let mut pieces = Vec::new();
        while let Some(piece) = body.next().await {
            pieces.push(String::from_utf8(piece.unwrap().to_vec()).unwrap());
        }
        pieces
    }

    #[tokio::test]
    async fn what_is_ready_goes_out_in_one_piece() {
        assert_eq!(
            pieces(stream::iter(["a", "é\"\n"])).await,
            ["data: \"a\"\n\ndata: \"é\\\"\\n\"\n\ndata: [DONE]\n\n"]
        );
        assert_eq!(pieces(stream::iter(["stop", "never"])).await, ["data: \"stop\"\n\n"]);
        let long = stream::iter(std::iter::repeat_n("0123456789", 4000));
        assert!(pieces(long).await.len() > 3);
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_stream_is_kept_alive() {
        let source = stream::unfold(0, |n| async move {
            tokio::time::sleep(Duration::from_secs([10, 40][n % 2])).await;
            (n < 2).then_some(("a", n + 1))
        });
        let (event, comment) = ("data: \"a\"\n\n", ":\n\n");
        assert_eq!(pieces(Box::pin(source)).await, [event, comment, comment, event, "data: [DONE]\n\n"]);
    }
}
