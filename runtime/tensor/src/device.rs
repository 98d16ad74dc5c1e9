//! What computes: [`Device`]. Everything above this crate has one and does not know which.

use std::fmt;
use std::sync::Arc;

use crate::Stream;
use crate::cpu::pool::Pool;

/// A device with memory of its own, on which operations are enqueued through a [`Stream`]. Clones are the same device.
#[derive(Clone)]
pub struct Device(pub(crate) Kind);

/// The devices that there are. What an operation does on each of them stands in the methods of [`Stream`]; what memory is on
/// each, in [`Buffer`](crate::Buffer) and its views.
#[derive(Clone)]
pub(crate) enum Kind {
    /// The host's own cores and memory.
    Cpu(Arc<Pool>),
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

    /// A new queue of operations.
    pub fn stream(&self) -> Stream {
        Stream::new(self.clone())
    }

    /// Returns freed memory to the system: after work that needed more than what follows will.
    pub fn release_free_memory(&self) {
        let Kind::Cpu(pool) = &self.0;
        pool.release();
    }

    /// How much of its memory is in use.
    pub fn memory_use(&self) -> MemoryUse {
        let Kind::Cpu(pool) = &self.0;
        pool.memory_use()
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Kind::Cpu(pool) = &self.0;
        out.debug_tuple("Cpu").field(&pool.memory_use()).finish()
    }
}
