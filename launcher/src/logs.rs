//! One log from many processes: records of the shards are read line by line and written again
//! through `tracing`, with the rank they came from. Nobody who logs waits for the log's reader.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::{IsTerminal, Write};
use std::sync::OnceLock;
use std::time::Duration;

use lorikeet_router::telemetry::LogWriter;
use serde::Deserialize;
use serde_json::json;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncRead, BufReader};
use tracing::Level;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};

use crate::cli::LogLevel;
use crate::role::Role;

/// Longer lines are cut: one child must not make the launcher grow.
const LONGEST_LINE: usize = 64 * 1024;

/// How long the end of the process waits for the log's reader.
pub const PATIENCE: Duration = Duration::from_secs(1);

/// Where records go, once logging has been set up.
static LOG: OnceLock<Log> = OnceLock::new();

struct Log {
    writer: LogWriter,
    json: bool,
}

/// Sends the process's own records, and what its panics say, to stderr, as text or as one JSON object a line.
pub fn init(json: bool, level: LogLevel) -> std::io::Result<()> {
    let writer = LogWriter::start(std::io::stderr(), |lost| {
        tracing::warn!(lost, "log records are missing here: their reader did not take them in time");
    })?;
    let writer = &LOG.get_or_init(|| Log { writer, json }).writer;
    // Libraries have a say when something is wrong; their details are of no use to an operator.
    let others = if level == LogLevel::Error { "error" } else { "warn" };
    let filter = EnvFilter::new(format!("{others},lorikeet={}", level.as_str()));
    let builder = tracing_subscriber::fmt().with_writer(|| writer.clone()).with_env_filter(filter);
    // They would be told by `eprintln!`, which waits for the reader, and panics when there is none.
    let builder = builder.log_internal_errors(false);
    // Only a second call could fail, and there is none outside tests.
    let _ = if json {
        builder.json().flatten_event(true).try_init()
    } else {
        let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        builder.with_ansi(colour).with_target(false).try_init()
    };
    // The usual hook waits for the reader.
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        let thread = thread.name().unwrap_or("unnamed");
        let backtrace = Backtrace::capture();
        if backtrace.status() == BacktraceStatus::Captured {
            tracing::error!(thread, "{panic}\n{backtrace}");
        } else {
            tracing::error!(thread, "{panic}");
        }
    }));
    Ok(())
}

/// Writes the last line on stderr: the error that ends the process. It depends neither on the log level nor on whether
/// it can be written.
pub fn last_word(error: &str) {
    match LOG.get() {
        Some(log) => log.writer.insist(last_line(error, log.json).as_bytes()),
        None => drop(std::io::stderr().write_all(last_line(error, false).as_bytes())),
    }
}

/// As text, or as a record like the others.
fn last_line(error: &str, json: bool) -> String {
    if !json {
        return format!("error: {error}\n");
    }
    let mut timestamp = String::new();
    // Writing to a string cannot fail.
    let _ = SystemTime.format_time(&mut Writer::new(&mut timestamp));
    let record =
        json!({"timestamp": timestamp, "level": "ERROR", "message": error, "target": module_path!()});
    format!("{record}\n")
}

/// Waits, when dropped, for the log to be written, but not for ever.
pub struct WrittenAtEnd;

impl Drop for WrittenAtEnd {
    fn drop(&mut self) {
        if let Some(log) = LOG.get() {
            log.writer.finish(PATIENCE);
        }
    }
}

/// What a line says.
#[derive(Debug, PartialEq, Eq)]
struct Record {
    level: Level,
    message: String,
}

/// A record as the shard writes it, of which this is used.
#[derive(Deserialize)]
struct Line {
    level: String,
    message: String,
    error: Option<String>,
    traceback: Option<String>,
}

impl Record {
    /// Reads a line; whatever is not a record of ours (a traceback, a library's warning) is passed on as it
    /// is. `error: ` is how our commands end when they cannot go on.
    fn parse(line: &str) -> Self {
        match serde_json::from_str(line) {
            Ok(Line { level, message, error, traceback }) => {
                let parts = [Some(message), error, traceback.map(|text| text.trim_end().to_owned())];
                let parts: Vec<_> = parts.into_iter().flatten().filter(|part| !part.is_empty()).collect();
                Self { level: level_of(&level), message: parts.join("\n") }
            }
            Err(_) => match line.strip_prefix("error: ") {
                Some(error) => Self { level: Level::ERROR, message: error.to_owned() },
                None => Self { level: Level::WARN, message: line.to_owned() },
            },
        }
    }

    fn emit(&self, role: Role) {
        macro_rules! at {
            ($level:ident) => {
                match role {
                    Role::Shard(rank) => tracing::$level!(shard = rank, "{}", self.message),
                    Role::Router | Role::Prepare => tracing::$level!(process = %role, "{}", self.message),
                }
            };
        }
        match self.level {
            Level::ERROR => at!(error),
            Level::WARN => at!(warn),
            Level::INFO => at!(info),
            Level::DEBUG => at!(debug),
            Level::TRACE => at!(trace),
        }
    }
}

/// Python's names for levels.
fn level_of(name: &str) -> Level {
    match name.to_ascii_uppercase().as_str() {
        "CRITICAL" | "ERROR" => Level::ERROR,
        "WARNING" | "WARN" => Level::WARN,
        "DEBUG" => Level::DEBUG,
        "TRACE" => Level::TRACE,
        _ => Level::INFO,
    }
}

/// Emits a child's output until it ends, and returns the message of its last error.
///
/// Errors of `prepare` are not emitted: the caller makes the server's one-line error of them.
pub(crate) async fn pump(stream: impl AsyncRead + Unpin, role: Role) -> Option<String> {
    let mut reader = BufReader::new(stream);
    let mut line = Vec::new();
    let mut last_error = None;
    while matches!(read_line(&mut reader, &mut line).await, Ok(true)) {
        let text = String::from_utf8_lossy(&line);
        if text.trim().is_empty() {
            continue;
        }
        let record = Record::parse(text.trim_end());
        if role != Role::Prepare || record.level != Level::ERROR {
            record.emit(role);
        }
        if record.level == Level::ERROR {
            last_error = Some(record.message);
        }
    }
    last_error
}

/// Reads up to a line's end into `line`, dropping what goes beyond the bound; false at the end of the stream.
async fn read_line(reader: &mut (impl AsyncBufRead + Unpin), line: &mut Vec<u8>) -> std::io::Result<bool> {
    line.clear();
    let mut cut = false;
    loop {
        let available = reader.fill_buf().await?;
        if available.is_empty() {
            return Ok(!line.is_empty());
        }
        let end = available.iter().position(|byte| *byte == b'\n');
        let part = &available[..end.unwrap_or(available.len())];
        let room = LONGEST_LINE - line.len().min(LONGEST_LINE);
        cut |= part.len() > room;
        line.extend_from_slice(&part[..part.len().min(room)]);
        let read = end.map_or(available.len(), |end| end + 1);
        reader.consume(read);
        if end.is_some() {
            if cut {
                line.extend_from_slice(" … (cut)".as_bytes());
            }
            return Ok(true);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn lines(input: &[u8]) -> Vec<String> {
        let mut reader = BufReader::with_capacity(16, input);
        let (mut line, mut all) = (Vec::new(), Vec::new());
        while read_line(&mut reader, &mut line).await.unwrap() {
            all.push(String::from_utf8(line.clone()).unwrap());
        }
        all
    }

    #[tokio::test]
    async fn lines_are_bounded_and_none_is_lost() {
        let long = "x".repeat(LONGEST_LINE + 10);
        let input = format!("first\n{long}\n\nlast without an end");
        let lines = lines(input.as_bytes()).await;
        assert_eq!(lines[0], "first");
        assert!(lines[1].ends_with(" … (cut)") && lines[1].len() < LONGEST_LINE + 16, "{}", lines[1].len());
        assert_eq!(lines[2..], ["", "last without an end"]);
    }

    #[test]
    fn records_of_shards_are_read() {
        let plain =
            r#"{"timestamp": "now", "level": "WARNING", "target": "x", "message": "slow", "rank": 1}"#;
        assert_eq!(Record::parse(plain), Record { level: Level::WARN, message: "slow".into() });
        let success = Record::parse(r#"{"level": "SUCCESS", "message": "loaded"}"#);
        assert_eq!(success, Record { level: Level::INFO, message: "loaded".into() });
        let failed = r#"{"level": "ERROR", "message": "boom", "error": "E: why", "traceback": "  here\n"}"#;
        assert_eq!(Record::parse(failed).message, "boom\nE: why\n  here");
    }

    #[test]
    fn other_lines_pass_unchanged() {
        for line in ["Traceback (most recent call last):", "{not json", "{\"a\": 1}", "[1]"] {
            assert_eq!(Record::parse(line), Record { level: Level::WARN, message: line.into() });
        }
    }

    #[tokio::test]
    async fn the_last_error_is_remembered() {
        let output = b"{\"level\":\"ERROR\",\"message\":\"no such model\"}\nbye\n";
        assert_eq!(pump(&output[..], Role::Prepare).await.as_deref(), Some("no such model"));
        let output = b"error: no such flag\n";
        assert_eq!(pump(&output[..], Role::Shard(0)).await.as_deref(), Some("no such flag"));
        assert_eq!(pump(&b"fine\n"[..], Role::Shard(0)).await, None);
    }
}
