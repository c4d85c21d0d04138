//! The router alone: its own process in front of a simulated shard that takes no time.

use std::{
    env,
    fmt::Write as _,
    fs,
    io::{self, Write},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use clap::Parser;
use serde::Serialize;

use super::{Report, client, measure, tokenizer};
use crate::sim::{SimConfig, SimShard};

/// How long the router may take until it is ready.
const PATIENCE: Duration = Duration::from_secs(30);
/// Kernel clock ticks per second, in which /proc counts: fixed for user space on Linux.
const TICKS: f64 = 100.0;

/// Measure the router alone, in front of a simulated shard
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// Streams at a time
    #[arg(long, default_value_t = 64)]
    pub clients: usize,
    /// Tokens of each stream
    #[arg(long, default_value_t = 256)]
    pub tokens: u32,
    /// Streams in all
    #[arg(long, default_value_t = 1024)]
    pub requests: usize,
    /// Print one JSON object instead of a table
    #[arg(long)]
    pub json: bool,
}

/// What the router costs. The machine is shared by the router, the load and the simulated shard; the figures per CPU
/// second count the router's own time only.
#[derive(Clone, Debug, Serialize)]
pub struct RouterReport {
    /// One client, one token: what the router and the simulated shard add to a request.
    pub added_latency_p50_ms: f64,
    pub added_latency_p99_ms: f64,
    /// Requests of one token, from all clients.
    pub requests_per_second: f64,
    pub requests_per_cpu_second: f64,
    /// Streams, from all clients.
    pub streamed_tokens_per_second: f64,
    pub streamed_tokens_per_cpu_second: f64,
    pub itl_p50_ms: f64,
    pub itl_p99_ms: f64,
}

/// Measures and prints.
///
/// # Errors
/// When the router cannot be started from this executable, or a request fails.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let json = args.json;
    let directory = tempfile::tempdir().context("cannot make a directory for sockets")?;
    let report = measure_router(&args, directory.path()).await?;
    let text = if json { serde_json::to_string(&report)? + "\n" } else { report.table() };
    io::stdout().write_all(text.as_bytes()).context("cannot write the report")
}

/// Measures, with the simulated shard's socket and its tokenizer in `directory`.
///
/// # Errors
/// As [`run`].
pub async fn measure_router(args: &Args, directory: &Path) -> anyhow::Result<RouterReport> {
    tokenizer::write(directory).context("cannot write the tokenizer")?;
    let socket = directory.join("shard-0");
    let config = SimConfig {
        vocab_size: tokenizer::VOCABULARY,
        sampled: tokenizer::PRINTABLE,
        num_blocks: 1 << 16,
        ..SimConfig::default()
    };
    let _shard = SimShard::start(&socket, config).context("cannot start the simulated shard")?;
    let router = Router::start(&socket, directory)?;
    router.wait_ready().await?;

    let load = |clients, requests, tokens| super::Args {
        url: router.url.clone(),
        clients,
        requests,
        max_tokens: tokens,
        prompt: Some("Measure the router, and nothing but the router".to_owned()),
        ..defaults()
    };
    router.load(load(args.clients, args.clients, 8)).await?; // warms up
    let (single, _) = router.load(load(1, 500, 1)).await?;
    let (short, short_cpu) = router.load(load(args.clients, args.requests * 4, 1)).await?;
    let (long, long_cpu) = router.load(load(args.clients, args.requests, args.tokens)).await?;
    Ok(RouterReport {
        added_latency_p50_ms: single.latency_p50_ms,
        added_latency_p99_ms: single.latency_p99_ms,
        requests_per_second: short.requests_per_second,
        requests_per_cpu_second: short.requests as f64 / short_cpu,
        streamed_tokens_per_second: long.tokens_per_second,
        streamed_tokens_per_cpu_second: long.tokens as f64 / long_cpu,
        itl_p50_ms: long.itl_p50_ms,
        itl_p99_ms: long.itl_p99_ms,
    })
}

impl RouterReport {
    /// For people.
    pub fn table(&self) -> String {
        let mut table = String::new();
        for (name, value) in [
            ("added latency p50", format!("{:.2} ms", self.added_latency_p50_ms)),
            ("added latency p99", format!("{:.2} ms", self.added_latency_p99_ms)),
            ("requests per second", format!("{:.0}", self.requests_per_second)),
            ("requests per CPU second", format!("{:.0}", self.requests_per_cpu_second)),
            ("streamed tokens per second", format!("{:.0}", self.streamed_tokens_per_second)),
            ("streamed tokens per CPU second", format!("{:.0}", self.streamed_tokens_per_cpu_second)),
            ("time between tokens p50", format!("{:.2} ms", self.itl_p50_ms)),
            ("time between tokens p99", format!("{:.2} ms", self.itl_p99_ms)),
        ] {
            // Writing into a string cannot fail.
            let _ = writeln!(table, "{name:<32}{value:>12}");
        }
        table
    }
}

/// The flags' defaults, as the command line has them.
fn defaults() -> super::Args {
    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        args: super::Args,
    }
    Flags::parse_from(["load"]).args
}

/// A router process, ended on drop.
struct Router {
    process: Child,
    url: String,
    log: PathBuf,
}

impl Router {
    fn start(socket: &Path, directory: &Path) -> anyhow::Result<Self> {
        // Free a moment ago; the router says so if it no longer is.
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let log = directory.join("router.log");
        let process = Command::new(env::current_exe()?)
            .args(["router", "--model-id", "simulated", "--max-batch-size", "256"])
            .args(["--max-batch-prefill-tokens", "4096", "--port", &port.to_string()])
            .arg("--tokenizer-path")
            .arg(directory)
            .arg("--shard-socket")
            .arg(socket)
            .stdin(Stdio::null())
            .stdout(fs::File::create(&log)?)
            .stderr(fs::File::options().append(true).open(&log)?)
            .spawn()
            .context("cannot start the router")?;
        Ok(Self { process, url: format!("http://127.0.0.1:{port}"), log })
    }

    async fn wait_ready(&self) -> anyhow::Result<()> {
        let start = Instant::now();
        while !client::is_ready(&self.url).await {
            if start.elapsed() > PATIENCE {
                let log = fs::read_to_string(&self.log).unwrap_or_default();
                anyhow::bail!("the router did not get ready:\n{log}");
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    /// The load's report and the router's CPU seconds under it.
    async fn load(&self, args: super::Args) -> anyhow::Result<(Report, f64)> {
        let before = self.cpu_seconds()?;
        let report = measure(args).await?;
        ensure!(report.errors == 0, "{} requests failed: {:?}", report.errors, report.error_messages);
        Ok((report, (self.cpu_seconds()? - before).max(1.0 / TICKS)))
    }

    fn cpu_seconds(&self) -> anyhow::Result<f64> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.process.id()))?;
        // After the name, which is in parentheses and may hold anything: utime and stime are the 12th and 13th fields.
        let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields).split_whitespace();
        let ticks: f64 = fields.skip(11).take(2).filter_map(|field| field.parse::<f64>().ok()).sum();
        Ok(ticks / TICKS)
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        // Fails only if it has ended already.
        self.process.kill().ok();
        self.process.wait().ok();
    }
}
