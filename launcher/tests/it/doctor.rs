//! `lorikeet doctor` tells what is there, what would be used and what is missing.

use serde_json::Value;

use crate::support::{Place, run};

const FINDS_ALL: &str = r#"echo '{"findings": [{"name": "torch", "value": "2.15.0", "remedy": ""},
    {"name": "kernels", "value": "cpu-avx2", "remedy": ""}]}'"#;
const FINDS_NO_COMPILER: &str =
    r#"echo '{"findings": [{"name": "kernels", "value": "reference", "remedy": "install g++"}]}'; exit 1"#;
const FINDS_NO_GGUF: &str = r#"echo '{"findings": [{"name": "gguf", "value": "not installed", "remedy": "pip install gguf"}]}'; exit 1"#;
const BROKEN: &str = "echo 'No module named lorikeet_server' >&2; exit 1";

fn doctor(behaviour: &str, arguments: &[&str]) -> (i32, String) {
    let place = Place::with_doctor(behaviour);
    let (code, out, err, _) = run(place.lorikeet(&[&["doctor"], arguments].concat()));
    assert_eq!(err, "");
    (code, out)
}

#[test]
fn a_sound_machine_passes() {
    let (code, text) = doctor(FINDS_ALL, &[]);
    assert_eq!(code, 0, "{text}");
    for part in
        ["cpu", "memory", "torch         2.15.0", "cpu-avx2 kernels, 1 shard(s)", "missing       nothing"]
    {
        assert!(text.contains(part), "{text} lacks {part}");
    }
}

#[test]
fn programs_can_read_it() {
    let (code, text) = doctor(FINDS_ALL, &["--json"]);
    let report: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(code, 0);
    assert_eq!(report["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(report["would_use"]["kernels"], "cpu-avx2");
    assert!(report["hardware"]["cpu"]["cores"].as_u64() >= Some(1));
    assert_eq!(report["problems"], Value::Array(Vec::new()));
}

#[test]
fn the_cache_is_the_one_that_serve_is_given() {
    let place = Place::with_doctor(FINDS_ALL);
    let mut command = place.lorikeet(&["doctor"]);
    let cache = place.path().join("given");
    command.env("LORIKEET_CACHE_DIR", &cache);
    let (code, text, ..) = run(command);
    assert_eq!(code, 0, "{text}");
    assert!(text.contains(&format!("cache         {}\n", cache.display())), "{text}");
}

#[test]
fn a_cache_that_cannot_be_written_is_missing() {
    let place = Place::with_doctor(FINDS_ALL);
    let mut command = place.lorikeet(&["doctor"]);
    command.env("LORIKEET_CACHE_DIR", place.path().join("config.json/below a file"));
    let (code, text, ..) = run(command);
    assert_eq!(code, 1, "{text}");
    for part in
        ["missing       the cache /", "cannot be written: ", ": set LORIKEET_CACHE_DIR to a directory"]
    {
        assert!(text.contains(part), "{text} lacks {part}");
    }
}

#[test]
fn what_is_missing_comes_with_its_mend() {
    for (behaviour, code, part) in [
        (FINDS_NO_COMPILER, 0, "note          kernels: reference: install g++"),
        (FINDS_NO_GGUF, 1, "missing       gguf: not installed: pip install gguf"),
        (BROKEN, 1, "No module named lorikeet_server"),
    ] {
        let (actual, text) = doctor(behaviour, &[]);
        assert_eq!(actual, code, "{text}");
        assert!(text.contains(part), "{text} lacks {part}");
    }
    let (code, text) = doctor(FINDS_ALL, &["--python", "/no/such/python"]);
    assert_eq!(code, 1);
    assert!(text.contains("no Python at /no/such/python"), "{text}");
}

/// On PyPI `lorikeet` is a package of somebody else.
#[test]
fn nobody_is_told_to_install_another_lorikeet() {
    for (behaviour, flags) in [(BROKEN, &[][..]), (FINDS_ALL, &["--python", "/no/such/python"])] {
        let (_, text) = doctor(behaviour, flags);
        assert!(text.contains("make setup") && !text.contains("install lorikeet"), "{text}");
    }
}
