//! Processes start, die, restart and end together, and none is ever left behind.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use crate::support::{Place, SLEEPS, assert_gone, children, is_alive, until};
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

fn pids(shards: &[(u32, Pid)]) -> Vec<Pid> {
    shards.iter().map(|(_, pid)| *pid).collect()
}

#[test]
fn a_dead_rank_restarts_the_whole_group() {
    let place = Place::new(SLEEPS);
    let mut server = place.serve(&["--num-shard", "2"]);
    let first = server.wait_for_shards(2);
    let router = server.wait_for_router();
    let rank_1 = first.iter().find(|(rank, _)| *rank == 1).unwrap().1;
    kill(rank_1, Signal::SIGKILL).unwrap();

    let all = server.wait_for_shards(4);
    assert_gone(&pids(&first));
    let mut ranks: Vec<_> = all[2..].iter().map(|(rank, _)| *rank).collect();
    ranks.sort_unstable();
    assert_eq!(ranks, [0, 1]);
    assert!(all[2..].iter().all(|(_, pid)| is_alive(*pid)));
    assert!(is_alive(router), "the router waits for the new group");
    server.wait_for_line("shard 1 ended (signal: 9 (SIGKILL))");
}

#[test]
fn ranks_meet_elsewhere_once_their_port_is_taken() {
    let place = Place::new("echo $MASTER_PORT >> $PLACE/ports; exec sleep 600");
    let server = place.serve(&["--num-shard", "2"]);
    let ports = |count| {
        until("ports", || {
            let text = std::fs::read_to_string(place.path().join("ports")).ok()?;
            let ports: Vec<u16> = text.lines().map(|line| line.parse().unwrap()).collect();
            (ports.len() >= count).then_some(ports)
        })
    };
    let first = ports(2);
    let _other = TcpListener::bind(("127.0.0.1", first[0])).unwrap();
    kill(server.wait_for_shards(2)[0].1, Signal::SIGKILL).unwrap();
    let all = ports(4);
    assert!(all[0] == all[1] && all[2] == all[3] && all[0] != all[2], "{all:?}");
}

#[test]
fn who_was_killed_counts_and_not_who_ended_for_that_reason() {
    let place = Place::new(
        "if [ $RANK = 0 ]; then while [ ! -e $PLACE/lost ]; do sleep 0.05; done; exit 1; fi; exec sleep 600",
    );
    let mut server = place.serve(&["--num-shard", "2"]);
    let first = server.wait_for_shards(2);
    // A launcher that is slow finds both at once.
    server.signal(Signal::SIGSTOP);
    kill(first.iter().find(|(rank, _)| *rank == 1).unwrap().1, Signal::SIGKILL).unwrap();
    std::fs::write(place.path().join("lost"), "").unwrap();
    until("both to end", || first.iter().all(|(_, pid)| !is_alive(*pid)).then_some(()));
    std::fs::remove_file(place.path().join("lost")).unwrap();
    server.signal(Signal::SIGCONT);
    server.wait_for_line("shard 1 ended (signal: 9 (SIGKILL)); all shards start again");
    server.wait_for_shards(4);
}

#[test]
fn a_log_that_cannot_be_written_ends_nothing() {
    let place = Place::new(SLEEPS);
    let full = std::fs::File::create("/dev/full").unwrap();
    let mut server = place.serve_with_log(&[], full);
    let first = server.wait_for_shards(1);
    let router = server.wait_for_router();
    kill(first[0].1, Signal::SIGKILL).unwrap();
    server.wait_for_shards(2);
    assert!(is_alive(router));
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait().code(), Some(0));

    let mut refused = place.serve_with_log(&["--no-such-flag"], std::fs::File::create("/dev/full").unwrap());
    assert_eq!(refused.wait().code(), Some(2));
}

#[test]
fn a_log_that_nobody_reads_holds_nothing_up() {
    // Thirty times what a pipe and the launcher hold.
    let place = Place::new(
        r"i=0; while [ $i -lt 500 ]; do i=$((i+1)); printf '%0300000d\n' $i >&2; done; touch $PLACE/logged; exec sleep 600",
    );
    let (reader, log) = std::io::pipe().unwrap();
    let mut server = place.serve_with_log(&[], log);
    let shards = server.wait_for_shards(1);
    server.wait_for_router();
    until("the shard to have logged", || place.path().join("logged").exists().then_some(()));

    // Who comes back reads that something is missing.
    let (sender, lines) = channel();
    std::thread::spawn(move || {
        BufReader::new(reader).lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
    });
    let missing = lines.iter().find(|line| line.contains("log records are missing here"));
    assert!(missing.unwrap().contains("WARN"));
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait().code(), Some(0));
    assert_gone(&pids(&shards));
    assert!(lines.iter().last().unwrap().contains("ended in order"));
}

#[test]
fn the_end_waits_for_the_logs_reader_but_not_for_ever() {
    let place = Place::new("kill -9 $$");
    let (mut reader, log) = std::io::pipe().unwrap();
    let mut filler = log.try_clone().unwrap();
    // The pipe is full before the first record.
    let room = fcntl(&log, FcntlArg::F_GETPIPE_SZ).unwrap();
    filler.write_all(&vec![b'\n'; usize::try_from(room).unwrap()]).unwrap();
    drop(filler);
    let mut server = place.serve_with_log(&["--max-shard-restarts", "0"], log);
    assert_eq!(server.wait().code(), Some(1));
    let mut log = String::new();
    reader.read_to_string(&mut log).unwrap();
    assert_eq!(log.trim(), "");
}

#[test]
fn a_group_that_keeps_dying_is_given_up() {
    let place = Place::new("kill -9 $$");
    let started = Instant::now();
    let mut server = place.serve(&["--max-shard-restarts", "2"]);
    assert_eq!(server.wait().code(), Some(1));
    let last = server.log.last().unwrap();
    assert!(
        last.starts_with("error: shard 0 ended (signal: 9") && last.contains("--max-shard-restarts 2"),
        "{last}"
    );
    assert_eq!(place.shards().len(), 3);
    assert!(started.elapsed() >= Duration::from_millis(1500), "0.5 s and 1 s are waited between the starts");
    assert_eq!(place.run_directory().read_dir().unwrap().count(), 0);
}

#[test]
fn a_shard_that_refuses_to_start_ends_the_server_at_once() {
    let place = Place::new(r#"echo '{"level": "ERROR", "message": "no kernels"}' >&2; exit 3"#);
    let mut server = place.serve(&[]);
    assert_eq!(server.wait().code(), Some(1));
    let last = server.log.last().unwrap();
    assert!(
        last.starts_with("error: shard 0 ended (exit status: 3): no kernels (before it was ready"),
        "{last}"
    );
    assert_eq!(place.shards().len(), 1);
}

#[test]
fn sigterm_and_ctrl_c_end_in_order() {
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let place = Place::new(SLEEPS);
        let mut server = place.serve(&["--num-shard", "2"]);
        let shards = server.wait_for_shards(2);
        let router = server.wait_for_router();
        server.signal(signal);
        assert_eq!(server.wait().code(), Some(0), "{:#?}", server.log);
        assert!(!is_alive(router) && pids(&shards).iter().all(|pid| !is_alive(*pid)));
        assert_eq!(place.run_directory().read_dir().unwrap().count(), 0, "the sockets' directory is removed");
    }
}

#[test]
fn a_signal_while_the_model_is_prepared_ends_that_too() {
    for (flags, code) in [(&[][..], 0), (&["--download-only"], 1)] {
        let place = Place::with_prepare(SLEEPS, "echo $$ > $PLACE/preparing; exec sleep 600");
        let mut server = place.serve(flags);
        let preparing = until("prepare to start", || {
            Some(Pid::from_raw(
                std::fs::read_to_string(place.path().join("preparing")).ok()?.trim().parse().ok()?,
            ))
        });
        server.signal(Signal::SIGTERM);
        assert_eq!(server.wait().code(), Some(code), "who asked for the model alone has not got it");
        assert_gone(&[preparing]);
        assert!(place.shards().is_empty());
    }
}

#[test]
fn a_second_signal_kills_what_does_not_want_to_end() {
    let place = Place::new("trap '' TERM; while :; do sleep 1; done");
    let mut server = place.serve(&["--num-shard", "2"]);
    let shards = server.wait_for_shards(2);
    let router = server.wait_for_router();
    server.signal(Signal::SIGTERM);
    server.wait_for_line("a second signal ends at once");
    let started = Instant::now();
    server.signal(Signal::SIGINT);
    assert_eq!(server.wait().code(), Some(128 + Signal::SIGINT as i32));
    assert!(started.elapsed() < Duration::from_secs(2), "took {:?}", started.elapsed());
    assert!(!is_alive(router) && pids(&shards).iter().all(|pid| !is_alive(*pid)));
}

#[test]
fn shards_that_ignore_sigterm_are_killed_in_the_end() {
    let place = Place::new("trap '' TERM; while :; do sleep 1; done");
    let mut server = place.serve(&[]);
    let shards = server.wait_for_shards(1);
    server.wait_for_router();
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait().code(), Some(0));
    assert_gone(&pids(&shards));
    server.wait_for_line("is killed");
}

#[test]
fn a_killed_launcher_leaves_nothing_and_its_leftovers_harm_nothing() {
    let place = Place::new(SLEEPS);
    for round in 1..=3 {
        let mut server = place.serve(&["--num-shard", "2"]);
        server.wait_for_shards(2 * round);
        server.wait_for_router();
        let family = children(server.pid());
        assert_eq!(family.len(), 3);
        server.signal(Signal::SIGKILL);
        server.wait();
        assert_gone(&family);
        assert_eq!(
            place.run_directory().read_dir().unwrap().count(),
            1,
            "one is left, the earlier ones are removed"
        );
    }
}

#[test]
fn a_killed_router_ends_everything() {
    let place = Place::new(SLEEPS);
    let mut server = place.serve(&["--num-shard", "2"]);
    let shards = server.wait_for_shards(2);
    kill(server.wait_for_router(), Signal::SIGKILL).unwrap();
    assert_eq!(server.wait().code(), Some(1));
    assert_gone(&pids(&shards));
    assert_eq!(server.log.last().map(String::as_str), Some("error: the router ended (signal: 9 (SIGKILL))"));
}

#[test]
fn a_router_killed_while_it_drains_has_not_ended_in_order() {
    let place = Place::new(SLEEPS);
    let mut server = place.serve(&["--lame-duck-timeout", "10"]);
    let shards = server.wait_for_shards(1);
    let router = server.wait_for_router();
    std::thread::sleep(Duration::from_millis(300));
    server.signal(Signal::SIGTERM);
    server.wait_for_line("draining");
    kill(router, Signal::SIGKILL).unwrap();
    assert_eq!(server.wait().code(), Some(1));
    assert_gone(&pids(&shards));
    let last = server.log.last().unwrap();
    assert!(last.starts_with("error: the router ended (signal: 9 (SIGKILL)) before"), "{last}");
}

#[test]
fn what_a_shard_started_ends_with_it() {
    let place = Place::new("sleep 600 & echo $! > $PLACE/grandchild; wait");
    let mut server = place.serve(&[]);
    let grandchild = until("the grandchild", || {
        Some(Pid::from_raw(
            std::fs::read_to_string(place.path().join("grandchild")).ok()?.trim().parse().ok()?,
        ))
    });
    server.wait_for_router();
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait().code(), Some(0));
    assert_gone(&[grandchild]);
}

#[test]
fn records_of_shards_carry_their_rank() {
    let place = Place::new("echo 'a raw line' >&2; echo printed; exec sleep 600");
    let mut server = place.serve(&["--num-shard", "2", "--json-output"]);
    for rank in [0, 1] {
        let line = server.wait_for_line(&format!("rank {rank} of 2"));
        let record: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!((&record["shard"], &record["level"]), (&rank.into(), &"INFO".into()), "{line}");
    }
    assert!(server.wait_for_line("a raw line").contains("WARN"));
    server.wait_for_line("printed");
    server.signal(Signal::SIGTERM);
    server.wait();
    for line in &server.log {
        assert!(serde_json::from_str::<serde_json::Value>(line).is_ok(), "not JSON: {line}");
    }
}

#[test]
fn details_of_shards_are_shown_when_asked_for() {
    let place = Place::new(r#"echo '{"level": "DEBUG", "message": "detail"}' >&2; exec sleep 600"#);
    let mut quiet = place.serve(&[]);
    quiet.wait_for_line("rank 0 of 1");
    quiet.signal(Signal::SIGTERM);
    quiet.wait();
    assert!(!quiet.log.iter().any(|line| line.contains("detail")));
    place.serve(&["--log-level", "debug"]).wait_for_line("detail");
}
