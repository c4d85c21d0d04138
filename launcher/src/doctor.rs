//! `lorikeet doctor`: what the machine has, what would be used, what is missing and the command that mends it.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use serde::Serialize;
use serde_json::Value;

use crate::cli::DoctorArgs;
use crate::environment;
use crate::hardware::Hardware;

/// Below this, loading even a small model is likely to be killed.
const LITTLE_MEMORY: u64 = 2 << 30;

#[derive(Debug, Serialize)]
struct Report {
    version: &'static str,
    hardware: Hardware,
    python: Python,
    would_use: WouldUse,
    problems: Vec<Problem>,
}

#[derive(Debug, Serialize)]
struct Python {
    executable: Option<PathBuf>,
    /// What `python -m lorikeet_server doctor` said of itself: versions, kernels and their cache.
    #[serde(flatten)]
    said: Option<Value>,
}

#[derive(Debug, Serialize)]
struct WouldUse {
    device: &'static str,
    shards: u32,
    threads_per_shard: usize,
    cache_dir: PathBuf,
    runtime_dir: PathBuf,
}

#[derive(Debug, Serialize)]
struct Problem {
    /// `serve` cannot work.
    fatal: bool,
    what: String,
    mend: String,
}

/// Prints the report; fails when `serve` could not work.
///
/// # Errors
/// Standard output cannot be written.
pub fn doctor(args: &DoctorArgs) -> anyhow::Result<ExitCode> {
    let report = Report::make(args.python.clone());
    let text = if args.json { serde_json::to_string(&report)? + "\n" } else { report.text() };
    std::io::Write::write_all(&mut std::io::stdout(), text.as_bytes())?;
    let works = report.problems.iter().all(|problem| !problem.fatal);
    Ok(if works { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl Report {
    fn make(python: Option<PathBuf>) -> Self {
        let hardware = Hardware::detect();
        let mut problems = Vec::new();
        let python = Python::ask(&python.unwrap_or_else(environment::python), &mut problems);
        let on_gpu =
            python.said.as_ref().and_then(|said| said.get("cuda")).and_then(Value::as_bool) == Some(true);
        if !hardware.gpus.is_empty() && python.said.is_some() && !on_gpu {
            problems.push(Problem {
                fatal: false,
                what: "this machine has a GPU, but torch cannot use it".into(),
                mend: "install a torch built for the driver that nvidia-smi shows".into(),
            });
        }
        if hardware.memory.is_some_and(|memory| memory.available_bytes < LITTLE_MEMORY) {
            problems.push(Problem {
                fatal: false,
                what: "less than 2 GiB of memory is available".into(),
                mend: "stop other programs, or serve a smaller model".into(),
            });
        }
        let shards = environment::granted_gpus().filter(|_| on_gpu).unwrap_or(1).max(1);
        let would_use = WouldUse {
            device: if on_gpu { "cuda" } else { "cpu" },
            shards,
            threads_per_shard: (hardware.cpu.cores / shards as usize).max(1),
            cache_dir: environment::cache_dir(),
            runtime_dir: environment::runtime_base(),
        };
        Self { version: env!("CARGO_PKG_VERSION"), hardware, python, would_use, problems }
    }

    fn text(&self) -> String {
        let mut out = String::new();
        let mut line = |name: &str, value: String| {
            // Writing to a string cannot fail.
            let _ = writeln!(out, "{name:<11} {value}");
        };
        line("lorikeet", self.version.to_owned());
        let cpu = &self.hardware.cpu;
        let model = cpu.model.as_deref().unwrap_or("unknown");
        line("cpu", format!("{model}, {} cores, {}", cpu.cores, cpu.features.join(" ")));
        if let Some(memory) = self.hardware.memory {
            line(
                "memory",
                format!("{} available of {}", gib(memory.available_bytes), gib(memory.total_bytes)),
            );
        }
        if self.hardware.gpus.is_empty() {
            line("gpu", "none".to_owned());
        }
        for gpu in &self.hardware.gpus {
            let memory = gpu.memory_mib.map_or_else(|| "shared memory".to_owned(), |mib| gib(mib << 20));
            line("gpu", format!("{}, {memory}, driver {}", gpu.name, gpu.driver));
        }
        if let Some(executable) = &self.python.executable {
            line("python", executable.display().to_string());
        }
        for (name, value) in self.python.said.iter().filter_map(Value::as_object).flatten() {
            line(name, value.as_str().map_or_else(|| value.to_string(), str::to_owned));
        }
        let plan = &self.would_use;
        line(
            "would use",
            format!("{}, {} shard(s) of {} thread(s)", plan.device, plan.shards, plan.threads_per_shard),
        );
        line("cache", plan.cache_dir.display().to_string());
        line("sockets in", plan.runtime_dir.display().to_string());
        for problem in &self.problems {
            line(
                if problem.fatal { "missing" } else { "note" },
                format!("{}: {}", problem.what, problem.mend),
            );
        }
        if self.problems.is_empty() {
            line("missing", "nothing".to_owned());
        }
        out
    }
}

impl Python {
    fn ask(python: &Path, problems: &mut Vec<Problem>) -> Self {
        let Some(executable) = environment::find_command(python) else {
            problems.push(Problem {
                fatal: true,
                what: format!("no Python at {}", python.display()),
                mend: "python3 -m venv .venv && .venv/bin/pip install lorikeet, or name one with --python"
                    .into(),
            });
            return Self { executable: None, said: None };
        };
        let output = Command::new(&executable)
            .args(["-m", "lorikeet_server", "doctor", "--json"])
            .stdin(Stdio::null())
            .output();
        let said = match &output {
            Ok(output) if output.status.success() => serde_json::from_slice(&output.stdout).ok(),
            _ => None,
        };
        if said.is_none() {
            let why = output.map_or_else(|error| error.to_string(), |output| last_line(&output.stderr));
            problems.push(Problem {
                fatal: true,
                what: format!("this Python cannot run the shard ({why})"),
                mend: format!("{} -m pip install lorikeet", executable.display()),
            });
        }
        Self { executable: Some(executable), said }
    }
}

fn last_line(output: &[u8]) -> String {
    let text = String::from_utf8_lossy(output);
    text.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it said nothing").trim().to_owned()
}

fn gib(bytes: u64) -> String {
    format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30))
}
