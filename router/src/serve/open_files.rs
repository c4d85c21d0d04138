//! How many files this process may have open: every connection is one.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Beside connections: sockets of shards, the listener, logs, the runtime's own.
const OTHERS: u64 = 64;

/// Takes as many as the system gives, which often are 1,024 until a process asks for more, and warns if connections may
/// need more than that.
pub(super) fn allow(max_connections: usize) {
    let wanted = (max_connections as u64).saturating_add(OTHERS);
    let allowed = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| {
        let most = soft.max(wanted.min(hard));
        setrlimit(Resource::RLIMIT_NOFILE, most, hard).map(|()| most)
    });
    match allowed {
        Ok(allowed) if allowed < wanted => tracing::warn!(
            "the system allows {allowed} open files, and --max-connections {max_connections} need {wanted}: raise the \
             limit (ulimit -n, LimitNOFILE) or lower the flag"
        ),
        Ok(_) => {}
        Err(error) => tracing::warn!(%error, "cannot ask how many files may be open"),
    }
}
