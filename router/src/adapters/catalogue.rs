//! The adapters that lie below the roots, whether or not anyone has asked for them.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant, UNIX_EPOCH},
};

use tokio::{sync::watch, time::timeout};

use super::name;

/// Directories below a root that are looked into, and adapters that are listed: a root may be somebody's home.
const MAX_DEPTH: usize = 3;
const MAX_ENTRIES: usize = 10_000;
/// How long a listing is good for.
const FRESH: Duration = Duration::from_secs(5);
/// How long a disk may take. Past that the last listing is shown, until this one is there.
const PATIENCE: Duration = Duration::from_secs(2);

/// An id, and the Unix second at which its configuration was written.
pub(super) type Entries = Arc<BTreeMap<String, u64>>;

pub struct Catalogue {
    roots: Arc<[PathBuf]>,
    /// The base model's id: requests that name it are the base model's, so no adapter can have it.
    base: Arc<str>,
    last: watch::Sender<Listing>,
}

#[derive(Default)]
struct Listing {
    entries: Entries,
    at: Option<Instant>,
    /// The disk is being read, by one thread however many ask.
    reading: bool,
}

impl Catalogue {
    pub fn new(roots: Vec<PathBuf>, base: &str) -> Self {
        Self { roots: roots.into(), base: base.into(), last: watch::Sender::default() }
    }

    /// What is there now, or was a few seconds ago.
    pub async fn list(&self) -> Entries {
        self.refresh();
        let mut last = self.last.subscribe();
        timeout(PATIENCE, last.wait_for(|last| !last.reading)).await.ok();
        last.borrow().entries.clone()
    }

    /// Whether it was there when the disk was last read. Only the first reading is waited for.
    pub async fn has(&self, id: &str) -> bool {
        self.refresh();
        let mut last = self.last.subscribe();
        timeout(PATIENCE, last.wait_for(|last| last.at.is_some())).await.ok();
        last.borrow().entries.contains_key(id)
    }

    /// Has a blocking thread read the disk, if that is due.
    pub fn refresh(&self) {
        let due = self.last.send_if_modified(|last| {
            let due = !last.reading && last.at.is_none_or(|at| at.elapsed() >= FRESH);
            last.reading |= due;
            due
        });
        if due {
            let (roots, base, last) = (self.roots.clone(), self.base.clone(), self.last.clone());
            tokio::spawn(async move {
                let scanned = tokio::task::spawn_blocking(move || {
                    let mut found = scan(&roots);
                    let named_like_base = found.remove(&*base).is_some();
                    (Arc::new(found), named_like_base.then_some(base))
                });
                // A scan that panics has found nothing.
                let (entries, left_out) = scanned.await.unwrap_or_default();
                let before = last.send_replace(Listing { entries, at: Some(Instant::now()), reading: false });
                if let Some(adapter) = left_out.filter(|_| before.at.is_none()) {
                    tracing::warn!(
                        %adapter,
                        "an adapter has the name of the base model, which answers in its place: rename it, or \
                         give the base model another --model-id"
                    );
                }
            });
        }
    }
}

/// Where two roots have the same id, the first one's is meant, as when it is fetched.
fn scan(roots: &[PathBuf]) -> BTreeMap<String, u64> {
    let mut found = BTreeMap::new();
    for root in roots {
        look_into(root, "", MAX_DEPTH, &mut found);
    }
    found
}

fn look_into(directory: &Path, id: &str, depth: usize, found: &mut BTreeMap<String, u64>) {
    // What cannot be read is not listed.
    let Ok(entries) = directory.read_dir() else { return };
    for entry in entries.flatten() {
        if found.len() >= MAX_ENTRIES {
            return;
        }
        // Links are not followed: the shard refuses them too.
        let (Ok(kind), Ok(file)) = (entry.file_type(), entry.file_name().into_string()) else { continue };
        if !kind.is_dir() {
            continue;
        }
        let below = if id.is_empty() { file } else { format!("{id}/{file}") };
        if name::check(&below).is_err() {
            continue;
        }
        let path = entry.path();
        if let Some(written) = written(&path.join("adapter_config.json")) {
            found.entry(below.clone()).or_insert(written);
        }
        // Below an adapter too: trainers write checkpoints there, adapters themselves.
        if depth > 1 {
            look_into(&path, &below, depth - 1, found);
        }
    }
}

fn written(file: &Path) -> Option<u64> {
    let metadata = file.symlink_metadata().ok().filter(std::fs::Metadata::is_file)?;
    let since = metadata.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
    Some(since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn adapters_are_found_by_path_and_links_are_not() {
        let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let make = |path: PathBuf| {
            std::fs::create_dir_all(&path).unwrap();
            std::fs::write(path.join("adapter_config.json"), "{}").unwrap();
        };
        make(first.path().join("a"));
        make(first.path().join("a/checkpoint-500"));
        make(first.path().join("team/b"));
        make(first.path().join("lr=1e-4/r+8"));
        make(first.path().join("one/two/three/too-deep"));
        make(first.path().join("a name with spaces"));
        make(first.path().join(".hidden"));
        make(second.path().join("c"));
        make(second.path().join("a"));
        std::fs::create_dir(second.path().join("empty")).unwrap();
        std::os::unix::fs::symlink(first.path().join("a"), second.path().join("link")).unwrap();
        let catalogue =
            Catalogue::new(vec![first.path().into(), second.path().into(), "/no/such/root".into()], "team/b");
        let entries = catalogue.list().await;
        assert_eq!(
            entries.keys().collect::<Vec<_>>(),
            ["a", "a/checkpoint-500", "c", "lr=1e-4/r+8"],
            "and no adapter has the base model's name"
        );
        assert!(entries.values().all(|&written| written > 1_600_000_000));
        assert!(catalogue.has("c").await && !catalogue.has("team/b").await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_disk_that_hangs_shows_what_was_there_last() {
        let catalogue = Catalogue::new(Vec::new(), "base");
        let entries: Entries = Arc::new(BTreeMap::from([("a".to_owned(), 1)]));
        let hanging = Listing { entries: entries.clone(), at: None, reading: true };
        catalogue.last.send_replace(hanging);
        assert_eq!(catalogue.list().await, entries);
        catalogue.last.send_modify(|last| last.reading = false);
        assert_eq!(catalogue.list().await.len(), 0, "read again once the disk answers");
    }
}
