//! The private directory of one run, where the shards' sockets are.
//!
//! It is new for each run, so nothing that an earlier run left, or another user put there, is ever used.

use std::fs::{File, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use anyhow::Context;
use tempfile::TempDir;

use crate::environment;

const PREFIX: &str = "lorikeet-";
const LOCK: &str = "lock";

/// Removed when dropped. What a killed run left behind is removed by the next one.
#[derive(Debug)]
pub struct RunDirectory {
    directory: TempDir,
    /// Held while the run lasts: how others tell it from one that was left behind.
    _lock: File,
}

impl RunDirectory {
    /// Makes a directory that only this user can enter, in `base` or where such files belong.
    ///
    /// # Errors
    /// `base` cannot be written.
    pub fn make(base: Option<&Path>) -> anyhow::Result<Self> {
        let base = base.map_or_else(environment::runtime_base, Path::to_owned);
        remove_abandoned(&base);
        let make = || loop {
            let private = Permissions::from_mode(0o700);
            let directory = tempfile::Builder::new().prefix(PREFIX).permissions(private).tempdir_in(&base)?;
            let lock = File::create(directory.path().join(LOCK))?;
            lock.lock()?;
            // Another run may have taken it for abandoned before it was locked.
            if lock.metadata()?.nlink() > 0 {
                return std::io::Result::Ok(Self { directory, _lock: lock });
            }
        };
        make().with_context(|| {
            format!("--shard-uds-path {}: give a directory that can be written", base.display())
        })
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }
}

/// Tidies up as far as possible; a directory that cannot be removed is in nobody's way.
fn remove_abandoned(base: &Path) {
    for entry in base.read_dir().into_iter().flatten().flatten() {
        if !entry.file_name().to_string_lossy().starts_with(PREFIX) {
            continue;
        }
        // No lock file: not ours, or about to be locked.
        let Ok(lock) = File::open(entry.path().join(LOCK)) else { continue };
        if lock.try_lock().is_ok() {
            // Still locked: whoever waits for the lock finds the directory gone.
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_run_has_its_own_and_leaves_nothing() {
        let base = tempfile::tempdir().unwrap();
        let first = RunDirectory::make(Some(base.path())).unwrap();
        let second = RunDirectory::make(Some(base.path())).unwrap();
        assert_ne!(first.path(), second.path());
        assert!(first.path().is_dir(), "a run that lasts is left alone");
        assert_eq!(first.path().metadata().unwrap().permissions().mode() & 0o777, 0o700);
        drop((first, second));
        assert_eq!(base.path().read_dir().unwrap().count(), 0);
    }

    #[test]
    fn what_a_killed_run_left_is_removed_and_nothing_else() {
        let base = tempfile::tempdir().unwrap();
        let left = base.path().join("lorikeet-killed");
        let others = base.path().join("lorikeet-of-someone-else");
        for directory in [&left, &others] {
            std::fs::create_dir(directory).unwrap();
        }
        std::fs::write(left.join(LOCK), "").unwrap();
        std::fs::write(left.join("shard-0"), "").unwrap();
        let _run = RunDirectory::make(Some(base.path())).unwrap();
        assert!(!left.exists());
        assert!(others.exists());
    }

    #[test]
    fn a_base_that_cannot_be_written_is_named() {
        let error = RunDirectory::make(Some(Path::new("/no/such/place"))).unwrap_err();
        assert!(format!("{error:#}").contains("--shard-uds-path /no/such/place"));
    }
}
