//! What lies below the roots in one number, by which replicas are told apart that would serve different bytes under
//! the same names. Reading all weights would take minutes, so a part of each file stands for it.

use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    io::{self, Read, Seek, SeekFrom},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::Path,
};

use nix::fcntl::OFlag;
use sha2::{Digest, Sha256};

use super::catalogue::Entries;

/// Of a configuration as much as one ever has; the shard refuses larger ones.
const MAX_CONFIG: u64 = 1 << 20;
/// Bytes of the weights at their beginning, where the header is, and at their end, which another training changes.
const HEAD: u64 = 64 << 10;
const TAIL: u64 = 4 << 10;

/// What was read of each adapter.
#[derive(Debug, Default)]
pub struct Contents(BTreeMap<String, Part>);

#[derive(Clone, Debug)]
struct Part {
    stamp: [Option<Stamp>; 2],
    digest: [u8; 32],
}

/// Device, inode, size, and the times in nanoseconds at which bytes and inode were written: what changes when a file
/// does.
type Stamp = [i128; 5];

impl Contents {
    /// Reads the adapters that have changed since `before`.
    pub(super) fn read(entries: &Entries, before: Option<&Self>) -> Self {
        let part = |id: &String, directory: &Path| {
            let files = [directory.join("adapter_config.json"), directory.join("adapter_model.safetensors")];
            let stamp = [stamp(&files[0]), stamp(&files[1])];
            let known = before.and_then(|before| before.0.get(id)).filter(|part| part.stamp == stamp);
            known.cloned().unwrap_or_else(|| Part { stamp, digest: digest(&files[0], &files[1]) })
        };
        Self(entries.iter().map(|(id, entry)| (id.clone(), part(id, &entry.directory))).collect())
    }

    /// In hexadecimal digits.
    pub fn sha(&self) -> String {
        let mut whole = Sha256::new();
        for (id, part) in &self.0 {
            whole.update((id.len() as u64).to_be_bytes());
            whole.update(id);
            whole.update(part.digest);
        }
        format!("{:x}", whole.finalize())
    }
}

fn stamp(path: &Path) -> Option<Stamp> {
    let file = path.symlink_metadata().ok()?;
    let time = |seconds: i64, nanoseconds: i64| i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds);
    let written = time(file.mtime(), file.mtime_nsec());
    let changed = time(file.ctime(), file.ctime_nsec());
    Some([file.dev().into(), file.ino().into(), file.size().into(), written, changed])
}

/// Lengths keep the end of one file from passing for the beginning of the other. A file that cannot be read is empty.
fn digest(config: &Path, weights: &Path) -> [u8; 32] {
    let mut digest = Sha256::new();
    for (path, head, tail) in [(config, MAX_CONFIG, 0), (weights, HEAD, TAIL)] {
        let (size, sample) = sample(path, head, tail).unwrap_or_default();
        digest.update(size.to_be_bytes());
        digest.update(sample);
    }
    digest.finalize().into()
}

/// The size of a file, its first `head` bytes, and of those that follow the last `tail`.
fn sample(path: &Path, head: u64, tail: u64) -> io::Result<(u64, Vec<u8>)> {
    let mut file = open(path)?;
    let size = file.metadata()?.len();
    let mut sample = Vec::new();
    (&mut file).take(head).read_to_end(&mut sample)?;
    file.seek(SeekFrom::Start(head.max(size.saturating_sub(tail))))?;
    file.take(tail).read_to_end(&mut sample)?;
    Ok((size, sample))
}

/// A regular file: no link, which may lead out of the root, and no pipe, which may never end.
fn open(path: &Path) -> io::Result<File> {
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits()).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::ErrorKind::InvalidInput.into()) }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::adapters::catalogue::Entry;

    fn adapter(root: &Path, id: &str, weights: &[u8]) {
        let directory = root.join(id);
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("adapter_config.json"), "{}").unwrap();
        fs::write(directory.join("adapter_model.safetensors"), weights).unwrap();
    }

    fn entries(root: &Path, ids: &[&str]) -> Entries {
        let entry = |id: &&str| ((*id).to_owned(), Entry { directory: root.join(id), written: 0 });
        ids.iter().map(entry).collect()
    }

    #[test]
    fn replicas_agree_until_a_name_or_a_file_differs() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let large = vec![7; 200 << 10];
        for root in [one.path(), other.path()] {
            adapter(root, "a", b"weights");
            adapter(root, "b", &large);
        }
        let sha = |root: &Path, ids: &[&str]| Contents::read(&entries(root, ids), None).sha();
        let agreed = sha(one.path(), &["a", "b"]);
        assert_eq!(sha(other.path(), &["b", "a"]), agreed);
        assert_ne!(sha(one.path(), &["a"]), agreed);

        let known = Contents::read(&entries(other.path(), &["a", "b"]), None);
        for at in [0, HEAD as usize - 1, large.len() - 1] {
            let mut changed = large.clone();
            changed[at] += 1;
            adapter(other.path(), "b", &changed);
            assert_ne!(sha(other.path(), &["a", "b"]), agreed, "byte {at}");
            let again = Contents::read(&entries(other.path(), &["a", "b"]), Some(&known));
            assert_ne!(again.sha(), agreed, "what has changed is read again");
        }
        fs::rename(one.path().join("a"), one.path().join("c")).unwrap();
        assert_ne!(sha(one.path(), &["c", "b"]), agreed);
    }

    #[test]
    fn what_has_not_changed_is_not_read_again() {
        let root = tempfile::tempdir().unwrap();
        adapter(root.path(), "a", b"weights");
        let entries = entries(root.path(), &["a"]);
        let mut known = Contents::read(&entries, None);
        known.0.get_mut("a").unwrap().digest = [0; 32];
        assert_eq!(Contents::read(&entries, Some(&known)).sha(), known.sha());
    }

    #[test]
    fn links_and_pipes_are_not_read() {
        let root = tempfile::tempdir().unwrap();
        let secret = root.path().join("secret");
        fs::write(&secret, "s").unwrap();
        adapter(root.path(), "a", b"");
        let nothing = Contents::read(&entries(root.path(), &["a"]), None).sha();
        let weights = root.path().join("a/adapter_model.safetensors");
        fs::remove_file(&weights).unwrap();
        std::os::unix::fs::symlink(&secret, &weights).unwrap();
        assert_eq!(Contents::read(&entries(root.path(), &["a"]), None).sha(), nothing);
        fs::remove_file(&weights).unwrap();
        nix::unistd::mkfifo(&weights, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(Contents::read(&entries(root.path(), &["a"]), None).sha(), nothing);
    }
}
