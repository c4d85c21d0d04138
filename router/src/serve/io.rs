//! A connection that gives up on a client that sends nothing, or takes nothing.

use std::{
    future::Future,
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep},
};

/// Bytes from which the protocol is told: the length of HTTP/2's preface. From then on the protocol has its own timeouts.
const GREETING: usize = 24;

/// Wraps a stream; its calls fail with `TimedOut` once the client has been idle for too long where it must not be.
pub(super) struct Guarded<S> {
    stream: S,
    write_timeout: Duration,
    /// Runs while a write waits for the client to take something.
    stalled: Option<Pin<Box<Sleep>>>,
    /// Runs until the client has greeted.
    silent: Option<Pin<Box<Sleep>>>,
    greeted: usize,
}

impl<S> Guarded<S> {
    pub(super) fn new(stream: S, greeting_timeout: Duration, write_timeout: Duration) -> Self {
        Self {
            stream,
            write_timeout,
            stalled: None,
            silent: Some(Box::pin(sleep(greeting_timeout))),
            greeted: 0,
        }
    }

    /// The outcome of a write, or a timeout if it has been pending for too long.
    fn watch<T>(&mut self, polled: Poll<io::Result<T>>, context: &mut Context<'_>) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.stalled = None;
            // Whoever is answered has greeted.
            self.silent = None;
            return polled;
        }
        let timeout = self.write_timeout;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(timeout)));
        ready!(stalled.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buffer.filled().len();
        let polled = Pin::new(&mut this.stream).poll_read(context, buffer);
        let Some(silent) = &mut this.silent else { return polled };
        this.greeted += buffer.filled().len() - before;
        if this.greeted >= GREETING {
            this.silent = None;
            return polled;
        }
        if polled.is_pending() && silent.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.watch(polled, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.watch(polled, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    const GREETING_TIMEOUT: Duration = Duration::from_secs(15);
    const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_is_cut() {
        let (near, mut far) = duplex(8);
        let mut near = Guarded::new(near, GREETING_TIMEOUT, WRITE_TIMEOUT);
        near.write_all(b"12345678").await.unwrap();
        // One that takes a little now and then is not.
        let taking = async {
            tokio::time::sleep(WRITE_TIMEOUT / 2).await;
            far.read_exact(&mut [0; 4]).await.unwrap();
        };
        let (written, ()) = tokio::join!(near.write_all(b"abcd"), taking);
        written.unwrap();
        let error = near.write_all(b"efgh").await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_says_nothing_is_cut() {
        let (near, mut far) = duplex(64);
        let mut near = Guarded::new(near, GREETING_TIMEOUT, WRITE_TIMEOUT);
        far.write_all(b"GET").await.unwrap();
        near.read_exact(&mut [0; 3]).await.unwrap();
        let error = near.read_exact(&mut [0; 1]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_has_greeted_may_wait() {
        let (near, mut far) = duplex(64);
        let mut near = Guarded::new(near, GREETING_TIMEOUT, WRITE_TIMEOUT);
        far.write_all(&[b'x'; GREETING]).await.unwrap();
        near.read_exact(&mut [0; GREETING]).await.unwrap();
        let later = async {
            tokio::time::sleep(GREETING_TIMEOUT * 4).await;
            far.write_all(b"y").await.unwrap();
        };
        let (read, ()) = tokio::join!(near.read_u8(), later);
        assert_eq!(read.unwrap(), b'y');
    }
}
