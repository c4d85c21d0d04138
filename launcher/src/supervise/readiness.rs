//! Asks the router whether it can take traffic, and says so once it can.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Interval, MissedTickBehavior, interval, timeout};

const PROBE_EVERY: Duration = Duration::from_millis(200);
const PROBE_DEADLINE: Duration = Duration::from_secs(2);
const REPORT_EVERY: Duration = Duration::from_secs(10);

/// Whether the server is ready, from loading to ready and back when the shards are lost.
#[derive(Debug)]
pub(super) struct Readiness {
    /// Of the router, if it is on this machine.
    address: Option<SocketAddr>,
    ticks: Interval,
    ready: bool,
    ever: bool,
    /// Of the present state.
    since: Instant,
    reported: Instant,
}

impl Readiness {
    pub(super) fn new(address: Option<SocketAddr>) -> Self {
        let mut ticks = interval(PROBE_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { address, ticks, ready: false, ever: false, since: Instant::now(), reported: Instant::now() }
    }

    /// Whether the server has been ready at any time.
    pub(super) fn ever(&self) -> bool {
        self.ever
    }

    /// The shards, which had run for so long, are gone: wait for readiness anew. Returns for how long they served; where
    /// the router is on another machine, that is as long as they ran.
    pub(super) fn lost(&mut self, ran: Duration) -> Duration {
        let served = match self.address {
            Some(_) if !self.ready => Duration::ZERO,
            Some(_) => self.since.elapsed(),
            None => ran,
        };
        self.ready = false;
        self.since = Instant::now();
        self.reported = self.since;
        served
    }

    /// Returns when the server has become ready, with its address and the time that took; never while it is
    /// ready, or its router is on another machine. Cancel safe.
    pub(super) async fn reached(&mut self) -> (SocketAddr, Duration) {
        let address = match self.address {
            Some(address) if !self.ready => address,
            _ => std::future::pending().await,
        };
        loop {
            self.ticks.tick().await;
            if is_ready(address).await {
                self.ready = true;
                self.ever = true;
                let took = self.since.elapsed();
                self.since = Instant::now();
                return (address, took);
            }
            if self.reported.elapsed() >= REPORT_EVERY {
                self.reported = Instant::now();
                tracing::info!("still loading the model ({} s)", self.since.elapsed().as_secs());
            }
        }
    }
}

/// One `GET /health`: true on 200 in time.
async fn is_ready(address: SocketAddr) -> bool {
    let probe = async {
        let mut stream = TcpStream::connect(address).await?;
        let request = format!("GET /health HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut status_line = [0_u8; 12];
        stream.read_exact(&mut status_line).await?;
        Ok::<_, std::io::Error>(status_line == *b"HTTP/1.1 200")
    };
    matches!(timeout(PROBE_DEADLINE, probe).await, Ok(Ok(true)))
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    async fn answering(reply: &'static str) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 1024];
            let _ = stream.read(&mut request).await;
            let _ = stream.write_all(reply.as_bytes()).await;
        });
        address
    }

    #[tokio::test]
    async fn only_time_that_was_served_counts() {
        let ran = Duration::from_secs(300);
        let mut readiness =
            Readiness::new(Some(answering("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await));
        assert_eq!(readiness.lost(ran), Duration::ZERO, "it was loading all the time");
        readiness.reached().await;
        assert!(readiness.ever() && readiness.lost(ran) < ran);
        assert_eq!(readiness.lost(ran), Duration::ZERO);
        assert_eq!(Readiness::new(None).lost(ran), ran, "nobody here can tell");
    }

    #[tokio::test]
    async fn only_200_is_ready() {
        assert!(is_ready(answering("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await).await);
        assert!(!is_ready(answering("HTTP/1.1 503 Service Unavailable\r\n\r\n").await).await);
        assert!(!is_ready(answering("HT").await).await);
        assert!(!is_ready("127.0.0.1:1".parse().unwrap()).await);
    }
}
