//! What the machine has. Everything is read; nothing is decided here.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};

use serde::Serialize;

use crate::environment;

/// Instruction sets that our kernels, or those of torch, choose by.
const INTERESTING: [&str; 9] =
    ["avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "asimd"];

#[derive(Debug, Clone, Serialize)]
pub struct Hardware {
    pub cpu: Cpu,
    pub memory: Option<Memory>,
    pub gpus: Vec<Gpu>,
}

#[derive(Debug, Clone, Serialize)]
pub struct Cpu {
    pub model: Option<String>,
    /// Cores that this process may use.
    pub cores: usize,
    pub features: Vec<&'static str>,
}

#[derive(Debug, Clone, Copy, Serialize)]
pub struct Memory {
    pub total_bytes: u64,
    pub available_bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Gpu {
    pub name: String,
    pub memory_mib: Option<u64>,
    pub driver: String,
}

impl Hardware {
    /// Looks at this machine.
    pub fn detect() -> Self {
        let cpu_info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let memory_info = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let memory = Memory::parse(&memory_info).map(|memory| memory.within(Path::new("/sys/fs/cgroup")));
        Self { cpu: Cpu::parse(&cpu_info), memory, gpus: gpus() }
    }
}

/// Cores that this process may use: what affinity and cgroup quota allow, hyperthreads counted once. Two
/// kernel threads on one core only wait for each other.
pub fn cores() -> usize {
    let allowed = std::thread::available_parallelism().map_or(1, usize::from);
    let cpu_info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    physical_cores(&cpu_info).map_or(allowed, |physical| allowed.min(physical))
}

/// Distinct pairs of socket and core; `None` where the system does not tell.
fn physical_cores(cpu_info: &str) -> Option<usize> {
    let (mut socket, mut cores) = ("", BTreeSet::new());
    for (key, value) in cpu_info.lines().filter_map(|line| line.split_once(':')) {
        match key.trim() {
            "physical id" => socket = value.trim(),
            "core id" => _ = cores.insert((socket, value.trim())),
            _ => {}
        }
    }
    (!cores.is_empty()).then_some(cores.len())
}

impl Cpu {
    fn parse(cpu_info: &str) -> Self {
        let field = |name: &str| {
            cpu_info
                .lines()
                .filter_map(|line| line.split_once(':'))
                .find(|(key, _)| key.trim() == name)
                .map(|(_, value)| value.trim().to_owned())
        };
        let flags = field("flags").or_else(|| field("Features")).unwrap_or_default();
        let has = |name: &str| flags.split_whitespace().any(|flag| flag == name);
        Self {
            model: field("model name"),
            cores: cores(),
            features: INTERESTING.into_iter().filter(|name| has(name)).collect(),
        }
    }
}

impl Memory {
    fn parse(memory_info: &str) -> Option<Self> {
        let bytes = |name: &str| {
            let line = memory_info.lines().find(|line| line.starts_with(name))?;
            let kibibytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
            Some(kibibytes * 1024)
        };
        Some(Self { total_bytes: bytes("MemTotal:")?, available_bytes: bytes("MemAvailable:")? })
    }

    /// Less in a container that is bounded, whose control group is `cgroup`.
    fn within(self, cgroup: &Path) -> Self {
        let read = |name: &str| std::fs::read_to_string(cgroup.join(name)).unwrap_or_default();
        let number = |text: &str| text.trim().parse::<u64>().ok();
        let (limit, used) = (number(&read("memory.max")), number(&read("memory.current")));
        let (Some(limit), Some(used)) = (limit, used) else { return self };
        // Page cache is counted as used, but gives way.
        let cached =
            read("memory.stat").lines().find_map(|line| number(line.strip_prefix("inactive_file ")?));
        let free = limit.saturating_sub(used.saturating_sub(cached.unwrap_or(0)));
        Self { total_bytes: self.total_bytes.min(limit), available_bytes: self.available_bytes.min(free) }
    }
}

/// GPUs that `nvidia-smi` lists; none if there is no driver.
fn gpus() -> Vec<Gpu> {
    if environment::find_command(Path::new("nvidia-smi")).is_none() {
        return Vec::new();
    }
    let output = Command::new("nvidia-smi")
        .args(["--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits"])
        .stdin(Stdio::null())
        .output();
    match output {
        Ok(output) if output.status.success() => parse_gpus(&String::from_utf8_lossy(&output.stdout)),
        _ => Vec::new(),
    }
}

fn parse_gpus(csv: &str) -> Vec<Gpu> {
    csv.lines()
        .filter_map(|line| {
            let mut columns = line.split(',').map(str::trim);
            Some(Gpu {
                name: columns.next()?.to_owned(),
                memory_mib: columns.next()?.parse().ok(),
                driver: columns.next()?.to_owned(),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_cpu() {
        let cpu = Cpu::parse(
            "processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: fpu fma avx2 f16c\n\nprocessor\t: 1\n",
        );
        assert_eq!(cpu.model.as_deref(), Some("Some CPU"));
        assert_eq!(cpu.features, ["avx2", "fma", "f16c"]);
        assert!(cpu.cores >= 1);
        assert!(Cpu::parse("").features.is_empty());
    }

    #[test]
    fn hyperthreads_count_once() {
        let thread = |socket, core| format!("physical id\t: {socket}\ncore id\t\t: {core}\n\n");
        let threads: String =
            [(0, 0), (0, 1), (0, 0), (0, 1), (1, 0)].map(|(socket, core)| thread(socket, core)).concat();
        assert_eq!(physical_cores(&threads), Some(3));
        assert_eq!(physical_cores("processor : 0\n"), None);
    }

    #[test]
    fn reads_memory() {
        let memory = Memory::parse("MemTotal:  2048 kB\nMemFree: 1 kB\nMemAvailable:   1024 kB\n").unwrap();
        assert_eq!((memory.total_bytes, memory.available_bytes), (2 << 20, 1 << 20));
        assert!(Memory::parse("MemTotal: many kB").is_none());
    }

    #[test]
    fn a_container_bounds_memory() {
        let machine = Memory { total_bytes: 4000, available_bytes: 3000 };
        let cgroup = tempfile::tempdir().unwrap();
        let write = |name, text| std::fs::write(cgroup.path().join(name), text).unwrap();
        let within = || {
            let memory = machine.within(cgroup.path());
            (memory.total_bytes, memory.available_bytes)
        };
        assert_eq!(within(), (4000, 3000));
        write("memory.max", "max\n");
        write("memory.current", "900\n");
        assert_eq!(within(), (4000, 3000));
        write("memory.max", "1000\n");
        assert_eq!(within(), (1000, 100));
        write("memory.stat", "anon 1\ninactive_file 300\n");
        assert_eq!(within(), (1000, 400));
    }

    #[test]
    fn reads_gpus() {
        let gpus = parse_gpus("NVIDIA H200, 143771, 570.1\nNVIDIA GB10, [N/A], 580.2\n\n");
        assert_eq!(gpus.len(), 2);
        assert_eq!(gpus[0].memory_mib, Some(143_771));
        assert_eq!(gpus[1].memory_mib, None);
    }
}
