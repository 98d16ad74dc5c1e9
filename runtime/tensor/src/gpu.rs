//! The accelerators of this machine.
//!
//! CUDA's driver library is looked up at run time: a machine without it reports no GPU, which is no error.
#![allow(unsafe_code)]

use cudarc::driver::{DriverError, result, sys};

/// One GPU.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Gpu {
    /// The name its driver gives.
    pub name: String,
    /// Total memory.
    pub memory_bytes: u64,
}

/// The GPUs that CUDA's driver reports, in its order; empty without a driver or a device.
pub fn gpus() -> Vec<Gpu> {
    // SAFETY: this only tries to open the driver's library, whose initialisers are trusted like any system library's.
    if !unsafe { sys::is_culib_present() } {
        return Vec::new();
    }
    // A driver that is older than cudarc's bindings lacks symbols, on which cudarc panics.
    match std::panic::catch_unwind(query) {
        Ok(Ok(gpus)) => gpus,
        Ok(Err(error)) => {
            tracing::info!(%error, "CUDA's driver reports no device");
            Vec::new()
        }
        Err(_) => {
            tracing::warn!("CUDA's driver library lacks functions; its devices are not used");
            Vec::new()
        }
    }
}

fn query() -> Result<Vec<Gpu>, DriverError> {
    result::init()?;
    (0..result::device::get_count()?)
        .map(|ordinal| {
            let device = result::device::get(ordinal)?;
            // SAFETY: the device comes from `get`.
            let memory_bytes = unsafe { result::device::total_mem(device)? } as u64;
            Ok(Gpu { name: result::device::get_name(device)?, memory_bytes })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_cuda_reports_no_gpu_and_one_with_it_reports_memory() {
        // SAFETY: as in `gpus`.
        let present = unsafe { sys::is_culib_present() };
        let gpus = gpus();
        assert!(present || gpus.is_empty());
        assert!(gpus.iter().all(|gpu| gpu.memory_bytes > 0 && !gpu.name.is_empty()));
    }
}
