//! The shards as one: they start together, and when one dies they all go.
//!
//! Ranks of one group share collectives, so a rank alone is of no use: half a group would hang in
//! its next all-reduce.

use std::future::poll_fn;
use std::io;
use std::net::TcpListener;
use std::pin::pin;
use std::process::ExitStatus;
use std::task::Poll;
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::sys::signal::Signal;

use super::Plan;
use super::process::{Process, describe};
use crate::ranks::MASTER_PORT;

/// With which a shard says that its settings or its model cannot be used (`EX_USAGE` of sysexits).
const REFUSED: i32 = 64;

/// With which a shard says that it lacks the other ranks, and has not failed itself (`EX_TEMPFAIL`).
const ALONE: i32 = 75;

/// How one rank ended, and with it the group.
#[derive(Debug)]
pub(super) struct Death {
    /// Which of this machine's.
    index: usize,
    status: io::Result<ExitStatus>,
    /// How long the group had run.
    pub(super) ran: Duration,
}

impl Death {
    /// The process ended by itself, rather than by a signal.
    pub(super) fn own_choice(&self) -> bool {
        code(&self.status).is_some()
    }

    /// The process could not use what it was given, and so would not the next time.
    pub(super) fn refused(&self) -> bool {
        code(&self.status) == Some(REFUSED)
    }

    /// The ranks have not met, or another has left. Those of other machines may be late.
    pub(super) fn alone(&self) -> bool {
        code(&self.status) == Some(ALONE)
    }
}

fn code(status: &io::Result<ExitStatus>) -> Option<i32> {
    status.as_ref().ok()?.code()
}

#[derive(Debug)]
pub(super) struct ShardGroup {
    processes: Vec<Process>,
    started: Instant,
}

impl ShardGroup {
    /// Starts every rank, or none. Sockets that an earlier group left are removed first.
    pub(super) fn start(plan: &Plan) -> anyhow::Result<Self> {
        for socket in &plan.sockets {
            match std::fs::remove_file(socket) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => anyhow::bail!("cannot remove the stale socket {}: {error}", socket.display()),
            }
        }
        let mut shards = plan.shards.clone();
        if let Some(address) = &plan.meet_at {
            // Not the one of an earlier start, which another program may have taken since.
            let port = free_port(address)?.to_string();
            for shard in &mut shards {
                shard.env.push((MASTER_PORT, port.clone().into()));
            }
        }
        let processes = shards.iter().map(Process::spawn).collect::<anyhow::Result<_>>()?;
        Ok(Self { processes, started: Instant::now() })
    }

    /// Whether there are ranks: none between a death and the next start.
    pub(super) fn are_running(&self) -> bool {
        !self.processes.is_empty()
    }

    /// Waits until any rank ends, for ever if there is none. Cancel safe.
    pub(super) async fn death(&mut self) -> Death {
        let (index, status) = poll_fn(|context| {
            let mut ended = Vec::new();
            for (index, process) in self.processes.iter_mut().enumerate() {
                // `Child::wait` keeps its state in the child, so a fresh future per poll loses nothing.
                if let Poll::Ready(status) = pin!(process.wait()).poll(context) {
                    ended.push((index, status));
                }
            }
            // Where several have: who was killed, or refuses, has taken the others along.
            let cause = |(_, status): &(_, io::Result<ExitStatus>)| match code(status) {
                None => 0,
                Some(REFUSED) => 1,
                Some(ALONE) => 2,
                Some(_) => 3,
            };
            ended.into_iter().min_by_key(cause).map_or(Poll::Pending, Poll::Ready)
        })
        .await;
        Death { index, status, ran: self.started.elapsed() }
    }

    /// Kills what is left of the group, and says in words how it came to that.
    pub(super) async fn bury(&mut self, death: &Death) -> String {
        let mut what = format!("ended ({})", describe(&death.status));
        self.signal(Signal::SIGKILL);
        if let Some(process) = self.processes.get_mut(death.index) {
            what = format!("{} {what}", process.role);
            if let Some(error) = process.last_error().await {
                what = format!("{what}: {error}");
            }
        }
        self.kill().await;
        what
    }

    /// Ends every rank: asks first and kills what is left after `grace`. No rank is left.
    pub(super) async fn stop(&mut self, grace: Duration) {
        self.signal(Signal::SIGTERM);
        let deadline = Instant::now() + grace;
        for process in &mut self.processes {
            process.stop(deadline.saturating_duration_since(Instant::now())).await;
        }
        self.processes.clear();
    }

    /// Kills every rank at once and reaps them. No rank is left.
    pub(super) async fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        self.stop(Duration::from_secs(1)).await;
    }

    fn signal(&self, signal: Signal) {
        for process in &self.processes {
            process.signal(signal);
        }
    }
}

/// A port at which nobody listens now.
fn free_port(address: &str) -> anyhow::Result<u16> {
    let listener = TcpListener::bind((address, 0))
        .with_context(|| format!("--master-addr {address}: no port is free there for shards to meet"))?;
    Ok(listener.local_addr()?.port())
}
