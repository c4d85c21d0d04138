//! One child process: how it is started, signalled and reaped.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::Context;
use nix::errno::Errno;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::parent_death::kill_with_parent;
use crate::logs;
use crate::role::Role;

/// How long to wait for the last lines of a process that has ended.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// A command line that has not been started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessSpec {
    pub role: Role,
    pub program: PathBuf,
    pub args: Vec<OsString>,
    /// Added to the launcher's own environment.
    pub env: Vec<(&'static str, OsString)>,
}

impl ProcessSpec {
    /// The command in a process group of its own: a Ctrl-C at the terminal reaches the launcher
    /// only, which then drains in order. No child outlives the launcher.
    pub(super) fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(&self.args)
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .process_group(0)
            .kill_on_drop(true);
        kill_with_parent(&mut command);
        command
    }
}

/// A running child, leader of its process group.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) role: Role,
    child: Child,
    group: Pid,
    /// Reads standard error to its end, and then has the last error that was in it.
    errors: Option<JoinHandle<Option<String>>>,
}

impl Process {
    /// Starts the process and re-emits its output line by line.
    ///
    /// The router formats its own records, with their fields, so it keeps our stderr. Shards write
    /// JSON lines that are re-emitted with their rank.
    pub(super) fn spawn(spec: &ProcessSpec) -> anyhow::Result<Self> {
        let mut command = spec.command();
        command.stdout(Stdio::piped());
        match spec.role {
            Role::Router => command.stderr(Stdio::inherit()),
            Role::Shard(_) | Role::Prepare => command.stderr(Stdio::piped()),
        };
        let mut child = command
            .spawn()
            .with_context(|| format!("cannot start the {} ({})", spec.role, spec.program.display()))?;
        if let Some(stdout) = child.stdout.take() {
            tokio::spawn(logs::pump(stdout, spec.role));
        }
        let errors = child.stderr.take().map(|stderr| tokio::spawn(logs::pump(stderr, spec.role)));
        let pid = child.id().context("a child that was just started has no process id")?;
        tracing::debug!(role = %spec.role, pid, "started");
        Ok(Self { role: spec.role, group: Pid::from_raw(pid.cast_signed()), child, errors })
    }

    /// Waits for the process to end. Cancel safe.
    pub(super) async fn wait(&mut self) -> std::io::Result<ExitStatus> {
        self.child.wait().await
    }

    /// Kills the process and whatever it started, without waiting.
    pub(super) fn kill(&self) {
        self.signal(Signal::SIGKILL);
    }

    /// Waits for the end; kills the process when it has not come after `grace`.
    pub(super) async fn stop(&mut self, grace: Duration) {
        if timeout(grace, self.child.wait()).await.is_err() {
            tracing::warn!("the {} did not end within {grace:?} and is killed", self.role);
        }
        self.kill();
        if let Err(error) = self.child.wait().await {
            tracing::warn!("cannot wait for the {}: {error}", self.role);
        }
    }

    /// What the process, which has ended, said last of what went wrong.
    pub(super) async fn last_error(&mut self) -> Option<String> {
        // Something it started may hold the other end open.
        timeout(LAST_WORDS, self.errors.take()?).await.ok()?.ok()?
    }

    /// Sends a signal to the process and whatever it started.
    pub(super) fn signal(&self, signal: Signal) {
        match killpg(self.group, signal) {
            // Nobody left in the group: it has ended already.
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(error) => tracing::warn!("cannot send {signal} to the {}: {error}", self.role),
        }
    }
}

/// An exit status in words: `exit status: 3`, `signal: 9 (SIGKILL)`.
pub(super) fn describe(status: &std::io::Result<ExitStatus>) -> String {
    match status {
        Ok(status) => status.to_string(),
        Err(error) => format!("unknown: {error}"),
    }
}
