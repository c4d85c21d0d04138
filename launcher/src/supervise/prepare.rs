//! Runs `python -m lorikeet_server prepare`, which turns a model's name into local files.

use std::path::PathBuf;
use std::process::Stdio;

use anyhow::Context;
use serde::Deserialize;
use tokio::io::AsyncReadExt;

use super::process::{ProcessSpec, describe};
use super::signals::Signals;
use crate::logs;

/// The answer is one line of JSON with a few paths.
const LONGEST_ANSWER: u64 = 1 << 20;

/// Where the model is.
#[derive(Debug, Clone, Deserialize, PartialEq, Eq)]
pub struct Prepared {
    pub model_id: String,
    /// A directory with safetensors files, or a GGUF file.
    pub model_path: PathBuf,
    /// A directory with tokenizer.json and config.json.
    pub tokenizer_path: PathBuf,
}

/// Runs the command to its end; `None` when a signal came first.
///
/// # Errors
/// The command failed; the message is its last own error.
pub async fn prepare(spec: &ProcessSpec, signals: &mut Signals) -> anyhow::Result<Option<Prepared>> {
    let mut child =
        spec.command().stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().with_context(|| {
            format!("cannot start {}; name a Python with --python", spec.program.display())
        })?;
    let stdout = child.stdout.take().context("no standard output")?;
    let stderr = child.stderr.take().context("no standard error")?;

    let mut answer = String::new();
    let finished = async {
        let mut stdout = stdout.take(LONGEST_ANSWER);
        let (read, errors) = tokio::join!(stdout.read_to_string(&mut answer), logs::pump(stderr, spec.role));
        read.context("cannot read what the command printed")?;
        anyhow::Ok((child.wait().await, errors))
    };
    let (status, last_error) = tokio::select! {
        finished = finished => finished?,
        // Dropping the child kills it.
        _ = signals.next() => return Ok(None),
    };
    if !status.as_ref().is_ok_and(std::process::ExitStatus::success) {
        let reason = last_error.unwrap_or_else(|| format!("the command ended with {}", describe(&status)));
        anyhow::bail!("{reason}");
    }
    let line = answer.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default();
    let prepared = serde_json::from_str(line).with_context(|| {
        format!("{} did not describe the model but printed {line:?}", spec.program.display())
    })?;
    Ok(Some(prepared))
}
