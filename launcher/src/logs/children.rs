//! What other processes of the server log: read line by line and written again through `tracing`, with the rank that it
//! came from.

use serde::Deserialize;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncRead, BufReader};
use tracing::Level;

use crate::role::Role;

/// Longer lines are cut: one child must not make the launcher grow.
const LONGEST_LINE: usize = 64 * 1024;

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
