//! What computes: [`Device`]. Everything above this crate has one and does not know which.

use std::fmt;
use std::sync::Arc;

use crate::cpu::pool::Pool;
use crate::cuda::Cuda;
use crate::{CudaError, Stream};

/// A device with memory of its own, on which operations are enqueued through a [`Stream`]. Clones are the same device.
#[derive(Clone)]
pub struct Device(pub(crate) Kind);

/// The devices that there are. What an operation does on each of them stands in the methods of [`Stream`]; what memory is on
/// each, in [`Buffer`](crate::Buffer) and its views.
#[derive(Clone)]
pub(crate) enum Kind {
    /// The host's own cores and memory.
    Cpu(Arc<Pool>),
    /// One NVIDIA GPU.
    Cuda(Arc<Cuda>),
}

/// Memory of a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct MemoryUse {
    /// Bytes of buffers.
    pub used_bytes: usize,
    /// The most that they were.
    pub used_bytes_max: usize,
    /// Bytes of freed buffers that are kept for others.
    pub free_bytes: usize,
    /// How often new memory was asked of the system.
    pub allocations: u64,
}

impl Device {
    /// The CPU that this process runs on; it uses as many threads as [`set_threads`](crate::set_threads) says. Where the
    /// program is built with debug assertions it is [strict](Self::strict_cpu).
    pub fn cpu() -> Self {
        Self(Kind::Cpu(Arc::new(Pool::new(cfg!(debug_assertions)))))
    }

    /// The CPU, for tests of what is above: memory that nothing was written to holds NaN, and the host has copies where
    /// it could look at the memory itself, as with a device that has its own.
    pub fn strict_cpu() -> Self {
        Self(Kind::Cpu(Arc::new(Pool::new(true))))
    }

    /// The GPU of this number, from 0, as CUDA's driver counts. In `f32` its operations have the bits of those of the CPU.
    ///
    /// # Errors
    /// [`CudaError`] if there is no driver, no compiler of kernels (NVRTC) or no such GPU.
    pub fn cuda(ordinal: usize) -> Result<Self, CudaError> {
        Ok(Self(Kind::Cuda(Arc::new(Cuda::new(ordinal)?))))
    }

    /// The host in the place of a GPU, for tests: the kernels of GPUs and all that starts them, but built by `g++`, and slow. Memory that
    /// nothing was written to holds NaN.
    ///
    /// # Errors
    /// [`CudaError::NotEmulated`] if there is no `g++`, or the host is no x86-64.
    pub fn emulated_cuda() -> Result<Self, CudaError> {
        Ok(Self(Kind::Cuda(Arc::new(Cuda::emulated()?))))
    }

    /// A new queue of operations.
    pub fn stream(&self) -> Stream {
        Stream::new(self.clone())
    }

    /// Returns freed memory to the system: after work that needed more than what follows will.
    pub fn release_free_memory(&self) {
        match &self.0 {
            Kind::Cpu(pool) => pool.release(),
            Kind::Cuda(cuda) => cuda.release(),
        }
    }

    /// How much of its memory is in use.
    pub fn memory_use(&self) -> MemoryUse {
        match &self.0 {
            Kind::Cpu(pool) => pool.memory_use(),
            Kind::Cuda(cuda) => cuda.memory_use(),
        }
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match &self.0 {
            Kind::Cpu(_) => "Cpu",
            Kind::Cuda(_) => "Cuda",
        };
        out.debug_tuple(name).field(&self.memory_use()).finish()
    }
}
