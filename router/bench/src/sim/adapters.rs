//! The adapters that the simulated source has, by the beginning of their ids.

use std::hash::{DefaultHasher, Hash, Hasher};

use tonic::Status;

/// The digest of an adapter: 64 hexadecimal digits, as that of real bytes.
pub fn digest(id: &str) -> String {
    let mut hasher = DefaultHasher::new();
    id.hash(&mut hasher);
    format!("{:064x}", hasher.finish())
}

/// Whether an id can be fetched. `known/…` can; the others fail as their names say.
pub(super) fn source(id: &str) -> Result<(), Status> {
    let (kind, _) = id.split_once('/').unwrap_or((id, ""));
    match kind {
        "known" | "unloadable" => Ok(()),
        "invalid" => Err(Status::invalid_argument("adapter_config.json: `r` must be at least 1, given 0")),
        "denied" => Err(Status::permission_denied("outside every root")),
        "large" => Err(Status::resource_exhausted("it has 9 bytes, the bound is 1")),
        "full" => Err(Status::resource_exhausted("no space left on the device")),
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
