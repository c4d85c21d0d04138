//! The adapters that the simulated source has, by the beginning of their ids.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash, Hasher},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tonic::Status;

/// The digests on a simulated disk, with the ids they came from. Clones are the same disk.
#[derive(Clone, Debug, Default)]
pub struct Store(Arc<Mutex<HashMap<String, String>>>);

impl Store {
    /// Forgets everything, as a disk that was wiped.
    pub fn wipe(&self) {
        self.lock().clear();
    }

    pub(super) fn insert(&self, digest: String, id: String) {
        self.lock().insert(digest, id);
    }

    pub(super) fn id(&self, digest: &str) -> Option<String> {
        self.lock().get(digest).cloned()
    }

    pub(super) fn remove(&self, digest: &str) {
        self.lock().remove(digest);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The digest of an adapter: 64 hexadecimal digits, as that of real bytes.
pub fn digest(id: &str) -> String {
    let mut hasher = DefaultHasher::new();
    id.hash(&mut hasher);
    format!("{:064x}", hasher.finish())
}

/// The digest of what lies under an id on the machine of this rank: of `differing/…` something else on each.
pub(super) fn digest_on(id: &str, rank: u32) -> String {
    if id.starts_with("differing/") { digest(&format!("{id} on {rank}")) } else { digest(id) }
}

/// Whether an id can be fetched. `known/…` can; the others fail as their names say.
pub(super) fn source(id: &str) -> Result<(), Status> {
    let (kind, _) = id.split_once('/').unwrap_or((id, ""));
    match kind {
        "known" | "unloadable" | "differing" => Ok(()),
        "invalid" => Err(Status::invalid_argument("adapter_config.json: `r` must be at least 1, given 0")),
        "denied" => Err(Status::permission_denied("outside every root")),
        // The codes tell these apart. The words mislead, so that nobody goes by them.
        "large" => Err(Status::out_of_range("the store is full with a part of it")),
        "full" => Err(Status::resource_exhausted("larger than the bound of this moment")),
        "down" => Err(Status::unavailable("connection refused")),
        "changed" => Err(Status::data_loss("the bytes have another digest")),
        _ => Err(Status::not_found("no such adapter")),
    }
}

/// Whether it can be staged: `unloadable/…` can be fetched, and then does not fit the model.
pub(super) fn loads(id: &str) -> Result<(), Status> {
    if id.starts_with("unloadable/") {
        return Err(Status::invalid_argument("lora_A of q_proj has shape [8, 5], expected [8, 4]"));
    }
    Ok(())
}
