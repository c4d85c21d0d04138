//! The router as a process: its listener, its connections, its signals, its end.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]

mod common;

use std::{
    env,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use common::{sim, write_tokenizer};
use lorikeet_bench::sim::{SimConfig, SimShard};
use tempfile::TempDir;

const DIRECTORY: &str = "LORIKEET_TEST_DIRECTORY";
const FLAGS: &str = "LORIKEET_TEST_FLAGS";

/// Not a test: what `Router::start` runs, in a process of its own.
#[test]
#[ignore = "run by the other tests"]
fn router_process() {
    let directory = env::var(DIRECTORY).unwrap();
    let flags = env::var(FLAGS).unwrap();
    let flags: Vec<&str> = flags.split(' ').collect();
    let config = common::config(Path::new(&directory), 1, &flags);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    if let Err(error) = runtime.block_on(lorikeet_router::run(config)) {
        eprintln!("{error}");
        std::process::exit(1);
    }
    std::process::exit(0);
}

struct Router {
    child: Child,
    port: u16,
    _directory: TempDir,
    _sim: SimShard,
}

impl Router {
    fn start(sim: SimConfig, flags: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        write_tokenizer(directory.path());
        let sim = SimShard::start(&directory.path().join("shard-0"), sim).unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let child = spawn(directory.path(), port, flags);
        let mut router = Self { child, port, _directory: directory, _sim: sim };
        router.wait_for("200");
        router
    }

    /// Until `/health` answers with this status.
    fn wait_for(&mut self, status: &str) {
        let started = Instant::now();
        while !self.health().is_some_and(|answer| answer.contains(status)) {
            assert!(started.elapsed() < Duration::from_secs(20), "never {status}");
            sleep(Duration::from_millis(20));
        }
    }

    fn health(&self) -> Option<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).ok()?;
        stream.write_all(b"GET /health HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        answer.lines().next().map(str::to_owned)
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    }

    /// Asks for a stream of tokens.
    fn stream(&self, tokens: u32) -> TcpStream {
        self.stream_with(tokens, "")
    }

    fn stream_with(&self, tokens: u32, more: &str) -> TcpStream {
        let body = format!("{{\"inputs\": \"a\", \"parameters\": {{\"max_new_tokens\": {tokens}{more}}}}}");
        let mut stream = self.connect();
        let head = "POST /generate_stream HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\nconnection: close";
        write!(stream, "{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len()).unwrap();
        stream
    }

    fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status();
        assert!(sent.unwrap().success());
    }

    fn wait(&mut self) -> ExitStatus {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(started.elapsed() < Duration::from_secs(20), "the router does not end");
            sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// With few open files allowed, of which the system would give more.
fn spawn(directory: &Path, port: u16, flags: &str) -> Child {
    Command::new("sh")
        .args(["-c", "ulimit -Sn 64 && exec \"$0\" \"$@\""])
        .arg(env::current_exe().unwrap())
        .args(["--ignored", "--exact", "router_process", "--nocapture"])
        .env(DIRECTORY, directory)
        .env(FLAGS, format!("--port {port} {flags}").trim())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn read_all(mut stream: TcpStream) -> String {
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// Waits for the first token of each.
fn begin(streams: &[TcpStream]) {
    for stream in streams {
        assert_eq!(stream.peek(&mut [0]).unwrap(), 1);
    }
}

fn slow() -> SimConfig {
    SimConfig { step_time: Duration::from_millis(10), ..sim() }
}

#[test]
fn a_drain_lets_everything_finish() {
    let mut router = Router::start(slow(), "--drain-timeout 10 --lame-duck-timeout 0.5");
    let before: Vec<_> = (0..8).map(|_| router.stream(100)).collect();
    begin(&before);
    router.signal("TERM");
    router.wait_for("503");
    // A balancer that has not noticed yet.
    let during = router.stream(5);
    for stream in before.into_iter().chain([during]) {
        let answer = read_all(stream);
        assert!(answer.contains("\"finish_reason\"") || answer.contains("\"generated_text\":\""), "{answer}");
        assert!(!answer.contains("\"error\""));
    }
    assert!(router.wait().success());
}

#[test]
fn a_drain_that_takes_too_long_tells_those_who_wait() {
    let mut router = Router::start(slow(), "--drain-timeout 0.6 --lame-duck-timeout 0.1");
    let streams: Vec<_> = (0..4).map(|_| router.stream(3000)).collect();
    begin(&streams);
    let told = Instant::now();
    router.signal("TERM");
    for stream in streams {
        let answer = read_all(stream);
        assert!(answer.contains("\"error_type\":\"overloaded\""), "{}", &answer[answer.len() - 300..]);
    }
    assert!(router.wait().success());
    assert!(told.elapsed() < Duration::from_secs(3));
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let mut router = Router::start(slow(), "--drain-timeout 30");
    let stream = [router.stream(3000)];
    begin(&stream);
    router.signal("INT");
    // It takes no connections any more once it has seen the signal.
    while router.health().is_some() {
        sleep(Duration::from_millis(10));
    }
    let again = Instant::now();
    router.signal("INT");
    assert!(!router.wait().success());
    assert!(again.elapsed() < Duration::from_secs(1));
    drop(stream);
}

#[test]
fn a_port_in_use_stops_the_start_at_once() {
    let directory = tempfile::tempdir().unwrap();
    write_tokenizer(directory.path());
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let started = Instant::now();
    let output = spawn(directory.path(), taken.local_addr().unwrap().port(), "").wait_with_output().unwrap();
    assert!(!output.status.success() && started.elapsed() < Duration::from_secs(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--port"));
}

#[test]
fn a_router_whose_driver_has_ended_ends() {
    let directory = tempfile::tempdir().unwrap();
    write_tokenizer(directory.path());
    let _sim = SimShard::start(&directory.path().join("shard-0"), sim()).unwrap();
    let output = spawn(directory.path(), 0, "--preloaded-adapter-ids nowhere/a").wait_with_output().unwrap();
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("driver"));
}

#[test]
fn connections_are_not_bounded_by_what_a_process_may_open_unasked() {
    let router = Router::start(sim(), "--header-timeout 60");
    let silent: Vec<_> = (0..100).map(|_| router.connect()).collect();
    assert!(read_all(router.stream(1)).contains("generated_text"));
    drop(silent);
}

#[test]
fn connections_that_say_nothing_useful_are_closed() {
    let router = Router::start(sim(), "--header-timeout 1 --max-header-bytes 8192");
    let started = Instant::now();
    let mut silent = router.connect();
    let mut dribbling = router.connect();
    dribbling.write_all(b"PRI * HTT").unwrap();
    let mut half = router.connect();
    half.write_all(b"POST /generate HTTP/1.1\r\nhost: a\r\nx: ").unwrap();
    let mut idle = router.connect();
    idle.write_all(b"GET /health HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
    for stream in [&mut silent, &mut dribbling, &mut half, &mut idle] {
        stream.read_to_end(&mut Vec::new()).ok();
    }
    assert!(started.elapsed() < Duration::from_secs(4), "{:?}", started.elapsed());

    let mut large = router.connect();
    let head = format!("GET /health HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n", "a".repeat(20_000));
    large.write_all(head.as_bytes()).ok();
    let mut answer = String::new();
    large.read_to_string(&mut answer).ok();
    assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
}

#[test]
fn a_reader_that_stops_is_cut_and_delays_nobody() {
    let router = Router::start(sim(), "--write-timeout 1 --request-timeout 60");
    // More than the sockets hold: each token comes with twenty others.
    let stuck: Vec<_> = (0..3).map(|_| router.stream_with(4000, ", \"return_k_alternatives\": 20")).collect();
    let started = Instant::now();
    let mut metrics = String::new();
    while !metrics.contains("lorikeet_requests_cancelled_total{adapter=\"(base)\"} 3") {
        assert!(started.elapsed() < Duration::from_secs(25), "{metrics}");
        assert!(read_all(router.stream(5)).contains("generated_text"));
        let mut stream = router.connect();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").unwrap();
        metrics = read_all(stream);
    }
    drop(stuck);
}

#[test]
fn connections_beyond_the_bound_wait_for_their_turn() {
    let router = Router::start(slow(), "--max-connections 2 --header-timeout 1");
    let places = [router.stream(60), router.stream(60)];
    begin(&places);
    let waiting = Instant::now();
    // The answer comes when one of the others is done.
    assert!(read_all(router.stream(1)).contains("generated_text"));
    assert!(waiting.elapsed() > Duration::from_millis(300), "{:?}", waiting.elapsed());
    for stream in places {
        assert!(read_all(stream).contains("generated_text"));
    }
}
