//! Memory of a GPU: [`Block`]s in use, [`Run`]s and [`Matrix`] in them.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::driver::Driver;
use crate::device::MemoryUse;
use crate::free_list::{FreeList, size_class};

/// What memory holds: elements of four bytes.
pub(crate) trait Element: bytemuck::Pod {}

impl Element for f32 {}
impl Element for u32 {}

/// Elements of four bytes in the memory of a GPU, read or written. The views that they are made of keep their buffers; kernels are
/// enqueued while those live, and memory serves other buffers only for what is enqueued later.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    /// Address of the first.
    pub(crate) pointer: u64,
    /// Elements.
    pub(crate) len: usize,
}

impl Run {
    /// Some of the elements.
    ///
    /// # Panics
    /// The range ends beyond them.
    pub(crate) fn slice(self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.len, "elements {range:?} of {}", self.len);
        Self { pointer: self.pointer + (range.start * size_of::<f32>()) as u64, len: range.len() }
    }
}

/// A matrix in the memory of a GPU: element `(row, column)` lies `row * row_stride + column * col_stride` elements after
/// `pointer`. All of it lies in one buffer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Matrix {
    /// Address of the first element.
    pub(crate) pointer: u64,
    /// Number of rows.
    pub(crate) rows: usize,
    /// Number of columns.
    pub(crate) cols: usize,
    /// Elements from one row to the next.
    pub(crate) row_stride: usize,
    /// Elements from one column to the next.
    pub(crate) col_stride: usize,
}

impl Matrix {
    /// A matrix over a run.
    ///
    /// # Panics
    /// The last element lies beyond the run.
    pub(crate) fn new(run: Run, [rows, cols]: [usize; 2], row_stride: usize, col_stride: usize) -> Self {
        let end = match rows == 0 || cols == 0 {
            true => 0,
            false => (rows - 1) * row_stride + (cols - 1) * col_stride + 1,
        };
        assert!(end <= run.len, "a {rows}x{cols} matrix needs {end} elements, the run has {}", run.len);
        Self { pointer: run.pointer, rows, cols, row_stride, col_stride }
    }

    /// The given columns.
    ///
    /// # Panics
    /// The range ends beyond them.
    pub(crate) fn columns(self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.cols, "columns {range:?} of {}", self.cols);
        let offset = range.start * self.col_stride * size_of::<f32>();
        Self { pointer: self.pointer + offset as u64, cols: range.len(), ..self }
    }

    /// The given rows.
    ///
    /// # Panics
    /// The range ends beyond them.
    pub(crate) fn row_range(self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.rows, "rows {range:?} of {}", self.rows);
        let offset = range.start * self.row_stride * size_of::<f32>();
        Self { pointer: self.pointer + offset as u64, rows: range.len(), ..self }
    }
}

/// Memory that the driver gave; it takes it back when this is dropped.
struct Piece {
    pointer: u64,
    driver: Arc<Driver>,
}

impl Drop for Piece {
    fn drop(&mut self) {
        self.driver.free(self.pointer);
    }
}

/// Freed memory of one GPU.
pub(super) struct Pool {
    driver: Arc<Driver>,
    free: Mutex<FreeList<Piece>>,
}

impl Pool {
    pub(super) fn new(driver: Arc<Driver>) -> Self {
        Self { driver, free: Mutex::default() }
    }

    /// Memory for `len` elements or more, which hold anything.
    pub(super) fn take(self: &Arc<Self>, len: usize) -> Block {
        if len == 0 {
            return Block { piece: None, len, pool: self.clone() };
        }
        let class = self.class(len);
        let mut free = self.free();
        let found = free.take(class);
        let dropped = free.trim();
        drop(free);
        drop(dropped);
        let piece =
            found.unwrap_or_else(|| Piece { pointer: self.allocate(class), driver: self.driver.clone() });
        Block { piece: Some(piece), len, pool: self.clone() }
    }

    /// Elements of the piece for `len` elements.
    fn class(&self, len: usize) -> usize {
        // Where an access beyond the end is found out, the end is where the elements end.
        if self.driver.is_emulated() { len.next_multiple_of(4) } else { size_class(len) }
    }

    fn allocate(&self, class: usize) -> u64 {
        let bytes = class * size_of::<f32>();
        self.driver.allocate(bytes).unwrap_or_else(|_| {
            // What is kept may be what is missing.
            let kept = self.free().drain();
            drop(kept);
            self.driver.allocate(bytes).unwrap_or_else(|error| {
                let used = self.memory_use().used_bytes;
                panic!("{error}: {bytes} bytes beside {used} bytes of buffers")
            })
        })
    }

    pub(super) fn release(&self) {
        let free = self.free().release();
        drop(free);
    }

    pub(super) fn memory_use(&self) -> MemoryUse {
        self.free().memory_use()
    }

    fn free(&self) -> MutexGuard<'_, FreeList<Piece>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Memory in use; goes back to its pool when it is dropped.
pub(crate) struct Block {
    /// None where there are no elements.
    piece: Option<Piece>,
    len: usize,
    pool: Arc<Pool>,
}

impl Block {
    /// Its elements.
    pub(crate) fn run(&self) -> Run {
        Run { pointer: self.piece.as_ref().map_or(0, |piece| piece.pointer), len: self.len }
    }
}

impl std::fmt::Debug for Block {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.run().fmt(out)
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        let Some(piece) = self.piece.take() else { return };
        let mut free = self.pool.free();
        free.give_back(self.pool.class(self.len), piece);
        let dropped = free.trim();
        drop(free);
        drop(dropped);
    }
}
