//! Biases of rows and their gradients, dropout and the optimiser's step on a GPU; and the leaves of a sum over rows.

use std::sync::Arc;

use super::{Block, Cuda, Run};
use crate::cpu::adamw::Coefficients;
use crate::cpu::dropout::coefficients;
use crate::cpu::segment;
use crate::{AdamW, Counter, Segment};

const THREADS: u32 = 128;

/// The rows of each leaf, as the kernels want them: offsets of the leaves into pairs of a first row and an end.
///
/// # Panics
/// A segment lies beyond the leaves or the rows.
pub(super) fn parts(cuda: &Cuda, segments: &[Segment], leaves: usize, rows: usize) -> Arc<Block> {
    let by_leaf = segment::by_leaf(segments, leaves, |part| {
        assert!(part.start <= part.end && part.end <= rows, "rows {part:?} of {rows}");
        part
    });
    let starts = by_leaf.iter().scan(0, |end, parts| {
        *end += parts.len();
        Some(*end)
    });
    let pairs = by_leaf.iter().flatten().flat_map(|part| [part.start, part.end]);
    let words = std::iter::once(0).chain(starts).chain(pairs);
    cuda.constants(&words.map(|word| word as u32).collect::<Vec<_>>())
}

/// Blocks and threads for a thread a column and leaf.
pub(super) fn columns_by_leaf(width: usize, leaves: usize) -> ([usize; 2], [u32; 2]) {
    ([width.div_ceil(THREADS as usize), leaves], [THREADS, 1])
}

pub(crate) fn add_bias(cuda: &Cuda, x: Run, bias: Run) {
    let rows = x.len.checked_div(bias.len).unwrap_or(0);
    assert_eq!(rows * bias.len, x.len, "{} elements in rows of {}", x.len, bias.len);
    cuda.kernel("bias", "add_bias").run(x).run(bias).count(bias.len).launch([rows, 1], [THREADS, 1]);
}

pub(crate) fn bias_gradient(cuda: &Cuda, dy: Run, width: usize, segments: &[Segment], sums: Run) {
    if width == 0 {
        return;
    }
    assert_eq!((dy.len % width, sums.len % width), (0, 0), "rows of {width}");
    let leaves = sums.len / width;
    let parts = parts(cuda, segments, leaves, dy.len / width);
    let launch = cuda.kernel("bias", "bias_gradient").run(dy).count(width).run(parts.run()).run(sums);
    let (grid, block) = columns_by_leaf(width, leaves);
    launch.launch(grid, block);
}

pub(crate) fn dropout(cuda: &Cuda, values: Run, counter: &Counter, first: u64, probability: f32) {
    assert!((0.0..1.0).contains(&probability), "dropout probability {probability}");
    if probability == 0.0 || values.len == 0 {
        return;
    }
    let (factor, threshold) = coefficients(probability);
    let launch = cuda.kernel("dropout", "dropout").run(values).size(values.len);
    let launch = counter.words().into_iter().flatten().fold(launch, |launch, word| launch.u32(word));
    let blocks = ((first % 4) as usize + values.len).div_ceil(4);
    launch.u64(first).u32(threshold).float(factor).over(blocks);
}

pub(crate) fn adamw_step(cuda: &Cuda, [param, m, v]: [Run; 3], grad: Run, adam: &AdamW) {
    let len = param.len;
    assert_eq!((m.len, v.len, grad.len), (len, len, len), "lengths of an optimiser step");
    let Coefficients { adam, keep, step_size, root_correction } = Coefficients::new(adam);
    let launch = cuda.kernel("adamw", "adamw_step").run(param).run(m).run(v).run(grad).size(len);
    let launch = launch.float(adam.beta1).float(adam.beta2).float(adam.eps).float(adam.gradient_scale);
    launch.float(keep).float(step_size).float(root_correction).over(len);
}
