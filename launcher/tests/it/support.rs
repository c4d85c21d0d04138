//! A `lorikeet` under test whose Python is a shell script: shards that only sleep, die or refuse to end.

use std::fs::Permissions;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

/// Long enough for a loaded machine, short enough to fail a hanging test.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

const TOKENIZER: &str = r#"{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
    "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
    "model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1}, "unk_token": "a"}}"#;

/// What the script does as a shard.
pub(crate) const SLEEPS: &str = "exec sleep 600";

/// A directory with a fake Python and a fake model.
pub(crate) struct Place {
    directory: TempDir,
}

impl Place {
    /// `shard` is what a shard does after it has told its rank and process id, in shell.
    pub(crate) fn new(shard: &str) -> Self {
        Self::with_prepare(
            shard,
            r#"echo "{\"model_id\": \"$5\", \"model_path\": \"$PLACE\", \"tokenizer_path\": \"$PLACE\"}""#,
        )
    }

    pub(crate) fn with_prepare(shard: &str, prepare: &str) -> Self {
        Self::with(shard, prepare, "exit 1")
    }

    pub(crate) fn with_doctor(doctor: &str) -> Self {
        Self::with(SLEEPS, "exit 1", doctor)
    }

    fn with(shard: &str, prepare: &str, doctor: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let script = format!(
            "#!/bin/sh\nPLACE={}\ncase \"$3\" in\nprepare) {prepare};;\ndoctor) {doctor};;\nserve) echo \"$RANK $$\" >> $PLACE/shards\n\
             echo \"{{\\\"level\\\": \\\"INFO\\\", \\\"message\\\": \\\"rank $RANK of $WORLD_SIZE\\\"}}\" >&2\n{shard};;\nesac\n",
            directory.path().display()
        );
        let python = directory.path().join("python");
        std::fs::write(&python, script).unwrap();
        std::fs::set_permissions(&python, Permissions::from_mode(0o755)).unwrap();
        for (name, text) in [("tokenizer.json", TOKENIZER), ("config.json", "{}"), ("model.safetensors", "")]
        {
            std::fs::write(directory.path().join(name), text).unwrap();
        }
        std::fs::create_dir(directory.path().join("run")).unwrap();
        Self { directory }
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Where sockets go; nothing is to be left in it.
    pub(crate) fn run_directory(&self) -> PathBuf {
        self.path().join("run")
    }

    /// `lorikeet` with these arguments, seeing none of the caller's settings.
    pub(crate) fn lorikeet(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lorikeet"));
        command
            .args(arguments)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .env("HOME", self.path())
            .env("LORIKEET_PYTHON", self.path().join("python"))
            .env("SHARD_UDS_PATH", self.run_directory())
            .stdin(Stdio::null());
        command
    }

    /// Starts `lorikeet serve` on a free port.
    pub(crate) fn serve(&self, arguments: &[&str]) -> Server<'_> {
        self.serve_with_log(arguments, Stdio::piped())
    }

    /// The same with its log elsewhere; of a pipe every line is read.
    pub(crate) fn serve_with_log(&self, arguments: &[&str], log: impl Into<Stdio>) -> Server<'_> {
        let mut command = self.lorikeet(&["serve", "--model-id", "m", "--port", "0"]);
        let mut child = command.args(arguments).stderr(log).spawn().unwrap();
        let (sender, lines) = channel();
        if let Some(stderr) = child.stderr.take() {
            let mut stderr = BufReader::new(stderr).lines().map_while(Result::ok);
            std::thread::spawn(move || stderr.try_for_each(|line| sender.send(line)));
        }
        Server { place: self, child, lines, log: Vec::new() }
    }

    /// Rank and process id of every shard ever started, in order.
    pub(crate) fn shards(&self) -> Vec<(u32, Pid)> {
        let text = std::fs::read_to_string(self.path().join("shards")).unwrap_or_default();
        let parse = |line: &str| {
            let (rank, pid) = line.split_once(' ')?;
            Some((rank.parse().ok()?, Pid::from_raw(pid.parse().ok()?)))
        };
        text.lines().filter_map(parse).collect()
    }
}

/// A running `lorikeet serve`; killed when dropped.
pub(crate) struct Server<'a> {
    place: &'a Place,
    child: Child,
    lines: Receiver<String>,
    pub(crate) log: Vec<String>,
}

impl Server<'_> {
    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    /// The shards started so far, once there are `count`.
    pub(crate) fn wait_for_shards(&self, count: usize) -> Vec<(u32, Pid)> {
        until("shards to start", || Some(self.place.shards()).filter(|shards| shards.len() >= count))
    }

    /// The router's process, once it has got as far as catching signals.
    pub(crate) fn wait_for_router(&self) -> Pid {
        until("the router to start", || {
            children(self.pid()).into_iter().find(|child| {
                let arguments = std::fs::read(format!("/proc/{child}/cmdline")).unwrap_or_default();
                arguments.split(|byte| *byte == 0).nth(1) == Some(b"router")
                    && catches(*child, Signal::SIGINT)
            })
        })
    }

    /// Waits for a line with this text.
    pub(crate) fn wait_for_line(&mut self, text: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(line) = self.log.iter().find(|line| line.contains(text)) {
                return line.clone();
            }
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => self.log.push(line),
                Err(error) => panic!("no line with {text:?} ({error}) in {:#?}", self.log),
            }
        }
    }

    /// Waits for the end, and takes in the rest of the log.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let status = until("the launcher to end", || self.child.try_wait().unwrap());
        self.log.extend(self.lines.iter());
        status
    }
}

impl Drop for Server<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The value that `find` comes to have.
pub(crate) fn until<T>(what: &str, mut find: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = find() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Asserts that these processes end within the five seconds that are promised.
pub(crate) fn assert_gone(processes: &[Pid]) {
    let started = Instant::now();
    until("processes to end", || processes.iter().all(|pid| !is_alive(*pid)).then_some(()));
    assert!(started.elapsed() < Duration::from_secs(5), "took {:?}", started.elapsed());
}

pub(crate) fn is_alive(process: Pid) -> bool {
    stat(process).is_some_and(|(state, _)| state != "Z")
}

pub(crate) fn children(parent: Pid) -> Vec<Pid> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    processes
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok().map(Pid::from_raw))
        .filter(|process| stat(*process).is_some_and(|(_, of)| of == parent))
        .collect()
}

/// Whether a process has a handler for a signal.
fn catches(process: Pid, signal: Signal) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap_or_default();
    u64::from_str_radix(caught.trim(), 16).is_ok_and(|caught| (caught >> (signal as u32 - 1)) & 1 == 1)
}

/// State and parent of a process.
fn stat(process: Pid) -> Option<(String, Pid)> {
    let text = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The command's name comes first, in parentheses, and may hold anything.
    let mut fields = text.rsplit_once(')')?.1.split_whitespace();
    Some((fields.next()?.to_owned(), Pid::from_raw(fields.next()?.parse().ok()?)))
}

/// Runs to the end: exit code, standard output, standard error, time.
pub(crate) fn run(mut command: Command) -> (i32, String, String, Duration) {
    let started = Instant::now();
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (mut out, mut err) = (String::new(), String::new());
    child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
    child.stdout.take().unwrap().read_to_string(&mut out).unwrap();
    (child.wait().unwrap().code().unwrap(), out, err, started.elapsed())
}
