//! The shards as one: they start together, and when one dies they all go.
//!
//! Ranks of one group share collectives, so a rank alone is of no use: half a group would hang in
//! its next all-reduce.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::process::{Process, ProcessSpec, describe};

/// How one rank ended, and with it the group.
#[derive(Debug)]
pub(super) struct Death {
    pub(super) what: String,
    /// The process ended by itself with an error code, rather than by a signal.
    pub(super) own_choice: bool,
    /// How long the group had run.
    pub(super) ran: Duration,
}

#[derive(Debug)]
pub(super) struct ShardGroup {
    processes: Vec<Process>,
    started: Instant,
}

impl ShardGroup {
    /// Starts every rank, or none. Sockets that an earlier group left are removed first.
    pub(super) fn start(specs: &[ProcessSpec], sockets: &[std::path::PathBuf]) -> anyhow::Result<Self> {
        for socket in sockets {
            match std::fs::remove_file(socket) {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => anyhow::bail!("cannot remove the stale socket {}: {error}", socket.display()),
            }
        }
        let processes = specs.iter().map(Process::spawn).collect::<anyhow::Result<_>>()?;
        Ok(Self { processes, started: Instant::now() })
    }

    /// No process at all: what is left between a death and the restart.
    pub(super) fn empty() -> Self {
        Self { processes: Vec::new(), started: Instant::now() }
    }

    /// Waits until any rank ends; for ever if there is none. Cancel safe.
    pub(super) async fn death(&mut self) -> Death {
        let started = self.started;
        poll_fn(|context| {
            for process in &mut self.processes {
                // `Child::wait` keeps its state in the child, so a fresh future per poll loses nothing.
                let ended = pin!(process.wait()).poll(context);
                if let Poll::Ready(status) = ended {
                    return Poll::Ready(Death {
                        own_choice: status.as_ref().is_ok_and(|status| status.code().is_some()),
                        what: format!("{} ended ({})", process.role, describe(status)),
                        ran: started.elapsed(),
                    });
                }
            }
            Poll::Pending
        })
        .await
    }

    /// Ends every rank: asks first and kills what is left after `grace`.
    pub(super) async fn stop(&mut self, grace: Duration) {
        for process in &self.processes {
            process.signal(Signal::SIGTERM);
        }
        let deadline = Instant::now() + grace;
        for process in &mut self.processes {
            process.stop(deadline.saturating_duration_since(Instant::now())).await;
        }
        self.processes.clear();
    }

    /// Kills every rank at once and reaps them.
    pub(super) async fn kill(&mut self) {
        for process in &self.processes {
            process.kill();
        }
        self.stop(Duration::from_secs(1)).await;
    }
}
