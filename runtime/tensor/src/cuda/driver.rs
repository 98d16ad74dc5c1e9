//! What starts kernels and has the memory: CUDA's driver, or in tests the host in its place.

use super::CudaError;
use super::emulated::Emulated;
use super::gpu::Gpu;

/// A GPU or the host in its place. Where a GPU fails, the process cannot use it any more, and what is asked of it panics.
pub(super) enum Driver {
    Gpu(Gpu),
    Emulated(Emulated),
}

/// A compiled kernel of one driver.
#[derive(Clone, Copy)]
pub(super) struct Function(pub(super) usize);

impl Driver {
    pub(super) fn gpu(ordinal: usize) -> Result<Self, CudaError> {
        Gpu::new(ordinal).map(Self::Gpu)
    }

    pub(super) fn emulated() -> Result<Self, CudaError> {
        Emulated::new().map(Self::Emulated)
    }

    pub(super) fn is_emulated(&self) -> bool {
        matches!(self, Self::Emulated(_))
    }

    pub(super) fn function(&self, source: &str, name: &str) -> Result<Function, CudaError> {
        match self {
            Self::Gpu(gpu) => gpu.function(source, name),
            Self::Emulated(emulated) => emulated.function(name),
        }
    }

    pub(super) fn allocate(&self, bytes: usize) -> Result<u64, CudaError> {
        match self {
            Self::Gpu(gpu) => gpu.allocate(bytes),
            Self::Emulated(emulated) => emulated.allocate(bytes),
        }
    }

    pub(super) fn free(&self, pointer: u64) {
        match self {
            Self::Gpu(gpu) => gpu.free(pointer),
            Self::Emulated(emulated) => emulated.free(pointer),
        }
    }

    pub(super) fn copy_in(&self, from: &[u8], to: u64) {
        match self {
            _ if from.is_empty() => (),
            Self::Gpu(gpu) => gpu.copy_in(from, to),
            Self::Emulated(emulated) => emulated.copy_in(from, to),
        }
    }

    pub(super) fn copy_out(&self, from: u64, to: &mut [u8]) {
        match self {
            _ if to.is_empty() => (),
            Self::Gpu(gpu) => gpu.copy_out(from, to),
            Self::Emulated(emulated) => emulated.copy_out(from, to),
        }
    }

    pub(super) fn launch(
        &self,
        name: &str,
        function: Function,
        grid: [u32; 2],
        block: [u32; 2],
        arguments: &mut [u64],
    ) {
        match self {
            Self::Gpu(gpu) => gpu.launch(name, function, grid, block, arguments),
            Self::Emulated(emulated) => emulated.launch(function, grid, block, arguments),
        }
    }
}
