//! What this server knows and must not ignore.

use crate::error::{Error, Invalid};

pub(super) const CONSTRAINED: &str = "constrained output is not available";

/// Refuses the first of these fields that the body sets: each with its name, whether it is set, and a hint.
pub(super) fn refuse(fields: &[(&'static str, bool, &'static str)]) -> Result<(), Error> {
    match fields.iter().find(|(_, set, _)| *set) {
        Some((param, _, hint)) => Err(Invalid::Unsupported { param, hint }.into()),
        None => Ok(()),
    }
}

/// Whether a `response_format` asks for more than text.
pub(super) fn constrains(response_format: Option<&serde_json::Value>) -> bool {
    response_format.is_some_and(|format| format["type"] != "text")
}
