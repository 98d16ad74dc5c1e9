//! Sums in the tree, sums of squares, and the search for numbers that are not finite.

use crate::cuda::sum;
use crate::device::Kind;
use crate::{Stream, View, ViewMut, cpu};

impl Stream {
    /// Adds the parts of `len` elements, which lie side by side, in a balanced binary tree over their index, into the first
    /// of them; the others end up with partial sums.
    ///
    /// # Panics
    /// `parts` is not a whole number of them.
    pub fn tree_sum(&self, parts: ViewMut<'_>, len: usize) {
        assert!(len > 0 && parts.len().is_multiple_of(len), "{} elements in parts of {len}", parts.len());
        match &self.device().0 {
            Kind::Cpu(_) => cpu::tree_sum(&mut parts.on_cpu().chunks_exact_mut(len).collect::<Vec<_>>()),
            Kind::Cuda(cuda) => sum::tree_sum(cuda, parts.on_cuda(), len),
        }
    }

    /// The sum of squares of each block of [`NORM_BLOCK`](crate::NORM_BLOCK) elements; the last block may be shorter.
    ///
    /// # Panics
    /// `sums` has not one element a block.
    pub fn sum_of_squares_blocks(&self, values: View<'_>, sums: ViewMut<'_>) {
        match &self.device().0 {
            Kind::Cpu(_) => sums.on_cpu().copy_from_slice(&cpu::sum_of_squares_blocks(values.on_cpu())),
            Kind::Cuda(cuda) => sum::sum_of_squares_blocks(cuda, values.on_cuda(), sums.on_cuda()),
        }
    }

    /// Whether all elements are finite, once all operations before are done.
    pub fn are_finite(&self, values: View<'_>) -> bool {
        match &self.device().0 {
            Kind::Cpu(_) => cpu::are_finite(values.on_cpu()),
            Kind::Cuda(cuda) => sum::are_finite(cuda, values.on_cuda()),
        }
    }
}
