//! Names that clients give adapters, checked before anything is done with them.

use std::sync::Arc;

use super::source::{AdapterSource, source_name};
use crate::error::Invalid;

/// Bytes of one name.
const MAX_LENGTH: usize = 256;

/// A relative path of harmless characters: nothing in it can leave a root, a header or a log line. What passes is
/// what the shard opens (`roots.py`), so that no name is listed and then refused.
pub(crate) fn check(id: &str) -> Result<(), Invalid> {
    if id.len() > MAX_LENGTH {
        return Err(Invalid::AdapterIdLength { max: MAX_LENGTH, given: id.len() });
    }
    let plain = id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._/@+=-".contains(&byte));
    let part = |part: &str| {
        part.starts_with(|first: char| first.is_ascii_alphanumeric() || first == '_') && !part.ends_with('.')
    };
    if plain && !id.contains("..") && id.split('/').all(part) { Ok(()) } else { Err(Invalid::AdapterId) }
}

/// The key under which a source and an id are known: `source:id`. Ids contain no colon.
pub(crate) fn key(id: &str, source: AdapterSource) -> Arc<str> {
    format!("{}:{id}", source_name(source)).into()
}

/// The parts of a key.
pub(crate) fn split(key: &str) -> (&str, &str) {
    key.split_once(':').unwrap_or(("", key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_harmless_relative_paths_pass() {
        for good in ["a", "team/model-v1.2", "a@main", "A_b", "x/y/z", "_", "lr=1e-4/r+8"] {
            check(good).unwrap();
        }
        let long = "a".repeat(257);
        for bad in [
            "",
            "/etc/passwd",
            "a/",
            "a//b",
            "a/./b",
            ".hidden",
            "a/.hidden",
            "-a",
            "a.",
            "a./b",
            "../x",
            "a/../b",
            "a..b",
            "a\r\nX: 1",
            "é",
            "a b",
            "a\0",
            "a,b",
            "a:b",
            "a\\b",
            "%2e",
            &long,
        ] {
            check(bad).unwrap_err();
        }
    }
}
