//! Which adapter a body asks for.

use crate::{
    adapters::AdapterSource,
    error::{Error, Invalid},
    request::AdapterRef,
};

/// The adapter of an `adapter_id` and an `adapter_source`; null, empty and the base model's own id are the
/// base model.
pub(super) fn adapter(base: &str, id: Option<String>, source: Option<&str>) -> Result<AdapterRef, Error> {
    let source = match source {
        None | Some("" | "local") => AdapterSource::Local,
        Some(_) => return Err(Invalid::AdapterSource { allowed: "local" }.into()),
    };
    Ok(match id {
        Some(id) if !id.is_empty() && id != base => AdapterRef::Named { id, source },
        _ => AdapterRef::Base,
    })
}

/// Merges are refused, and a merge beside an adapter is the caller's mistake.
pub(super) fn refuse_merge(merge: Option<&serde_json::Value>, adapter_id: Option<&str>) -> Result<(), Error> {
    match merge {
        None => Ok(()),
        Some(_) if adapter_id.is_some_and(|id| !id.is_empty()) => Err(Invalid::AdapterAndMerge.into()),
        Some(_) => {
            Err(Invalid::Unsupported { param: "merged_adapters", hint: "name one adapter as `adapter_id`" }
                .into())
        }
    }
}
