//! The log of the process. Nobody who logs waits for its reader.

mod children;

use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::{IsTerminal, Write};
use std::sync::OnceLock;
use std::time::Duration;

pub(crate) use children::pump;
use lorikeet_router::telemetry::LogWriter;
use serde_json::json;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};

use crate::cli::LogLevel;

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
