//! From settings and hardware to command lines. Pure: reads nothing, starts nothing.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use lorikeet_router::config::Config;

use crate::cli::{Device, ServeArgs};
use crate::environment;
use crate::logs;
use crate::ranks::{MASTER_PORT, Ranks};
use crate::role::Role;
use crate::supervise::{Plan, Prepared, ProcessSpec, RouterPlan, SHARD_GRACE};

/// What is known of the place the processes run in.
#[derive(Debug, Clone)]
pub struct Host {
    /// This executable, which is the router's too.
    pub executable: PathBuf,
    pub python: PathBuf,
    /// Cores that may be used.
    pub cores: usize,
    /// GPUs granted by the environment, if it says.
    pub granted_gpus: Option<u32>,
    /// Where what can be made again is kept: `--cache-dir`, or the user's cache directory for this program.
    pub cache_dir: PathBuf,
}

/// What was chosen for this run.
#[derive(Debug)]
pub struct Run {
    pub prepared: Prepared,
    /// Private directory for the sockets.
    pub directory: PathBuf,
    /// Where to answer requests, if rank 0 is here.
    pub address: Option<SocketAddr>,
    /// Those of this machine.
    pub ranks: Ranks,
    /// What the router will make of its flags.
    pub config: Config,
}

/// The command that resolves the model.
pub fn prepare(args: &ServeArgs, host: &Host) -> ProcessSpec {
    let mut command = Arguments::python("prepare");
    command.pair("--model-id", &args.model_id.name);
    if let Some(revision) = args.revision() {
        command.pair("--revision", revision);
    }
    if let Some(cache) = &args.cache_dir {
        command.pair("--cache-dir", cache);
    }
    ProcessSpec {
        role: Role::Prepare,
        program: host.python.clone(),
        args: command.0,
        env: python_environment(args, host),
    }
}

/// The router drains by itself within `--drain-timeout`; this is how much later it is killed.
const AFTER_DRAIN: Duration = Duration::from_secs(4);

/// From SIGTERM to the end of the last process, at the longest.
pub fn longest_end(config: &Config) -> Duration {
    drain_deadline(config) + SHARD_GRACE + logs::PATIENCE
}

fn drain_deadline(config: &Config) -> Duration {
    config.http.drain_timeout + AFTER_DRAIN
}

/// Every process that serves.
pub fn plan(args: &ServeArgs, host: &Host, run: &Run) -> Plan {
    let sockets: Vec<_> = run.ranks.range().map(|rank| socket(&run.directory, rank)).collect();
    let shards = run.ranks.range().zip(&sockets).map(|(rank, at)| shard(args, host, run, rank, at));
    let router = |address| RouterPlan {
        process: router(args, host, run, address, &sockets),
        address: reachable(address),
    };
    Plan {
        shards: shards.collect(),
        router: run.address.map(router),
        meet_at: run.ranks.meet_at().map(ToOwned::to_owned),
        span_machines: run.ranks.span_machines(),
        max_restarts: args.max_shard_restarts,
        drain_deadline: drain_deadline(&run.config),
        sockets,
    }
}

/// Ranks on this machine: as asked, else one for each GPU that the environment grants, else one.
pub fn shard_count(args: &ServeArgs, host: &Host) -> u32 {
    let granted = if args.device == Device::Cpu { None } else { host.granted_gpus };
    args.num_shard.or(granted).unwrap_or(1).max(1)
}

/// Threads for each shard: as asked, else an equal share of the cores.
pub fn threads_per_shard(args: &ServeArgs, host: &Host) -> usize {
    args.threads_per_shard.unwrap_or_else(|| (host.cores / shard_count(args, host) as usize).max(1))
}

/// Where the shard of a rank listens, in the directory of the run.
pub fn socket(directory: &Path, rank: u32) -> PathBuf {
    directory.join(format!("shard-{rank}"))
}

fn shard(args: &ServeArgs, host: &Host, run: &Run, rank: u32, socket: &Path) -> ProcessSpec {
    let mut command = Arguments::python("serve");
    command.pair("--model-path", &run.prepared.model_path);
    command.pair("--model-id", &run.prepared.model_id);
    command.pair("--uds-path", socket);
    command.pair("--dtype", args.dtype.as_str());
    command.pair("--device", args.device.as_str());
    for root in &args.adapter_root {
        command.pair("--adapter-root", root);
    }
    command.pair("--store-dir", args.store_dir.clone().unwrap_or_else(|| host.cache_dir.join("adapters")));
    command.pair("--disk-bytes", run.config.adapters.adapter_disk_bytes.to_string());
    command.pair("--max-lora-rank", run.config.adapters.max_lora_rank.to_string());
    // Always: records carry their level, and are written again in the form that was asked for.
    command.flag("--json-output");

    let mut env = python_environment(args, host);
    env.extend([
        ("RANK", rank.to_string().into()),
        ("LOCAL_RANK", (rank - run.ranks.first).to_string().into()),
        ("LOCAL_WORLD_SIZE", run.ranks.count.to_string().into()),
        ("WORLD_SIZE", run.ranks.world_size.to_string().into()),
        ("MASTER_ADDR", run.ranks.master_addr.clone().into()),
        (MASTER_PORT, run.ranks.master_port.to_string().into()),
        ("OMP_NUM_THREADS", threads_per_shard(args, host).to_string().into()),
    ]);
    ProcessSpec { role: Role::Shard(rank), program: host.python.clone(), args: command.0, env }
}

fn router(args: &ServeArgs, host: &Host, run: &Run, address: SocketAddr, sockets: &[PathBuf]) -> ProcessSpec {
    let mut command = Arguments(vec!["router".into()]);
    command.pair("--hostname", address.ip().to_string());
    command.pair("--port", address.port().to_string());
    for socket in sockets {
        command.pair("--shard-socket", socket);
    }
    command.pair("--tokenizer-path", &run.prepared.tokenizer_path);
    command.pair("--model-id", &run.prepared.model_id);
    for root in &args.adapter_root {
        command.pair("--adapter-root", root);
    }
    if args.json_output {
        command.flag("--json-output");
    }
    command.0.extend(args.router.argv().iter().cloned());
    ProcessSpec {
        role: Role::Router,
        program: host.executable.clone(),
        args: command.0,
        env: vec![log_level(args)],
    }
}

fn python_environment(args: &ServeArgs, host: &Host) -> Vec<(&'static str, OsString)> {
    // Records must arrive when they are written, not when a buffer is full.
    let mut env = vec![("PYTHONUNBUFFERED", OsString::from("1"))];
    let (name, value) = environment::OWN_MODULES;
    env.push((name, value.into()));
    env.push((environment::CACHE_DIR, host.cache_dir.clone().into_os_string()));
    env.extend(
        args.huggingface_hub_cache.as_ref().map(|path| ("HF_HUB_CACHE", path.clone().into_os_string())),
    );
    env.push(log_level(args));
    env
}

fn log_level(args: &ServeArgs) -> (&'static str, OsString) {
    ("LOG_LEVEL", args.log_level.as_str().into())
}

/// Where a client on this machine reaches a server bound to `address`.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        std::net::IpAddr::V4(ip) if ip.is_unspecified() => std::net::Ipv4Addr::LOCALHOST.into(),
        std::net::IpAddr::V6(ip) if ip.is_unspecified() => std::net::Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

/// A command line under construction.
struct Arguments(Vec<OsString>);

impl Arguments {
    fn python(command: &str) -> Self {
        Self(["-m", "lorikeet_server", command].map(OsString::from).to_vec())
    }

    fn pair(&mut self, flag: &str, value: impl Into<OsString>) {
        self.0.extend([flag.into(), value.into()]);
    }

    fn flag(&mut self, flag: &str) {
        self.0.push(flag.into());
    }
}

#[cfg(test)]
mod tests;
