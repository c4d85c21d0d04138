//! Keeps the router and the shards running together, and ends them together.
//!
//! - A shard that dies takes its group with it; the group is started again after a growing wait.
//! - Of a group on several machines each launcher starts its own shards again: they end when any rank is lost.
//! - A router that dies ends the server: its sockets and queues were the server's state.
//! - SIGTERM drains: first the router, which finishes what is in flight, then the shards.
//! - A second signal kills at once. Nothing outlives the launcher, however it ends.

mod backoff;
mod group;
mod parent_death;
mod prepare;
mod process;
mod readiness;
mod signals;

use std::future::pending;
use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::anyhow;
use nix::sys::signal::Signal;
use tokio::time::{Instant, sleep_until, timeout};

use backoff::Backoff;
use group::{Death, ShardGroup};
pub use prepare::{Prepared, prepare};
pub use process::ProcessSpec;
use process::{Process, describe};
use readiness::Readiness;
pub use signals::Signals;

/// How long shards may take to end when asked; they hold nothing that needs saving.
pub const SHARD_GRACE: Duration = Duration::from_secs(5);

/// How long the router may take to end after all shards are given up: nothing is in flight any more.
const FAILED_ROUTER_GRACE: Duration = Duration::from_secs(2);

/// In which the same signal again is the first one still: `timeout` signals its child, and then the group that the child
/// is in. Less than a person needs to press a key twice.
const SAME_SIGNAL: Duration = Duration::from_millis(100);

/// Everything that is to run, and the bounds on keeping it running.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Only on the machine of rank 0.
    pub router: Option<RouterPlan>,
    /// One per rank of this machine, in order.
    pub shards: Vec<ProcessSpec>,
    /// The address at which shards meet, at another free port each time they start; else they know the port.
    pub meet_at: Option<String>,
    /// Where shards listen; removed before each start.
    pub sockets: Vec<PathBuf>,
    /// Whether there are ranks on other machines.
    pub span_machines: bool,
    /// Restarts of the shards in a row before the server gives up.
    pub max_restarts: u32,
    /// How long the router may take to drain.
    pub drain_deadline: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouterPlan {
    pub process: ProcessSpec,
    /// Where it answers, for readiness.
    pub address: SocketAddr,
}

/// Why the server ended without an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Asked to, and everything in flight was finished.
    Drained,
    /// Asked twice: what was in flight was lost.
    Cut(Signal),
}

/// Runs the plan until a signal or a failure ends it. No child is left when this returns.
///
/// To be called from the main thread: children are killed with the thread that started them.
///
/// # Errors
/// The router ended, or the shards could not be kept running.
pub async fn supervise(plan: &Plan, signals: &mut Signals) -> anyhow::Result<Ending> {
    let mut router = plan.router.as_ref().map(|router| Process::spawn(&router.process)).transpose()?;
    let mut shards = ShardGroup::start(plan)?;
    match watch(plan, &mut router, &mut shards, signals).await {
        Ok(signal) => {
            tracing::info!("{signal}: finishing what is in flight; a second signal ends at once");
            drain(plan, signal, &mut router, &mut shards, signals).await
        }
        Err(error) => {
            shards.kill().await;
            if let Some(router) = &mut router {
                router.signal(Signal::SIGINT);
                router.stop(FAILED_ROUTER_GRACE).await;
            }
            Err(error)
        }
    }
}

/// Returns the first signal, or what made it impossible to go on.
async fn watch(
    plan: &Plan,
    router: &mut Option<Process>,
    shards: &mut ShardGroup,
    signals: &mut Signals,
) -> anyhow::Result<Signal> {
    let mut backoff = Backoff::new(plan.max_restarts);
    let mut readiness = Readiness::new(plan.router.as_ref().map(|router| router.address));
    let mut restart_at: Option<Instant> = None;
    loop {
        tokio::select! {
            biased;
            signal = signals.next() => return Ok(signal),
            status = end_of(router) => anyhow::bail!("the router ended ({})", describe(&status)),
            death = shards.death() => {
                let served = readiness.lost(death.ran);
                let what = shards.bury(&death).await;
                let wait = next_start(plan, &death, &what, served, readiness.ever(), &mut backoff)?;
                restart_at = Some(Instant::now() + wait);
            }
            () = until(restart_at) => {
                restart_at = None;
                *shards = ShardGroup::start(plan)?;
            }
            (address, took) = readiness.reached(), if restart_at.is_none() => {
                tracing::info!("listening on http://{address} (ready after {:.1} s)", took.as_secs_f64());
            }
        }
    }
}

/// Whether shards that end like this at the start will do so again. Alone on its machine a group knows; on
/// several the others may only be late.
fn is_hopeless(plan: &Plan, death: &Death, ever_ready: bool) -> bool {
    !ever_ready && if plan.span_machines { death.refused() } else { death.own_choice() }
}

/// How long to wait before the shards are started again, or why they are not.
fn next_start(
    plan: &Plan,
    death: &Death,
    what: &str,
    served: Duration,
    ever_ready: bool,
    backoff: &mut Backoff,
) -> anyhow::Result<Duration> {
    if is_hopeless(plan, death, ever_ready) {
        anyhow::bail!("{what} (before it was ready; `lorikeet doctor` tells what this machine lacks)");
    }
    let late = plan.span_machines && death.alone();
    let Some(wait) = (if late { Some(backoff.again()) } else { backoff.after(served) }) else {
        let restarts = backoff.restarts();
        anyhow::bail!("{what} (--max-shard-restarts {restarts} is used up; its messages are above)");
    };
    tracing::error!("{what}; all shards start again in {:.1} s", wait.as_secs_f64());
    Ok(wait)
}

/// Hands `signal` to the router, which waits for balancers to look elsewhere on SIGTERM but not on Ctrl-C.
///
/// Where the router is on another machine, which may have been told to end at the same time, shards go on for as
/// long as it may need them: they end by themselves when rank 0 does.
async fn drain(
    plan: &Plan,
    signal: Signal,
    router: &mut Option<Process>,
    shards: &mut ShardGroup,
    signals: &mut Signals,
) -> anyhow::Result<Ending> {
    let in_order = async {
        let mut lost = None;
        if let Some(router) = router.as_mut() {
            let told = if signal == Signal::SIGTERM { signal } else { Signal::SIGINT };
            router.signal(told);
            router.stop(plan.drain_deadline).await;
            let status = router.wait().await;
            // One that had nothing to finish may not have caught the signal yet.
            let drained = status.as_ref().is_ok_and(|end| end.success() || end.signal() == Some(told as i32));
            lost = (!drained).then(|| describe(&status));
        } else if signal == Signal::SIGTERM && shards.are_running() {
            let _ = timeout(plan.drain_deadline, shards.death()).await;
        }
        shards.stop(SHARD_GRACE).await;
        match lost {
            None => Ok(Ending::Drained),
            Some(how) => Err(anyhow!("the router ended ({how}) before all that was in flight was finished")),
        }
    };
    let first = Instant::now();
    let again = async {
        loop {
            let next = signals.next().await;
            if is_another(signal, next, first.elapsed()) {
                return next;
            }
        }
    };
    tokio::select! {
        ending = in_order => ending,
        signal = again => {
            tracing::warn!("{signal} again: ending at once");
            if let Some(router) = router.as_ref() {
                router.kill();
            }
            shards.kill().await;
            if let Some(router) = router {
                router.stop(Duration::from_secs(1)).await;
            }
            Ok(Ending::Cut(signal))
        }
    }
}

/// Whether somebody has lost patience, rather than been heard twice.
fn is_another(first: Signal, next: Signal, after: Duration) -> bool {
    next != first || after >= SAME_SIGNAL
}

async fn end_of(router: &mut Option<Process>) -> std::io::Result<ExitStatus> {
    match router {
        Some(router) => router.wait().await,
        None => pending().await,
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_that_comes_twice_at_once_is_one() {
        let after = Duration::from_millis;
        assert!(!is_another(Signal::SIGTERM, Signal::SIGTERM, after(1)));
        assert!(is_another(Signal::SIGTERM, Signal::SIGTERM, after(200)));
        assert!(is_another(Signal::SIGTERM, Signal::SIGINT, after(1)));
    }
}
