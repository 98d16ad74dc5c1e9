//! How a kernel is started: [`Launch`].

use super::driver::{Driver, Function};
use super::memory::{Matrix, Run};

/// Threads of a block where each has an element of its own.
const THREADS: u32 = 256;

/// A kernel, and the arguments given so far, in the order of its parameters.
#[must_use = "a kernel starts with `launch` or `over`"]
pub(crate) struct Launch<'a> {
    driver: &'a Driver,
    name: &'static str,
    function: Function,
    /// Each in the low bytes.
    arguments: Vec<u64>,
}

impl<'a> Launch<'a> {
    pub(super) fn new(driver: &'a Driver, name: &'static str, function: Function) -> Self {
        Self { driver, name, function, arguments: Vec::with_capacity(16) }
    }

    /// A pointer to elements, `float *` or `u32 *`.
    pub(crate) fn run(self, run: Run) -> Self {
        self.argument(run.pointer)
    }

    /// A pointer and two strides, `float *, u64 row_stride, u64 col_stride`.
    pub(crate) fn matrix(self, matrix: Matrix) -> Self {
        let Matrix { pointer, row_stride, col_stride, .. } = matrix;
        self.argument(pointer).size(row_stride).size(col_stride)
    }

    /// A pointer and a stride, of a matrix whose columns lie side by side: `float *, u64 row_stride`.
    ///
    /// # Panics
    /// They do not.
    pub(crate) fn rows(self, matrix: Matrix) -> Self {
        assert!(matrix.col_stride == 1 || matrix.cols < 2, "columns of a matrix lie side by side");
        self.argument(matrix.pointer).size(matrix.row_stride)
    }

    /// A pointer, of a matrix whose stride stands elsewhere among the arguments: `float *`.
    pub(crate) fn pointer(self, matrix: Matrix) -> Self {
        self.argument(matrix.pointer)
    }

    /// A number of elements, `u64`.
    pub(crate) fn size(self, size: usize) -> Self {
        self.argument(size as u64)
    }

    /// A number of elements, `u32`.
    ///
    /// # Panics
    /// There are 2^32 or more.
    pub(crate) fn count(self, count: usize) -> Self {
        assert!(u32::try_from(count).is_ok(), "{count} elements of {}", self.name);
        self.argument(count as u64)
    }

    /// A `u64`.
    pub(crate) fn u64(self, value: u64) -> Self {
        self.argument(value)
    }

    /// A `u32`.
    pub(crate) fn u32(self, value: u32) -> Self {
        self.argument(value.into())
    }

    /// A `float`.
    pub(crate) fn float(self, value: f32) -> Self {
        self.argument(value.to_bits().into())
    }

    fn argument(mut self, slot: u64) -> Self {
        self.arguments.push(slot);
        self
    }

    /// Starts a thread for each of `count` elements, and some more, which the kernel has to turn away.
    pub(crate) fn over(self, count: usize) {
        self.launch([count.div_ceil(THREADS as usize), 1], [THREADS, 1]);
    }

    /// Starts `grid` blocks (`x`, `y`) of `block` threads; none at all where the grid is empty.
    ///
    /// # Panics
    /// The grid is larger than a GPU's: 2^31 - 1 by 65535.
    pub(crate) fn launch(mut self, grid: [usize; 2], block: [u32; 2]) {
        if grid.contains(&0) {
            return;
        }
        assert!(grid[0] < 1 << 31 && grid[1] < 1 << 16, "grid {grid:?} of {}", self.name);
        self.driver.launch(self.name, self.function, grid.map(|dim| dim as u32), block, &mut self.arguments);
    }
}
