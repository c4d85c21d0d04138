//! The command line. Flags are named as LoRAX's where they mean the same; each has an environment variable.

mod router_flags;
mod values;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::BoolishValueParser;
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};

pub use router_flags::RouterFlags;
pub use values::{Device, Dtype, LogLevel, ModelId};

/// Serve thousands of LoRA fine-tunes of one base model
#[derive(Debug, Parser)]
#[command(name = "lorikeet", version, propagate_version = true, max_term_width = 110)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve a model and its adapters: start the router and the shards, and keep them running
    Serve(Box<ServeArgs>),
    /// Run the HTTP server alone, in front of shards that run already
    Router(Box<RouterArgs>),
    /// Measure a running server
    Bench(Box<lorikeet_bench::Args>),
    /// Tell what this machine has, what `serve` would use, and what is missing
    Doctor(DoctorArgs),
}

#[derive(Debug, Args)]
pub struct ServeArgs {
    /// Base model: a directory, a GGUF file or a name on the hub, with `@revision` if wanted
    #[arg(long, env = "MODEL_ID")]
    pub model_id: ModelId,
    /// Revision of the base model on the hub
    #[arg(long, env = "REVISION")]
    pub revision: Option<String>,
    /// Directory with adapters, one directory each; repeatable, or several with commas between them. Adapters may be
    /// loaded from below it by path
    #[arg(long, env = "ADAPTER_ROOT", value_name = "DIR", value_delimiter = ',')]
    pub adapter_root: Vec<PathBuf>,
    /// Type in which weights are stored
    #[arg(long, env = "DTYPE", value_enum, default_value_t = Dtype::Auto)]
    pub dtype: Dtype,
    /// Where to compute
    #[arg(long, env = "DEVICE", value_enum, default_value_t = Device::Auto)]
    pub device: Device,

    /// Address to listen on
    #[arg(long, env = "LORIKEET_HOSTNAME", default_value = "127.0.0.1")]
    pub hostname: String,
    /// Port to listen on; 0 for any free one
    #[arg(long, short, env = "PORT", default_value_t = 3000)]
    pub port: u16,

    /// Shards on this machine that share the model by tensor parallelism [default: one for each GPU in
    /// CUDA_VISIBLE_DEVICES, else 1]
    #[arg(long, env = "NUM_SHARD", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub num_shard: Option<u32>,
    /// Shards on all machines, which run this command with the same settings [default: those of this machine]
    #[arg(long, env = "WORLD_SIZE", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub world_size: Option<u32>,
    /// Rank of this machine's first shard. The machine of rank 0 answers requests, the others only compute
    #[arg(long, env = "RANK", default_value_t = 0)]
    pub rank: u32,
    /// Threads of each shard [default: an equal share of the cores]
    #[arg(long, env = "OMP_NUM_THREADS", value_parser = values::threads)]
    pub threads_per_shard: Option<usize>,
    /// Address of rank 0's machine, at which shards meet each other [default: 127.0.0.1, if all are on this machine]
    #[arg(long, env = "MASTER_ADDR")]
    pub master_addr: Option<String>,
    /// Port at which shards meet each other [default: a free one, if all are on this machine]
    #[arg(long, env = "MASTER_PORT")]
    pub master_port: Option<u16>,
    /// Directory in which to make the private directory of the shards' sockets [default: the login's runtime directory]
    #[arg(long, env = "SHARD_UDS_PATH", value_name = "DIR")]
    pub shard_uds_path: Option<PathBuf>,
    /// Seconds between SIGTERM and SIGKILL that the supervisor of this server leaves it (on Kubernetes
    /// terminationGracePeriodSeconds less what preStop takes): a drain that can take longer is refused
    #[arg(long, env = "TERMINATION_GRACE_PERIOD", value_name = "SECONDS", value_parser = lorikeet_router::config::seconds)]
    pub termination_grace_period: Option<Duration>,
    /// Restarts of the shards in a row before the server gives up
    #[arg(long, env = "MAX_SHARD_RESTARTS", default_value_t = 5)]
    pub max_shard_restarts: u32,

    /// Directory for what can be made again [default: lorikeet in the user's cache directory]
    #[arg(long, env = "LORIKEET_CACHE_DIR", value_name = "DIR")]
    pub cache_dir: Option<PathBuf>,
    /// Directory of the adapter store [default: adapters in --cache-dir]
    #[arg(long, env = "STORE_DIR", value_name = "DIR")]
    pub store_dir: Option<PathBuf>,
    /// Directory of models from the hub [default: --cache-dir if that is given, else as huggingface-hub has it]
    #[arg(long, env = "HUGGINGFACE_HUB_CACHE", value_name = "DIR", conflicts_with = "cache_dir")]
    pub huggingface_hub_cache: Option<PathBuf>,
    /// Python that has the lorikeet package [default: the one beside this executable, else python3]
    #[arg(long, env = "LORIKEET_PYTHON", value_name = "FILE")]
    pub python: Option<PathBuf>,
    /// Fetch the base model, print where it is, and end
    #[arg(long, env = "DOWNLOAD_ONLY", value_parser = BoolishValueParser::new())]
    pub download_only: bool,

    /// Write one JSON object per log record
    #[arg(long, env = "JSON_OUTPUT", value_parser = BoolishValueParser::new())]
    pub json_output: bool,
    /// Least level of log records
    #[arg(long, env = "LOG_LEVEL", value_enum, ignore_case = true, default_value_t)]
    pub log_level: LogLevel,

    #[command(flatten)]
    pub router: RouterFlags,
}

impl ServeArgs {
    /// The revision, from its flag or from the model's name.
    pub fn revision(&self) -> Option<&str> {
        self.revision.as_deref().or(self.model_id.revision.as_deref())
    }
}

#[derive(Debug, Args)]
pub struct RouterArgs {
    #[command(flatten)]
    pub config: lorikeet_router::config::Config,
    /// Least level of log records
    #[arg(long, env = "LOG_LEVEL", value_enum, ignore_case = true, default_value_t)]
    pub log_level: LogLevel,
}

#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
    /// Python that has the lorikeet package [default: the one beside this executable, else python3]
    #[arg(long, env = "LORIKEET_PYTHON", value_name = "FILE")]
    pub python: Option<PathBuf>,
}

/// Parses a command line.
///
/// # Errors
/// What to print and how to exit; `--help` and `--version` come this way too.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Cli, clap::Error> {
    // So that `--port -1` is a bad value of --port, not an unknown flag `-1`.
    let command = Cli::command().mut_subcommands(|command| {
        command.mut_args(|arg| {
            let takes_values = arg.get_action().takes_values();
            if takes_values { arg.allow_negative_numbers(true) } else { arg }
        })
    });
    Cli::from_arg_matches(&command.try_get_matches_from(args)?)
}

/// A parser's complaint on one line: the complaint and its tips, without the usage that follows.
pub fn one_line(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let parts: Vec<_> = text
        .lines()
        .map(str::trim)
        .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more information"))
        .filter(|line| !line.is_empty())
        .collect();
    parts.join(" ").replace(" tip: ", "; ")
}

#[cfg(test)]
mod tests;
