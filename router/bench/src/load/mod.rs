//! Load on a running server over HTTP, and what it answered with: rates, latencies, errors.
//!
//! Light on purpose: on a small machine it shares the cores with the server it measures.

mod adapters;
mod api;
mod client;
mod drive;
mod report;
pub mod router;
mod tokenizer;

use std::{io::Write, time::Duration};

use anyhow::Context;

use self::{adapters::Adapters, api::Requests, client::Target};
pub use self::{adapters::Mix, api::Api, report::Report};

/// Measure a running server
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// Where the server listens
    #[arg(long, default_value = "http://127.0.0.1:3000")]
    pub url: String,
    /// What it speaks
    #[arg(long, value_enum, default_value_t = Api::Lorikeet)]
    pub api: Api,
    /// Name of the base model, for servers that insist on it
    #[arg(long, default_value = "")]
    pub model: String,
    /// Adapters: names, or ranges such as `sql-{0..7}`. Without any, the base model
    #[arg(long, value_delimiter = ',')]
    pub adapters: Vec<String>,
    /// Which of them a request takes: `distinct` (in turn), `identical` (the first), `uniform`, or `zipf:S`
    #[arg(long, default_value = "distinct")]
    pub adapter_mix: Mix,
    /// Requests at a time, each new one as soon as one is done
    #[arg(long, default_value_t = 1)]
    pub clients: usize,
    /// Requests per second at random intervals instead, whether or not earlier ones are done
    #[arg(long, conflicts_with = "clients")]
    pub rate: Option<f64>,
    /// Requests in all
    #[arg(long, default_value_t = 32)]
    pub requests: usize,
    /// Seconds after which no new request starts, instead of a number of requests
    #[arg(long, conflicts_with = "requests")]
    pub duration: Option<f64>,
    /// Tokens of a prompt. Every request has a prompt of its own, so that no cached prefix is measured
    #[arg(long, default_value_t = 42)]
    pub prompt_tokens: usize,
    /// The same prompt for every request instead
    #[arg(long, conflicts_with = "prompt_tokens")]
    pub prompt: Option<String>,
    /// Token ids of random prompts are below this
    #[arg(long, default_value_t = 30_000)]
    pub vocabulary: u32,
    /// Tokens to generate; the end of a text is ignored
    #[arg(long, default_value_t = 64)]
    pub max_tokens: u32,
    /// Seconds a request may take
    #[arg(long, default_value_t = 600.0)]
    pub timeout: f64,
    /// Seed of prompts, adapters and intervals
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Print one JSON object instead of a table
    #[arg(long)]
    pub json: bool,
}

/// Measures and prints.
///
/// # Errors
/// When the flags make no sense together, or the server cannot be reached at all.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let json = args.json;
    let report = measure(args).await?;
    let text = if json { serde_json::to_string(&report)? + "\n" } else { report.table() };
    std::io::stdout().write_all(text.as_bytes()).context("cannot write the report")
}

/// Measures.
///
/// # Errors
/// As [`run`]. A request that fails is counted, and the first few messages are kept.
pub async fn measure(args: Args) -> anyhow::Result<Report> {
    anyhow::ensure!(args.clients > 0, "--clients must be at least 1");
    anyhow::ensure!(args.rate.is_none_or(|rate| rate > 0.0), "--rate must be more than 0");
    anyhow::ensure!(
        args.vocabulary > api::FIRST_TOKEN,
        "--vocabulary must be more than {}",
        api::FIRST_TOKEN
    );
    let target = Target::new(&args.url, args.api.path(), Duration::try_from_secs_f64(args.timeout)?)?;
    target.check().await.with_context(|| format!("no server answers at {}", args.url))?;
    let adapters = Adapters::new(&args.adapters, args.adapter_mix)?;
    let requests = Requests::new(&args, adapters);
    let stop = match args.duration {
        Some(seconds) => drive::Stop::After(Duration::try_from_secs_f64(seconds)?),
        None => drive::Stop::Count(args.requests),
    };
    let outcome = match args.rate {
        Some(rate) => drive::open_loop(target, requests, stop, rate, args.seed).await,
        None => drive::closed_loop(target, requests, stop, args.clients).await,
    };
    Ok(Report::new(&outcome))
}
