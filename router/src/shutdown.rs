//! From the first signal to the end of the process.

use std::{io, time::Duration};

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{config::Http, driver::Driver, error::Error, infer::Infer, readiness::Readiness};

/// For terminal errors to reach their clients, once the time to drain is over.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// In which another SIGTERM is the first one again: a supervisor that signals all processes of a service tells this one,
/// and the launcher does too.
const SAME_SIGNAL: Duration = Duration::from_secs(2);

/// SIGTERM and SIGINT.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

/// Which of them came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// From a supervisor, behind a balancer that takes a moment to look elsewhere.
    Terminate,
    /// From a person at a terminal.
    Interrupt,
}

impl Signals {
    pub fn listen() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    pub async fn next(&mut self) -> Stop {
        tokio::select! {
            _ = self.terminate.recv() => Stop::Terminate,
            _ = self.interrupt.recv() => Stop::Interrupt,
        }
    }
}

/// How a drain ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drained {
    /// Every request finished.
    Finished,
    /// Those that had not finished in time were told so.
    TimedOut,
    /// A second signal came.
    Cut,
}

/// What a drain acts on.
pub struct Drain {
    pub http: Http,
    pub readiness: watch::Sender<Readiness>,
    pub infer: Infer,
    pub driver: Driver,
    /// Cancelled when no more connections are taken.
    pub stopping: CancellationToken,
}

impl Drain {
    /// Readiness falls at once; new requests are still taken until those who send them had time to notice;
    /// then those in flight finish, or are ended when `drain_timeout` has passed since the signal. `served`
    /// resolves when every connection has ended.
    pub async fn run(&self, stop: Stop, signals: &mut Signals, served: impl Future<Output = ()>) -> Drained {
        tracing::info!(timeout = ?self.http.drain_timeout, "draining");
        self.readiness.send_replace(Readiness::Draining);
        tokio::pin!(served);
        let finishing = async {
            if stop == Stop::Terminate {
                tokio::time::sleep(self.http.lame_duck_timeout).await;
            }
            self.infer.close();
            self.stopping.cancel();
            served.as_mut().await;
        };
        let first = Instant::now();
        let again =
            async { while signals.next().await == Stop::Terminate && first.elapsed() < SAME_SIGNAL {} };
        let drained = tokio::select! {
            finished = timeout(self.http.drain_timeout, finishing) => {
                if finished.is_ok() { Drained::Finished } else { Drained::TimedOut }
            }
            () = again => Drained::Cut,
        };
        if drained != Drained::Finished {
            self.infer.close();
            self.stopping.cancel();
            let told = async {
                self.driver.fail_all(Error::Draining).await;
                served.await;
            };
            let last_words = if drained == Drained::Cut { LAST_WORDS / 10 } else { LAST_WORDS };
            timeout(last_words, told).await.ok();
        }
        drained
    }
}
