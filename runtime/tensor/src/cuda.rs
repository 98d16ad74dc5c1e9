//! NVIDIA GPUs: the second device.
//!
//! In `f32` every operation has the bits that it has on the CPU. So there is no cuBLAS, no tensor core and no function of
//! CUDA's mathematical library here: the kernels (`kernels/*.cu`) are ours, in the orders of additions of [`cpu`](crate::cpu). They are compiled
//! at run time by NVRTC, without contractions and with exact quotients and roots. Only the payload of a NaN may differ.
//!
//! They keep to a small part of CUDA C++, so that a compiler of the host takes them too: tests run whole programs on
//! such a device ([`Device::emulated_cuda`](crate::Device::emulated_cuda)), where there is no GPU.
//!
//! Read [`Cuda`] first, then [`Launch`]; what an operation does stands in the file of its topic.

pub(crate) mod activation;
pub(crate) mod attention;
pub(crate) mod compressed;
mod driver;
pub(crate) mod elementwise;
pub(crate) mod embedding;
mod emulated;
mod error;
mod gpu;
mod launch;
pub(crate) mod loss;
mod memory;
pub(crate) mod norm;
pub(crate) mod product;
pub(crate) mod rows;
mod sources;
pub(crate) mod sum;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use driver::{Driver, Function};
pub use error::CudaError;
pub(crate) use launch::Launch;
pub(crate) use memory::{Block, Matrix, Run};
use memory::{Element, Pool};

use crate::device::MemoryUse;

/// Uploaded arguments that are kept.
const CONSTANTS_KEPT: usize = 512;

/// One GPU, its queue, its memory and its kernels.
pub(crate) struct Cuda {
    driver: Arc<Driver>,
    pool: Arc<Pool>,
    functions: Mutex<HashMap<&'static str, Function>>,
    /// What shapes operations, by content; see [`Self::constants`].
    constants: Mutex<HashMap<Vec<u32>, Arc<Block>>>,
}

impl Cuda {
    /// The GPU of this number. Its kernels' compiler has been tried once this returns.
    pub(crate) fn new(ordinal: usize) -> Result<Self, CudaError> {
        Self::of(Driver::gpu(ordinal)?)
    }

    /// The host in the place of a GPU.
    pub(crate) fn emulated() -> Result<Self, CudaError> {
        Self::of(Driver::emulated()?)
    }

    fn of(driver: Driver) -> Result<Self, CudaError> {
        let driver = Arc::new(driver);
        let first = driver.function("elementwise", "fill")?;
        Ok(Self {
            pool: Arc::new(Pool::new(driver.clone())),
            driver,
            functions: Mutex::new(HashMap::from([("fill", first)])),
            constants: Mutex::default(),
        })
    }

    /// Memory for `len` elements or more, which hold anything.
    pub(crate) fn take(&self, len: usize) -> Block {
        let block = self.pool.take(len);
        if self.driver.is_emulated() && len > 0 {
            // As a strict CPU does.
            elementwise::fill(self, block.run(), f32::NAN);
        }
        block
    }

    /// Copies from the host, which may change its elements once this returns.
    pub(crate) fn copy_in<T: Element>(&self, values: &[T], to: Run) {
        assert_eq!(values.len(), to.len, "lengths of a copy from the host");
        self.driver.copy_in(bytemuck::cast_slice(values), to.pointer);
    }

    /// Copies to the host, once all operations before are done.
    pub(crate) fn copy_out<T: Element>(&self, from: Run, values: &mut [T]) {
        assert_eq!(values.len(), from.len, "lengths of a copy to the host");
        self.driver.copy_out(from.pointer, bytemuck::cast_slice_mut(values));
    }

    /// Elements of the host, in memory of the device.
    pub(crate) fn upload<T: Element>(&self, values: &[T]) -> Block {
        let block = self.pool.take(values.len());
        self.copy_in(values, block.run());
        block
    }

    /// Numbers that shape an operation, such as ends of segments, in memory of the device. The same ones come again in every layer
    /// and step, so that they are uploaded once. The operations that read them must be enqueued before the block is dropped.
    pub(crate) fn constants(&self, values: &[u32]) -> Arc<Block> {
        let mut constants = self.constants.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(block) = constants.get(values) {
            return block.clone();
        }
        if constants.len() >= CONSTANTS_KEPT {
            constants.clear();
        }
        let block = Arc::new(self.upload(values));
        constants.insert(values.to_vec(), block.clone());
        block
    }

    /// A kernel to launch: `name` in `kernels/<source>.cu`.
    ///
    /// # Panics
    /// There is no such kernel, or it cannot be compiled.
    pub(crate) fn kernel(&self, source: &'static str, name: &'static str) -> Launch<'_> {
        let mut functions = self.functions.lock().unwrap_or_else(PoisonError::into_inner);
        let function = functions.entry(name).or_insert_with(|| {
            self.driver.function(source, name).unwrap_or_else(|error| panic!("{source}::{name}: {error}"))
        });
        Launch::new(&self.driver, name, *function)
    }

    pub(crate) fn release(&self) {
        self.constants.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.pool.release();
    }

    pub(crate) fn memory_use(&self) -> MemoryUse {
        self.pool.memory_use()
    }
}
