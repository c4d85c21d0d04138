//! Finds what would make `serve` fail, before anything is started. Each complaint names the flag and the mend.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail, ensure};
use lorikeet_router::config::Config;

use crate::cli::{Device, ServeArgs};
use crate::environment;
use crate::hardware::Hardware;
use crate::plan::{self, Host};
use crate::ranks::Ranks;

/// `sun_path` of a Unix socket address, with its final zero.
const SOCKET_PATH_BYTES: usize = 108;

/// The model, if it is a path, is something that can be read.
pub fn model(args: &ServeArgs) -> anyhow::Result<()> {
    let name = &args.model_id.name;
    ensure!(!name.is_empty(), "--model-id is empty: give a directory, a GGUF file or a name on the hub");
    ensure!(
        args.revision.is_none() || args.model_id.revision.is_none(),
        "--revision and the revision in --model-id {name}@… are both given: give one"
    );
    let path = Path::new(name);
    let is_path = name.starts_with(['/', '.', '~'])
        || path.exists()
        || path.extension().is_some_and(|ext| ext == "gguf");
    if !is_path {
        return Ok(());
    }
    let metadata =
        path.metadata().with_context(|| format!("--model-id {name} cannot be read: give another path"))?;
    if metadata.is_dir() {
        for file in ["config.json", "tokenizer.json"] {
            ensure!(
                path.join(file).is_file(),
                "--model-id {name} has no {file}: give a directory in the hub's layout"
            );
        }
        let weights = path.read_dir().with_context(|| format!("--model-id {name} cannot be listed"))?;
        let mut names = weights.flatten().map(|entry| entry.path());
        ensure!(
            names.any(|file| file.extension().is_some_and(|extension| extension == "safetensors")),
            "--model-id {name} has no *.safetensors file: convert the weights, or give a .gguf file"
        );
        return Ok(());
    }
    let mut magic = [0; 4];
    File::open(path)
        .and_then(|mut file| file.read_exact(&mut magic))
        .with_context(|| format!("--model-id {name} cannot be read: give another path"))?;
    ensure!(&magic == b"GGUF", "--model-id {name} is no GGUF file: give a directory or a .gguf file");
    Ok(())
}

/// Where what can be made again is kept.
pub fn cache_dir(args: &ServeArgs) -> anyhow::Result<PathBuf> {
    let given = args.cache_dir.clone().or_else(environment::cache_dir);
    given.context(
        "--cache-dir: HOME is not set, and this user has no home: give a directory that can be written",
    )
}

/// Adapter roots are directories that can be listed. Returns them without links and relative parts.
pub fn adapter_roots(roots: &[PathBuf]) -> anyhow::Result<Vec<PathBuf>> {
    let check = |root: &PathBuf| {
        let at = root.display();
        let mend = "give an existing directory";
        let real = root.canonicalize().with_context(|| format!("--adapter-root {at}: {mend}"))?;
        real.read_dir().with_context(|| format!("--adapter-root {at} cannot be listed: {mend}"))?;
        Ok(real)
    };
    roots.iter().map(check).collect()
}

/// The address to listen on, free at this moment. Port 0 becomes a free port.
pub fn address(args: &ServeArgs) -> anyhow::Result<SocketAddr> {
    let (hostname, port) = (&args.hostname, args.port);
    let resolved = (hostname.as_str(), port)
        .to_socket_addrs()
        .ok()
        .and_then(|mut all| all.next())
        .with_context(|| format!("--hostname {hostname} is no address of this machine: try 127.0.0.1"))?;
    match TcpListener::bind(resolved) {
        Ok(listener) => Ok(listener.local_addr()?),
        Err(error) if error.kind() == ErrorKind::AddrInUse => {
            bail!("--port {port} is in use on {hostname}: stop the other server or give another port")
        }
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            bail!("--port {port} may not be opened by this user: give one from 1024 up")
        }
        Err(error) => bail!("--hostname {hostname} cannot be listened on ({error}): try 127.0.0.1"),
    }
}

/// Which ranks run here. Where rank 0 does, and others have to meet it, its port is free at this moment.
pub fn ranks(args: &ServeArgs, host: &Host) -> anyhow::Result<Ranks> {
    let ranks = Ranks::of(args, plan::shard_count(args, host))?;
    if ranks.lead() && ranks.world_size > 1 {
        let (addr, port) = (&ranks.master_addr, ranks.master_port);
        let listener = TcpListener::bind((addr.as_str(), port)).map_err(|error| match error.kind() {
            ErrorKind::AddrInUse => anyhow!("--master-port {port} is in use at {addr}: give another"),
            _ => anyhow!("--master-addr {addr} is no address of this machine, which has rank 0 ({error})"),
        })?;
        let ip = listener.local_addr()?.ip();
        if ranks.span_machines() && ip.is_loopback() {
            tracing::warn!("--master-addr {addr} is {ip} here, where no other machine can reach it");
        }
    }
    Ok(ranks)
}

/// The Python that is to run the shards, as a path that can be executed.
pub fn python(given: Option<&PathBuf>) -> anyhow::Result<PathBuf> {
    let python = given.cloned().unwrap_or_else(environment::python);
    environment::find_command(&python).with_context(|| {
        format!("--python {} does not exist: give the Python that has the lorikeet package", python.display())
    })
}

/// There are as many devices as ranks.
pub fn devices(args: &ServeArgs, host: &Host) -> anyhow::Result<()> {
    if args.device != Device::Cuda {
        return Ok(());
    }
    let gpus = host.granted_gpus.unwrap_or_else(|| Hardware::detect().gpus.len() as u32);
    ensure!(gpus > 0, "--device cuda, but this machine shows no GPU: check nvidia-smi, or give --device cpu");
    let ranks = plan::shard_count(args, host);
    ensure!(ranks <= gpus, "--num-shard {ranks} is more than the {gpus} GPUs there are: give at most {gpus}");
    Ok(())
}

/// A drain ends before the supervisor of this server loses its patience.
pub fn grace(args: &ServeArgs, config: &Config) -> anyhow::Result<()> {
    let Some(grace) = args.termination_grace_period else { return Ok(()) };
    let (drain, longest) = (config.http.drain_timeout, plan::longest_end(config));
    let overhead = longest.saturating_sub(drain);
    let mend = match grace.checked_sub(overhead) {
        Some(most) => format!(
            "give --drain-timeout {}, or raise the period to {}",
            most.as_secs_f64(),
            longest.as_secs_f64()
        ),
        None => format!("raise the period to {}", longest.as_secs_f64()),
    };
    ensure!(
        longest <= grace,
        "--termination-grace-period {} ends before a drain may: --drain-timeout {} and {} seconds to end after it; {mend}",
        grace.as_secs_f64(),
        drain.as_secs_f64(),
        overhead.as_secs_f64(),
    );
    Ok(())
}

/// Sockets in this directory have names that the system accepts.
pub fn socket_length(directory: &Path, ranks: Range<u32>) -> anyhow::Result<()> {
    let longest = ranks.last().map_or(0, |rank| plan::socket(directory, rank).as_os_str().len());
    ensure!(
        longest < SOCKET_PATH_BYTES,
        "--shard-uds-path: {} makes socket names of {longest} bytes, the system allows {}: give a shorter directory",
        directory.display(),
        SOCKET_PATH_BYTES - 1
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_socket_names_are_refused() {
        assert!(socket_length(Path::new("/run/user/1000/lorikeet-abcdef"), 0..8).is_ok());
        let deep = PathBuf::from(format!("/tmp/{}", "d".repeat(100)));
        assert!(socket_length(&deep, 0..1).unwrap_err().to_string().contains("--shard-uds-path"));
    }
}
