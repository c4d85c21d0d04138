//! Ties a child's life to ours, so that even `kill -9` of the launcher leaves no process behind.
//!
//! The only unsafe code of the launcher is here.
#![expect(
    unsafe_code,
    reason = "pre_exec runs between fork and exec; only async-signal-safe calls are made there"
)]

use tokio::process::Command;

/// Has the kernel send SIGKILL to the child when its parent dies.
///
/// "Parent" means the *thread* that forks: spawn from one that lives as long as the process. The
/// supervisor runs on a current-thread runtime on the main thread for this reason.
#[cfg(target_os = "linux")]
pub(super) fn kill_with_parent(command: &mut Command) {
    use nix::errno::Errno;
    use nix::sys::{prctl, signal::Signal};
    use nix::unistd::{Pid, getpid, getppid};

    let parent: Pid = getpid();
    let hook = move || -> std::io::Result<()> {
        prctl::set_pdeathsig(Signal::SIGKILL)?;
        // The parent may have died between fork and prctl: then no signal will come.
        if getppid() == parent { Ok(()) } else { Err(Errno::ESRCH.into()) }
    };
    // SAFETY: the hook calls only prctl(2) and getppid(2), which are async-signal-safe, and neither
    // allocates nor takes a lock: an Errno becomes an io::Error without allocation.
    unsafe { command.pre_exec(hook) };
}

/// Other systems have no such signal: there an abrupt end of the launcher leaves the shards running.
#[cfg(not(target_os = "linux"))]
pub(super) fn kill_with_parent(_command: &mut Command) {}
