use clap::Parser;

use super::*;
use crate::check;
use crate::cli::{Cli, Command};

fn args(flags: &[&str]) -> ServeArgs {
    let argv = ["lorikeet", "serve", "--model-id", "org/m@r1"].iter().chain(flags);
    match Cli::try_parse_from(argv).unwrap().command {
        Command::Serve(args) => *args,
        other => panic!("{other:?}"),
    }
}

fn host() -> Host {
    Host {
        executable: "/bin/lorikeet".into(),
        python: "/bin/python".into(),
        cores: 8,
        granted_gpus: None,
        cache_dir: "/cache".into(),
    }
}

#[derive(Parser)]
struct Router {
    #[command(flatten)]
    config: Config,
}

fn run(args: &ServeArgs, address: &str) -> Run {
    let router =
        ["router", "--model-id", "m", "--tokenizer-path", "t", "--shard-socket", "s", "--drain-timeout", "7"];
    Run {
        prepared: Prepared {
            model_id: "org/m".into(),
            model_path: "/models/m.gguf".into(),
            tokenizer_path: "/cache/tokenizers/m".into(),
        },
        directory: "/run/lorikeet-x".into(),
        address: (args.rank == 0).then(|| address.parse().unwrap()),
        ranks: Ranks::of(args, shard_count(args, &host())).unwrap(),
        config: Router::parse_from(router).config,
    }
}

fn planned(flags: &[&str]) -> Plan {
    let args = args(flags);
    plan(&args, &host(), &run(&args, "127.0.0.1:3000"))
}

fn router_of(plan: &Plan) -> &RouterPlan {
    plan.router.as_ref().unwrap()
}

/// The values of a flag.
fn values(spec: &ProcessSpec, flag: &str) -> Vec<String> {
    let pairs = spec.args.windows(2).filter(|pair| pair[0] == flag);
    pairs.map(|pair| pair[1].to_string_lossy().into_owned()).collect()
}

fn variable(spec: &ProcessSpec, name: &str) -> Option<String> {
    spec.env.iter().find(|(key, _)| *key == name).map(|(_, value)| value.to_string_lossy().into_owned())
}

#[test]
fn one_shard_and_the_router() {
    let plan =
        planned(&["--adapter-root", "/a", "--adapter-root", "/b", "--dtype", "float32", "--device", "cpu"]);
    let [shard] = &plan.shards[..] else { panic!("{} shards", plan.shards.len()) };
    assert_eq!(shard.program, Path::new("/bin/python"));
    assert_eq!(shard.args[..3], ["-m", "lorikeet_server", "serve"]);
    for (flag, value) in [
        ("--model-path", "/models/m.gguf"),
        ("--model-id", "org/m"),
        ("--uds-path", "/run/lorikeet-x/shard-0"),
        ("--dtype", "float32"),
        ("--device", "cpu"),
        ("--store-dir", "/cache/adapters"),
        ("--disk-bytes", "68719476736"),
        ("--max-lora-rank", "512"),
    ] {
        assert_eq!(values(shard, flag), [value], "{flag}");
    }
    assert_eq!(values(shard, "--adapter-root"), ["/a", "/b"]);
    assert!(shard.args.contains(&"--json-output".into()), "levels of records must not be lost");

    let router = &router_of(&plan).process;
    assert_eq!(router.program, Path::new("/bin/lorikeet"));
    assert_eq!(router.args[0], "router");
    for (flag, value) in [
        ("--hostname", "127.0.0.1"),
        ("--port", "3000"),
        ("--shard-socket", "/run/lorikeet-x/shard-0"),
        ("--tokenizer-path", "/cache/tokenizers/m"),
        ("--model-id", "org/m"),
    ] {
        assert_eq!(values(router, flag), [value], "{flag}");
    }
    assert_eq!(plan.drain_deadline, Duration::from_secs(11));
    assert_eq!(plan.max_restarts, 5);
}

/// A launcher and shards that each looked for themselves put kernels below a HOME that could not be written, whatever
/// --cache-dir said.
#[test]
fn whoever_caches_is_told_where() {
    let args = args(&["--cache-dir", "/c"]);
    let host = Host { cache_dir: check::cache_dir(&args).unwrap(), ..host() };
    let (prepare, plan) = (prepare(&args, &host), plan(&args, &host, &run(&args, "127.0.0.1:3000")));
    for spec in [&prepare, &plan.shards[0]] {
        assert_eq!(variable(spec, "LORIKEET_CACHE_DIR").as_deref(), Some("/c"));
    }
    assert_eq!(values(&prepare, "--cache-dir"), ["/c"]);
    assert_eq!(values(&plan.shards[0], "--store-dir"), ["/c/adapters"]);
}

#[test]
fn the_rank_of_adapters_is_bounded_where_they_are_checked() {
    let args = args(&["--max-lora-rank", "16"]);
    let mut run = run(&args, "127.0.0.1:3000");
    run.config.adapters.max_lora_rank = 16;
    let plan = plan(&args, &host(), &run);
    assert_eq!(values(&plan.shards[0], "--max-lora-rank"), ["16"]);
    assert_eq!(values(&router_of(&plan).process, "--max-lora-rank"), ["16"]);
}

#[test]
fn ranks_know_each_other_and_share_the_cores() {
    let flags = ["--num-shard", "2", "--master-addr", "10.0.0.1", "--master-port", "29500"];
    let plan = planned(&[&flags[..], &["--max-shard-restarts", "3"]].concat());
    for (rank, shard) in plan.shards.iter().enumerate() {
        for (name, value) in [
            ("RANK", rank.to_string().as_str()),
            ("LOCAL_RANK", rank.to_string().as_str()),
            ("LOCAL_WORLD_SIZE", "2"),
            ("WORLD_SIZE", "2"),
            ("MASTER_ADDR", "10.0.0.1"),
            ("MASTER_PORT", "29500"),
            ("OMP_NUM_THREADS", "4"),
        ] {
            assert_eq!(variable(shard, name).as_deref(), Some(value), "{name}");
        }
    }
    assert_eq!(
        values(&router_of(&plan).process, "--shard-socket"),
        ["/run/lorikeet-x/shard-0", "/run/lorikeet-x/shard-1"]
    );
    assert_eq!(plan.sockets.len(), 2);
    assert_eq!(plan.max_restarts, 3);
    assert_eq!((plan.meet_at, planned(&["--num-shard", "2"]).meet_at), (None, Some("127.0.0.1".into())));
    assert_eq!(planned(&[]).meet_at, None, "one rank meets nobody");
    let few = planned(&["--num-shard", "2", "--threads-per-shard", "1"]);
    assert_eq!(variable(&few.shards[0], "OMP_NUM_THREADS").as_deref(), Some("1"));
}

#[test]
fn a_machine_without_rank_0_has_its_shards_and_no_router() {
    let flags =
        ["--num-shard", "2", "--world-size", "4", "--master-addr", "10.0.0.1", "--master-port", "29500"];
    let leader = planned(&flags);
    assert_eq!(values(&router_of(&leader).process, "--shard-socket").len(), 2, "rank 0 tells of the others");
    let follower = planned(&[&flags[..], &["--rank", "2"]].concat());
    assert_eq!(follower.router, None);
    for (plan, first) in [(&leader, 0), (&follower, 2)] {
        assert!(plan.span_machines);
        for (local_rank, shard) in plan.shards.iter().enumerate() {
            let rank = first + local_rank;
            assert_eq!(shard.role, Role::Shard(rank as u32));
            assert_eq!(values(shard, "--uds-path"), [format!("/run/lorikeet-x/shard-{rank}")]);
            for (name, value) in [
                ("RANK", rank.to_string().as_str()),
                ("LOCAL_RANK", local_rank.to_string().as_str()),
                ("LOCAL_WORLD_SIZE", "2"),
                ("WORLD_SIZE", "4"),
                ("MASTER_ADDR", "10.0.0.1"),
                ("MASTER_PORT", "29500"),
                ("OMP_NUM_THREADS", "4"),
            ] {
                assert_eq!(variable(shard, name).as_deref(), Some(value), "{name}");
            }
        }
    }
}

#[test]
fn ranks_default_to_the_granted_gpus() {
    let with = |granted_gpus, flags| shard_count(&args(flags), &Host { granted_gpus, ..host() });
    assert_eq!(with(None, &[]), 1);
    assert_eq!(with(Some(4), &[]), 4);
    assert_eq!(with(Some(4), &["--num-shard", "2"]), 2);
    assert_eq!(with(Some(4), &["--device", "cpu"]), 1);
    assert_eq!(with(Some(0), &[]), 1);
}

#[test]
fn settings_reach_the_process_that_needs_them() {
    let flags = [
        "--json-output",
        "--log-level",
        "debug",
        "--store-dir",
        "/store",
        "--huggingface-hub-cache",
        "/hub",
        "--max-total-tokens",
        "99",
    ];
    let plan = planned(&flags);
    let router = &router_of(&plan).process;
    assert!(router.args.contains(&"--json-output".into()));
    assert_eq!(values(router, "--max-total-tokens"), ["99"]);
    assert_eq!(variable(router, "LOG_LEVEL").as_deref(), Some("debug"));
    let shard = &plan.shards[0];
    assert_eq!(variable(shard, "LOG_LEVEL").as_deref(), Some("debug"));
    assert_eq!(variable(shard, "HF_HUB_CACHE").as_deref(), Some("/hub"));
    assert_eq!(values(shard, "--store-dir"), ["/store"]);

    let prepare = prepare(&args(&flags), &host());
    assert_eq!(prepare.args[..3], ["-m", "lorikeet_server", "prepare"]);
    assert_eq!(values(&prepare, "--model-id"), ["org/m"]);
    assert_eq!(values(&prepare, "--revision"), ["r1"]);
    assert!(values(&prepare, "--cache-dir").is_empty());
    assert_eq!(variable(&prepare, "HF_HUB_CACHE").as_deref(), Some("/hub"));
}

#[test]
fn a_wildcard_is_asked_at_the_loopback() {
    let args = args(&[]);
    let at = |address| router_of(&plan(&args, &host(), &run(&args, address))).address.to_string();
    assert_eq!(at("0.0.0.0:80"), "127.0.0.1:80");
    assert_eq!(at("[::]:80"), "[::1]:80");
    assert_eq!(at("10.1.2.3:80"), "10.1.2.3:80");
}

/// A random.py beside somebody's notebooks was taken for Python's own, and the server did not start.
#[test]
fn python_takes_no_module_from_where_serve_is_started() {
    for spec in [&prepare(&args(&[]), &host()), &planned(&[]).shards[0]] {
        assert_eq!(variable(spec, "PYTHONSAFEPATH").as_deref(), Some("1"));
    }
}
