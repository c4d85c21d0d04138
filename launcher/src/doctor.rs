//! `lorikeet doctor`: what the machine has, what would be used, what is missing and the command that mends it.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use serde::{Deserialize, Serialize};

use crate::cli::DoctorArgs;
use crate::environment;
use crate::hardware::Hardware;

/// Below this, loading even a small model is likely to be killed.
const LITTLE_MEMORY: u64 = 2 << 30;

/// How to get a Python that runs the shard. By its name pip would find a package of somebody else.
const GET: &str = "run `make setup` in a checkout, which makes .venv/bin/python";

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
    /// What `python -m lorikeet_server doctor` found: versions, kernels, devices.
    findings: Vec<Finding>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Finding {
    name: String,
    value: String,
    /// Empty where nothing needs to be done.
    remedy: String,
}

#[derive(Debug, Deserialize)]
struct Findings {
    findings: Vec<Finding>,
}

#[derive(Debug, Serialize)]
struct WouldUse {
    kernels: String,
    shards: u32,
    threads_per_shard: usize,
    cache_dir: Option<PathBuf>,
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
        let kernels = python.value_of("kernels").unwrap_or("none").to_owned();
        let on_gpu = kernels.starts_with("cuda");
        if !hardware.gpus.is_empty() && !on_gpu && !python.findings.is_empty() {
            problems.push(Problem {
                fatal: false,
                what: "this machine has a GPU that would not be used".into(),
                mend: python.value_of("cuda").unwrap_or("install a torch built for its driver").into(),
            });
        }
        if hardware.memory.is_some_and(|memory| memory.available_bytes < LITTLE_MEMORY) {
            problems.push(Problem {
                fatal: false,
                what: "less than 2 GiB of memory is available".into(),
                mend: "stop other programs, or serve a smaller model".into(),
            });
        }
        let cache_dir = environment::cache_dir();
        if let Err(what) = writable(cache_dir.as_deref()) {
            let mend = "set LORIKEET_CACHE_DIR to a directory that can be written".into();
            problems.push(Problem { fatal: true, what, mend });
        }
        let shards = environment::granted_gpus().filter(|_| on_gpu).unwrap_or(1).max(1);
        let would_use = WouldUse {
            kernels,
            shards,
            threads_per_shard: (hardware.cpu.cores / shards as usize).max(1),
            cache_dir,
            runtime_dir: environment::runtime_base(),
        };
        Self { version: env!("CARGO_PKG_VERSION"), hardware, python, would_use, problems }
    }

    fn text(&self) -> String {
        let mut out = String::new();
        let mut line = |name: &str, value: String| {
            // Writing to a string cannot fail.
            let _ = writeln!(out, "{name:<13} {value}");
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
        let shown_above = ["lorikeet_server", "cpu", "memory"];
        for finding in self.python.findings.iter().filter(|it| !shown_above.contains(&it.name.as_str())) {
            line(&finding.name, finding.value.clone());
        }
        let plan = &self.would_use;
        line(
            "would use",
            format!(
                "{} kernels, {} shard(s) of {} thread(s)",
                plan.kernels, plan.shards, plan.threads_per_shard
            ),
        );
        let cache =
            plan.cache_dir.as_ref().map_or_else(|| "none".to_owned(), |cache| cache.display().to_string());
        line("cache", cache);
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
                mend: format!("name another with --python, or {GET}"),
            });
            return Self { executable: None, findings: Vec::new() };
        };
        let output = Command::new(&executable)
            .args(["-m", "lorikeet_server", "doctor", "--json"])
            .envs([environment::OWN_MODULES])
            .stdin(Stdio::null())
            .output();
        let findings = match &output {
            Ok(output) => {
                serde_json::from_slice(&output.stdout).map_or_else(|_| Vec::new(), |it: Findings| it.findings)
            }
            Err(_) => Vec::new(),
        };
        problems.extend(findings.iter().filter(|finding| !finding.remedy.is_empty()).map(|finding| {
            Problem {
                // Without compiled kernels the reference computes, slowly.
                fatal: finding.name != "kernels",
                what: format!("{}: {}", finding.name, finding.value),
                mend: finding.remedy.clone(),
            }
        }));
        if findings.is_empty() {
            let why = output.map_or_else(|error| error.to_string(), |output| last_line(&output.stderr));
            problems.push(Problem {
                fatal: true,
                what: format!("this Python cannot run the shard ({why})"),
                mend: format!("name another with --python, or {GET}"),
            });
        }
        Self { executable: Some(executable), findings }
    }

    fn value_of(&self, name: &str) -> Option<&str> {
        self.findings.iter().find(|finding| finding.name == name).map(|finding| finding.value.as_str())
    }
}

/// Whether compiled kernels, tokenizers and adapters can be kept there; if not, why.
fn writable(cache_dir: Option<&Path>) -> Result<(), String> {
    let directory = cache_dir.ok_or("HOME is not set, and this user has no home")?;
    std::fs::create_dir_all(directory)
        .and_then(|()| tempfile::tempfile_in(directory))
        .map(drop)
        .map_err(|error| format!("the cache {} cannot be written: {error}", directory.display()))
}

fn last_line(output: &[u8]) -> String {
    let text = String::from_utf8_lossy(output);
    text.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it said nothing").trim().to_owned()
}

fn gib(bytes: u64) -> String {
    format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30))
}
