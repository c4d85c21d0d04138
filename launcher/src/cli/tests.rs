use super::*;

fn serve(flags: &[&str]) -> ServeArgs {
    serve_model("m", flags)
}

fn serve_model(model: &str, flags: &[&str]) -> ServeArgs {
    let argv = ["lorikeet", "serve", "--model-id", model]
        .into_iter()
        .chain(flags.iter().copied())
        .map(OsString::from);
    match parse(argv).unwrap().command {
        Command::Serve(args) => *args,
        other => panic!("{other:?}"),
    }
}

fn refused(flags: &[&str]) -> String {
    let argv = ["lorikeet"].into_iter().chain(flags.iter().copied()).map(OsString::from);
    one_line(&parse(argv).unwrap_err())
}

#[test]
fn the_command_line_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn a_model_may_carry_its_revision() {
    let args = serve_model("org/model@v1.2", &[]);
    assert_eq!((args.model_id.name.as_str(), args.revision()), ("org/model", Some("v1.2")));
    assert_eq!(serve(&["--revision", "main"]).revision(), Some("main"));
    assert_eq!(serve_model("/models/a@b/c", &[]).model_id.revision, None, "a path is left whole");
}

#[test]
fn the_routers_flags_are_taken_and_handed_on_as_given() {
    let flags = [
        "--max-total-tokens",
        "512",
        "--disable-prefix-cache",
        "--cors-allow-origin",
        "a,b",
        "--drain-timeout",
        "2.5",
    ];
    let args = serve(&flags);
    let mut argv: Vec<_> = args.router.argv().iter().map(|arg| arg.to_str().unwrap()).collect();
    argv.sort_unstable();
    let mut expected = vec![
        "--max-total-tokens",
        "512",
        "--disable-prefix-cache",
        "--cors-allow-origin",
        "a",
        "--cors-allow-origin",
        "b",
        "--drain-timeout",
        "2.5",
    ];
    expected.sort_unstable();
    assert_eq!(argv, expected);
    assert!(serve(&["--port", "1"]).router.argv().is_empty(), "what both need is written by the plan");
}

#[test]
fn complaints_fit_on_one_line_and_name_the_flag() {
    for (flags, parts) in [
        (&["serve"][..], &["--model-id"][..]),
        (&["serve", "--model-id", "m", "--prot", "1"], &["--prot", "--port"]),
        (&["serve", "--model-id", "m", "--port", "70000"], &["--port", "70000"]),
        (&["serve", "--model-id", "m", "--dtype", "int3"], &["--dtype", "int3", "bfloat16"]),
        (&["serve", "--model-id", "m", "--num-shard", "0"], &["--num-shard", "1..=64"]),
        (&["serve", "--model-id", "m", "--log-level", "loud"], &["--log-level", "debug"]),
        (&["serve", "--model-id", "m", "--threads-per-shard", "0"], &["--threads-per-shard", "1 to 1024"]),
        (&["serve", "--model-id", "m", "--tokenizer-path", "x"], &["--tokenizer-path"]),
        (&["serve", "--model-id", "m", "--max-total-tokens", "many"], &["--max-total-tokens", "many"]),
        (&["sevre"], &["sevre", "serve"]),
    ] {
        let line = refused(flags);
        assert!(!line.contains('\n') && line.starts_with("error: "), "{line:?}");
        for part in parts {
            assert!(line.contains(part), "{line:?} lacks {part}");
        }
    }
}
