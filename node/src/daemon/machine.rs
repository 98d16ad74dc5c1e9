//! What this machine has, as the coordinator's placement needs to know it.

use sixfold_cluster::protocol::{Capabilities, Gpu};

use crate::cli::NodeArgs;

/// What the node offers.
pub(super) fn capabilities(args: &NodeArgs) -> Capabilities {
    let cores = || std::thread::available_parallelism().map_or(1, |cores| cores.get() as u32);
    let gpus = sixfold_tensor::gpus();
    if gpus.is_empty() {
        tracing::info!("no GPU here; the CPU computes");
    }
    let gpu = |gpu: sixfold_tensor::Gpu| Gpu { name: gpu.name, memory_bytes: gpu.memory_bytes };
    Capabilities {
        cores: args.cores.unwrap_or_else(cores).max(1),
        memory_bytes: memory_bytes(),
        simd: sixfold_tensor::simd_level().name().to_owned(),
        gpus: gpus.into_iter().map(gpu).collect(),
        host: host_name(),
        failure_domain: args.failure_domain.clone().unwrap_or_default(),
    }
}

/// Bytes of trainings' states that the node holds in memory: as told, or a quarter of what the machine has.
pub(super) fn hold_bytes_max(args: &NodeArgs) -> u64 {
    /// Where the system does not say what the machine has.
    const UNKNOWN: u64 = 1 << 30;
    match (args.hold_mib, memory_bytes()) {
        (Some(mib), _) => mib.saturating_mul(1 << 20),
        (None, 0) => UNKNOWN,
        (None, memory) => memory / 4,
    }
}

/// The machine's name; in a container that of the container.
pub(super) fn host_name() -> String {
    let read = |path: &str| std::fs::read_to_string(path).ok().map(|text| text.trim().to_owned());
    let name = read("/proc/sys/kernel/hostname").or_else(|| std::env::var("HOSTNAME").ok());
    name.unwrap_or_else(|| "node".to_owned())
}

/// Main memory, or 0 where the system does not say in a way that we read.
fn memory_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib: Option<u64> = line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok());
    kib.unwrap_or(0) * 1024
}
