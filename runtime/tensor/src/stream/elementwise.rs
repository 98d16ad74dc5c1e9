//! Copies, sums and other operations element by element or row by row.

use crate::cpu::{self, AdamW, Segment};
use crate::cuda::{elementwise, rows};
use crate::device::Kind;
use crate::{Counter, Mat, MatMut, Stream, View, ViewMut};

impl Stream {
    /// Sets every element to `value`.
    pub fn fill(&self, to: ViewMut<'_>, value: f32) {
        match &self.device().0 {
            Kind::Cpu(_) => to.on_cpu().fill(value),
            Kind::Cuda(cuda) => elementwise::fill(cuda, to.on_cuda(), value),
        }
    }

    /// Copies elements.
    ///
    /// # Panics
    /// The lengths differ.
    pub fn copy(&self, from: View<'_>, to: ViewMut<'_>) {
        match &self.device().0 {
            Kind::Cpu(_) => cpu::copy(from.on_cpu(), to.on_cpu()),
            Kind::Cuda(cuda) => elementwise::copy(cuda, from.on_cuda(), to.on_cuda()),
        }
    }

    /// Copies a matrix whose columns lie side by side to another of its shape.
    ///
    /// # Panics
    /// The shapes differ.
    pub fn copy_matrix(&self, from: Mat<'_>, to: MatMut<'_>) {
        match &self.device().0 {
            Kind::Cpu(_) => cpu::copy_matrix(from.on_cpu(), &mut to.on_cpu()),
            Kind::Cuda(cuda) => elementwise::copy_matrix(cuda, from.on_cuda(), to.on_cuda()),
        }
    }

    /// Adds a matrix whose columns lie side by side to another of its shape.
    ///
    /// # Panics
    /// The shapes differ.
    pub fn add_matrix(&self, sum: MatMut<'_>, term: Mat<'_>) {
        match &self.device().0 {
            Kind::Cpu(_) => cpu::add_matrix(&mut sum.on_cpu(), term.on_cpu()),
            Kind::Cuda(cuda) => elementwise::add_matrix(cuda, sum.on_cuda(), term.on_cuda()),
        }
    }

    /// `sum[i] += term[i]`.
    ///
    /// # Panics
    /// The lengths differ.
    pub fn add_assign(&self, sum: ViewMut<'_>, term: View<'_>) {
        match &self.device().0 {
            Kind::Cpu(_) => cpu::add_assign(sum.on_cpu(), term.on_cpu()),
            Kind::Cuda(cuda) => elementwise::add_assign(cuda, sum.on_cuda(), term.on_cuda()),
        }
    }

    /// The larger of two numbers, element by element; of a number and a NaN, the number.
    ///
    /// # Panics
    /// The lengths differ.
    pub fn max_assign(&self, max: ViewMut<'_>, other: View<'_>) {
        match &self.device().0 {
            Kind::Cpu(_) => cpu::max_assign(max.on_cpu(), other.on_cpu()),
            Kind::Cuda(cuda) => elementwise::max_assign(cuda, max.on_cuda(), other.on_cuda()),
        }
    }

    /// Adds `bias` to every row of `x`.
    ///
    /// # Panics
    /// `x` is not a whole number of rows.
    pub fn add_bias(&self, x: ViewMut<'_>, bias: View<'_>) {
        match &self.device().0 {
            Kind::Cpu(_) => cpu::add_bias(x.on_cpu(), bias.on_cpu()),
            Kind::Cuda(cuda) => rows::add_bias(cuda, x.on_cuda(), bias.on_cuda()),
        }
    }

    /// Adds the rows of `dy` to their leaves of `sums` (`[leaves][width]`), those of a leaf in ascending order.
    ///
    /// # Panics
    /// A segment lies beyond the rows or the leaves.
    pub fn bias_gradient(&self, dy: View<'_>, width: usize, segments: &[Segment], sums: ViewMut<'_>) {
        match &self.device().0 {
            Kind::Cpu(_) => cpu::bias_gradient(dy.on_cpu(), width, segments, sums.on_cpu()),
            Kind::Cuda(cuda) => rows::bias_gradient(cuda, dy.on_cuda(), width, segments, sums.on_cuda()),
        }
    }

    /// `values[i] *= factor`.
    pub fn scale(&self, values: ViewMut<'_>, factor: f32) {
        match &self.device().0 {
            Kind::Cpu(_) => cpu::scale(values.on_cpu(), factor),
            Kind::Cuda(cuda) => elementwise::scale(cuda, values.on_cuda(), factor),
        }
    }

    /// Sets elements to zero at random and scales the others up; see [`cpu::dropout`].
    ///
    /// # Panics
    /// The probability is not in `[0, 1)`.
    pub fn dropout(&self, values: ViewMut<'_>, counter: &Counter, first: u64, probability: f32) {
        match &self.device().0 {
            Kind::Cpu(_) => cpu::dropout(values.on_cpu(), counter, first, probability),
            Kind::Cuda(cuda) => rows::dropout(cuda, values.on_cuda(), counter, first, probability),
        }
    }

    /// Updates parameters and their moments `m` and `v` from `grad`; see [`cpu::adamw_step`].
    ///
    /// # Panics
    /// The lengths differ.
    pub fn adamw_step(
        &self,
        param: ViewMut<'_>,
        m: ViewMut<'_>,
        v: ViewMut<'_>,
        grad: View<'_>,
        adam: &AdamW,
    ) {
        match &self.device().0 {
            Kind::Cpu(_) => cpu::adamw_step(param.on_cpu(), m.on_cpu(), v.on_cpu(), grad.on_cpu(), adam),
            Kind::Cuda(cuda) => {
                let updated = [param, m, v].map(ViewMut::on_cuda);
                rows::adamw_step(cuda, updated, grad.on_cuda(), adam);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Device;

    #[test]
    fn columns_are_copied_and_added_and_nothing_else() {
        let stream = Device::cpu().stream();
        let from = stream.upload(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let mut to = stream.zeros(8);
        let columns = Mat::row_major(from.view(), 2, 3).columns(1..3);
        stream.copy_matrix(columns, MatMut::row_major(to.view_mut(), 2, 4).columns(2..4));
        assert_eq!(stream.to_vec(to.view()), [0.0, 0.0, 2.0, 3.0, 0.0, 0.0, 5.0, 6.0]);
        stream.add_matrix(MatMut::row_major(to.view_mut(), 2, 4).columns(1..3), columns);
        assert_eq!(stream.to_vec(to.view()), [0.0, 2.0, 5.0, 3.0, 0.0, 5.0, 11.0, 6.0]);
    }

    #[test]
    fn a_number_is_larger_than_nan() {
        let stream = Device::cpu().stream();
        let mut max = stream.upload(&[1.0, f32::NAN, 3.0]);
        stream.max_assign(max.view_mut(), stream.upload(&[2.0, 5.0, f32::NAN]).view());
        assert_eq!(stream.to_vec(max.view()), [2.0, 5.0, 3.0]);
    }

    #[test]
    fn rows_are_added_to_the_leaves_of_their_segments() {
        let stream = Device::cpu().stream();
        let dy = stream.upload(&[1.0, 10.0, 2.0, 20.0, 4.0, 40.0]);
        let mut sums = stream.zeros(4);
        let segments = [Segment { end: 1, leaf: 1 }, Segment { end: 3, leaf: 0 }];
        stream.bias_gradient(dy.view(), 2, &segments, sums.view_mut());
        assert_eq!(stream.to_vec(sums.view()), [6.0, 60.0, 1.0, 10.0]);
    }
}
