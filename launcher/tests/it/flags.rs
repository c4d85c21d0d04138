//! What is wrong with the command line is told on one line, at once, before anything is started.

use std::net::TcpListener;
use std::time::Duration;

use crate::support::{Place, SLEEPS, run};

/// Runs `lorikeet` with arguments that must be refused, and returns the one line it prints.
fn refused(place: &Place, arguments: &[&str], code: i32) -> String {
    let (actual, out, err, took) = run(place.lorikeet(arguments));
    assert_eq!((actual, out.as_str()), (code, ""), "{arguments:?}: {err}");
    assert!(took < Duration::from_secs(2), "{arguments:?} took {took:?}");
    assert_eq!(err.lines().count(), 1, "{err}");
    assert!(err.starts_with("error: "), "{err}");
    assert!(place.shards().is_empty());
    err
}

/// A router that gets as far as its tokenizer, whoever has the default port.
const NO_TOKENIZER: [&str; 9] = [
    "router",
    "--model-id",
    "m",
    "--port",
    "0",
    "--tokenizer-path",
    "/no/such",
    "--shard-socket",
    "/no/such",
];

#[test]
fn bad_values_name_the_flag_and_the_bound() {
    let place = Place::new(SLEEPS);
    for (flags, parts) in [
        (&["--no-such-flag"][..], &["--no-such-flag"][..]),
        (&["--port", "99999"], &["--port", "99999"]),
        (&["--port"], &["--port"]),
        (&["--dtype", "int3"], &["--dtype", "int3", "float16"]),
        (&["--device", "tpu"], &["--device", "tpu", "cuda"]),
        (&["--num-shard", "0"], &["--num-shard", "0", "1..=64"]),
        (&["--world-size", "0"], &["--world-size", "0", "1..=1024"]),
        (&["--rank", "-1"], &["--rank", "-1"]),
        (&["--threads-per-shard", "none"], &["--threads-per-shard", "1 to 1024"]),
        (&["--max-shard-restarts", "-1"], &["--max-shard-restarts"]),
        (&["--master-port", "x"], &["--master-port"]),
        (&["--log-level", "loud"], &["--log-level", "debug"]),
        (&["--max-total-tokens", "many"], &["--max-total-tokens", "many"]),
        (&["--max-active-adapters", "-1"], &["--max-active-adapters"]),
        (&["--shard-uds-path", "x", "--shard-uds-path", "y"], &["--shard-uds-path"]),
        (&["--cache-dir", "a", "--huggingface-hub-cache", "b"], &["--cache-dir", "--huggingface-hub-cache"]),
    ] {
        let line = refused(&place, &[&["serve", "--model-id", "m"], flags].concat(), 2);
        for part in parts {
            assert!(line.contains(part), "{line} lacks {part}");
        }
    }
    assert!(refused(&place, &["serve"], 2).contains("--model-id"));
    assert!(refused(&place, &["sevre"], 2).contains("serve"));
}

#[test]
fn values_that_cannot_work_name_the_flag_and_the_mend() {
    let place = Place::new(SLEEPS);
    let deep = place.path().join("d".repeat(90));
    std::fs::create_dir(&deep).unwrap();
    let file = place.path().join("config.json");
    let (deep, file) = (deep.to_str().unwrap(), file.to_str().unwrap());
    for (flags, parts) in [
        (
            &["--adapter-root", "/no/such/root"][..],
            &["--adapter-root /no/such/root", "existing directory"][..],
        ),
        (&["--adapter-root", file], &["--adapter-root", "existing directory"]),
        (&["--hostname", "not an address"], &["--hostname not an address"]),
        (&["--hostname", "192.0.2.1"], &["--hostname 192.0.2.1", "127.0.0.1"]),
        (&["--shard-uds-path", "/no/such/place"], &["--shard-uds-path /no/such/place"]),
        (&["--shard-uds-path", deep], &["--shard-uds-path", "shorter"]),
        (&["--python", "/no/such/python"], &["--python /no/such/python"]),
        (&["--revision", "a", "--model-id", "m@b"], &["--revision", "--model-id"]),
        (&["--rank", "1", "--num-shard", "1"], &["--rank 1", "--num-shard 1", "--world-size"]),
        (&["--num-shard", "1", "--world-size", "2"], &["--world-size 2", "--num-shard 1", "--master-addr"]),
        (
            &["--num-shard", "1", "--world-size", "2", "--master-addr", "127.0.0.1"],
            &["--world-size 2", "--num-shard 1", "--master-port"],
        ),
        (&["--num-shard", "2", "--master-addr", "192.0.2.1"], &["--master-addr 192.0.2.1", "rank 0"]),
        (
            &["--max-input-length", "100", "--max-total-tokens", "50"],
            &["--max-input-length", "--max-total-tokens"],
        ),
        (&["--max-best-of", "0"], &["--max-best-of", "at least 1"]),
        (
            &["--termination-grace-period", "30"],
            &["--termination-grace-period 30", "--drain-timeout 30", "give --drain-timeout 20", "to 40"],
        ),
        (
            &["--termination-grace-period", "5", "--drain-timeout", "0.5", "--lame-duck-timeout", "0"],
            &["--termination-grace-period 5", "--drain-timeout 0.5", "raise the period to 10.5"],
        ),
        // Enough time: the next thing that is wrong is told.
        (
            &["--termination-grace-period", "30", "--drain-timeout", "20", "--hostname", "192.0.2.1"],
            &["--hostname 192.0.2.1"],
        ),
    ] {
        let model: &[&str] = if flags.contains(&"--model-id") { &[] } else { &["--model-id", "m"] };
        let line = refused(&place, &[&["serve", "--port", "0"], model, flags].concat(), 1);
        for part in parts {
            assert!(line.contains(part), "{line} lacks {part}");
        }
    }
}

#[test]
fn a_model_that_cannot_be_read_is_named() {
    let place = Place::new(SLEEPS);
    let at = |name: &str| place.path().join(name).to_str().unwrap().to_owned();
    std::fs::create_dir(at("empty")).unwrap();
    for (directory, names) in
        [("mute", &["config.json"][..]), ("weightless", &["config.json", "tokenizer.json"])]
    {
        std::fs::create_dir(at(directory)).unwrap();
        for name in names {
            std::fs::write(place.path().join(directory).join(name), "{}").unwrap();
        }
    }
    std::fs::write(at("text.gguf"), "not a model").unwrap();
    for (model, part) in [
        (at("missing"), "No such file"),
        (at("empty"), "config.json"),
        (at("mute"), "tokenizer.json"),
        (at("weightless"), "safetensors"),
        (at("text.gguf"), "no GGUF file"),
        ("./missing.gguf".to_owned(), "No such file"),
        (String::new(), "empty"),
    ] {
        let line = refused(&place, &["serve", "--port", "0", "--model-id", &model], 1);
        assert!(line.contains("--model-id") && line.contains(part), "{line}");
    }
}

#[test]
fn ports_in_use_are_named() {
    let place = Place::new(SLEEPS);
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let line = refused(&place, &["serve", "--model-id", "m", "--port", &port], 1);
    assert!(line.contains(&format!("--port {port} is in use")), "{line}");
    let line = refused(
        &place,
        &["serve", "--model-id", "m", "--port", "0", "--num-shard", "2", "--master-port", &port],
        1,
    );
    assert!(line.contains(&format!("--master-port {port} is in use")), "{line}");
}

#[test]
fn the_environment_sets_flags_and_is_checked_too() {
    let place = Place::new(SLEEPS);
    let mut command = place.lorikeet(&["serve", "--model-id", "m"]);
    command.env("PORT", "many");
    let (code, _, err, _) = run(command);
    assert_eq!(code, 2);
    assert!(err.contains("--port") && err.contains("many"), "{err}");
    // Each of several roots is checked by itself.
    let mut command = place.lorikeet(&["serve", "--model-id", "m"]);
    command.env("ADAPTER_ROOT", format!("{},/no/such/root", place.path().display()));
    let (code, _, err, _) = run(command);
    assert_eq!(code, 1);
    assert!(err.starts_with("error: --adapter-root /no/such/root: "), "{err}");
}

#[test]
fn the_last_line_is_a_record_where_records_are_json() {
    let place = Place::new(SLEEPS);
    for (arguments, error) in [
        (&["serve", "--model-id", "m", "--adapter-root", "/no/such"][..], "--adapter-root /no/such: "),
        (&["serve", "--model-id", "m", "--max-best-of", "0"], "--max-best-of is 0, "),
        (&NO_TOKENIZER, "cannot use --tokenizer-path: "),
    ] {
        let (code, _, err, _) = run(place.lorikeet(&[arguments, &["--json-output"]].concat()));
        let last = err.lines().last().unwrap();
        let record: serde_json::Value = serde_json::from_str(last).unwrap();
        assert_eq!((code, &record["level"]), (1, &"ERROR".into()), "{err}");
        assert!(record["message"].as_str().unwrap().starts_with(error), "{err}");
        assert!(record["timestamp"].as_str().unwrap().ends_with('Z'), "{err}");
    }
}

#[test]
fn switches_are_set_by_the_environment_as_people_write_them() {
    let place = Place::new(SLEEPS);
    let switches = ["JSON_OUTPUT", "DISABLE_PREFIX_CACHE", "DISABLE_VLLM_METRICS"];
    for arguments in [&["serve", "--model-id", "m", "--adapter-root", "/no/such"][..], &NO_TOKENIZER] {
        for value in ["1", "yes", "true", "0", "off"] {
            let mut command = place.lorikeet(arguments);
            command.envs(switches.map(|switch| (switch, value)));
            let (code, _, err, _) = run(command);
            let refused = err.contains("--adapter-root") || err.contains("--tokenizer-path");
            assert!(code == 1 && refused, "{arguments:?} {value}: {code}: {err}");
        }
        for switch in switches {
            let mut command = place.lorikeet(arguments);
            command.env(switch, "maybe");
            let (code, _, err, _) = run(command);
            assert!(code == 2 && err.contains("maybe"), "{arguments:?} {switch}: {code}: {err}");
        }
    }
}

#[test]
fn a_model_that_cannot_be_prepared_is_told_in_its_own_words() {
    for words in ["no such model on the hub", "--model-id m: no such model on the hub"] {
        let prepare = format!(r#"echo '{{"level": "ERROR", "message": "{words}"}}' >&2; exit 1"#);
        let place = Place::with_prepare(SLEEPS, &prepare);
        let mut server = place.serve(&[]);
        assert_eq!(server.wait().code(), Some(1));
        let told = server.log.last().map(String::as_str);
        assert_eq!(told, Some("error: --model-id m: no such model on the hub"), "the flag is named once");
    }
}

#[test]
fn download_only_prints_where_the_model_is() {
    let place = Place::new(SLEEPS);
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    // A server beside it may have the port, and the machine that is to serve the GPU.
    let flags = ["serve", "--model-id", "m", "--port", &port, "--device", "cuda", "--download-only"];
    let (code, out, err, _) = run(place.lorikeet(&flags));
    assert_eq!(code, 0, "{err}");
    assert_eq!(out.trim_end(), place.path().to_str().unwrap());
    assert!(place.shards().is_empty());
}

#[test]
fn help_and_version_are_data() {
    let place = Place::new(SLEEPS);
    let (code, out, err, _) = run(place.lorikeet(&["--version"]));
    assert_eq!(
        (code, out.as_str(), err.as_str()),
        (0, concat!("lorikeet ", env!("CARGO_PKG_VERSION"), "\n"), "")
    );
    let (code, out, err, _) = run(place.lorikeet(&["serve", "--help"]));
    assert_eq!((code, err.as_str()), (0, ""));
    for flag in ["--model-id", "--adapter-root", "--num-shard", "--max-total-tokens", "--drain-timeout"] {
        assert!(out.contains(flag), "{flag} is missing in the help");
    }
    assert!(!out.contains("--tokenizer-path"), "what the launcher finds out is no flag of serve");
}
