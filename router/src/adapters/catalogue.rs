//! The adapters that lie below the roots, whether or not anyone has asked for them.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::UNIX_EPOCH,
};

use super::{contents::Contents, kept::Kept, name};

/// Directories below a root that are looked into, and adapters that are listed: a root may be somebody's home.
const MAX_DEPTH: usize = 3;
const MAX_ENTRIES: usize = 10_000;

/// By id.
pub(super) type Entries = BTreeMap<String, Entry>;

#[derive(Debug)]
pub struct Entry {
    pub(super) directory: PathBuf,
    /// The Unix second at which its configuration was written.
    pub written: u64,
}

/// What the disk holds; each is read when somebody asks.
pub struct Catalogue {
    pub list: Kept<Arc<Entries>>,
    /// `None` until they have been read.
    pub contents: Kept<Option<Arc<Contents>>>,
}

impl Catalogue {
    /// `base` is the base model's id: requests that name it are the base model's, so no adapter can have it.
    pub fn new(roots: Vec<PathBuf>, base: &str) -> Self {
        let (roots, base): (Arc<[PathBuf]>, Arc<str>) = (roots.into(), base.into());
        let warned = AtomicBool::new(false);
        let list = {
            let (roots, base) = (roots.clone(), base.clone());
            move |_| {
                let (entries, named_like_base) = scan(&roots, &base);
                if named_like_base && !warned.swap(true, Relaxed) {
                    tracing::warn!(
                        adapter = &*base,
                        "an adapter has the name of the base model, which answers in its place: rename it, or \
                         give the base model another --model-id"
                    );
                }
                Arc::new(entries)
            }
        };
        let contents = move |before: Option<Arc<Contents>>| {
            let (entries, _) = scan(&roots, &base);
            Some(Arc::new(Contents::read(&entries, before.as_deref())))
        };
        Self { list: Kept::new(list), contents: Kept::new(contents) }
    }

    /// Whether it was there when the disk was last read.
    pub(super) async fn has(&self, id: &str) -> bool {
        self.list.last().await.contains_key(id)
    }
}

/// The adapters, and whether one was left out that has the name of the base model. Where two roots have the same id,
/// the first one's is meant, as when it is fetched.
fn scan(roots: &[PathBuf], base: &str) -> (Entries, bool) {
    let mut found = Entries::new();
    for root in roots {
        look_into(root, "", MAX_DEPTH, &mut found);
    }
    let named_like_base = found.remove(base).is_some();
    (found, named_like_base)
}

fn look_into(directory: &Path, id: &str, depth: usize, found: &mut Entries) {
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
            found.entry(below.clone()).or_insert_with(|| Entry { directory: path.clone(), written });
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
        let entries = catalogue.list.now().await;
        assert_eq!(
            entries.keys().collect::<Vec<_>>(),
            ["a", "a/checkpoint-500", "c", "lr=1e-4/r+8"],
            "and no adapter has the base model's name"
        );
        assert!(entries.values().all(|entry| entry.written > 1_600_000_000));
        assert!(catalogue.has("c").await && !catalogue.has("team/b").await);
    }
}
