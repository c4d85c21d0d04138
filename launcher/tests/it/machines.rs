//! A launcher on a machine without rank 0: shards, and no router.

use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};

use crate::support::{Place, SLEEPS, assert_gone, children, until};

const SECOND: [&str; 10] = [
    "--world-size",
    "2",
    "--rank",
    "1",
    "--num-shard",
    "1",
    "--master-addr",
    "192.0.2.1",
    "--master-port",
    "29500",
];

#[test]
fn shards_are_kept_running_until_rank_0_has_drained() {
    let place = Place::new(SLEEPS);
    let mut server = place.serve(&SECOND);
    let first = server.wait_for_shards(1)[0];
    assert_eq!(first.0, 1);
    server.wait_for_line("rank 1 of 2");
    server.wait_for_line("rank 0, at 192.0.2.1, answers requests");
    assert_eq!(children(server.pid()), [first.1], "no router");
    kill(first.1, Signal::SIGKILL).unwrap();
    let second = server.wait_for_shards(2)[1].1;
    server.wait_for_line("shard 1 ended (signal: 9 (SIGKILL)); all shards start again in 0.5 s");

    server.signal(Signal::SIGTERM);
    server.wait_for_line("finishing what is in flight");
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(children(server.pid()), [second], "requests of rank 0 may need it");
    // As the shard does by itself when rank 0 has gone.
    kill(second, Signal::SIGKILL).unwrap();
    assert_eq!(server.wait().code(), Some(0));
    assert_eq!(place.run_directory().read_dir().unwrap().count(), 0);
}

#[test]
fn ctrl_c_and_the_end_of_a_drains_time_end_the_shards() {
    for (signal, flags, least) in [
        (Signal::SIGINT, &[][..], Duration::ZERO),
        (Signal::SIGTERM, &["--drain-timeout", "0", "--lame-duck-timeout", "0"], Duration::from_secs(4)),
    ] {
        let place = Place::new(SLEEPS);
        let mut server = place.serve(&[&SECOND[..], flags].concat());
        let shard = server.wait_for_shards(1)[0].1;
        server.wait_for_line("answers requests");
        let told = Instant::now();
        server.signal(signal);
        assert_eq!(server.wait().code(), Some(0));
        assert!(told.elapsed() >= least && told.elapsed() < least + Duration::from_secs(4));
        assert_gone(&[shard]);
    }
}

#[test]
fn machines_that_are_late_are_waited_for_and_refused_settings_are_not() {
    let late = Place::new("exit 1");
    let mut server = late.serve(&SECOND);
    until("another try", || (late.shards().len() >= 2).then_some(()));
    server.wait_for_line("all shards start again in 1.0 s"); // there is none until then to be waited for
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait().code(), Some(0));

    let refused = Place::new(r#"echo '{"level": "ERROR", "message": "no such model"}' >&2; exit 64"#);
    let mut server = refused.serve(&SECOND);
    assert_eq!(server.wait().code(), Some(1));
    let last = server.log.last().unwrap();
    assert!(last.starts_with("error: shard 1 ended (exit status: 64): no such model"), "{last}");
    assert_eq!(refused.shards().len(), 1);
}

#[test]
fn ranks_that_lack_others_use_up_no_restarts() {
    let place = Place::new("exit 75");
    let mut server = place.serve(&[&SECOND[..], &["--max-shard-restarts", "1"]].concat());
    until("a fourth try", || (place.shards().len() >= 4).then_some(()));
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait().code(), Some(0));

    // Whom a single machine lacks, it has lost itself.
    let alone = Place::new("until [ $(wc -l < $PLACE/shards) = 2 ]; do :; done; exit 75");
    let mut server = alone.serve(&["--num-shard", "2"]);
    assert_eq!(server.wait().code(), Some(1));
    assert_eq!(alone.shards().len(), 2);
}
