//! Products on a GPU: which tiles, which leaves, what is packed where.

use std::ops::Range;

use super::{Block, Cuda, Matrix};
use crate::cpu::{Dtype, Leaves, NOTHING, Start};

const SOURCE: &str = "product";
/// Elements of leaves' sums that a product has at once; more rows come afterwards.
const LEAF_ELEMENTS: usize = 1 << 26;
/// Blocks from which on larger tiles keep a GPU busy.
const BUSY_BLOCKS: usize = 128;

/// The right operand of products in the memory of a GPU, `[k][n]` with rows of a multiple of four, rounded where its type
/// says so.
#[derive(Debug)]
pub(crate) struct Panels {
    packed: Packed,
    dtype: Dtype,
}

/// An operand `[k][x]`.
#[derive(Debug)]
struct Packed {
    block: Block,
    terms: usize,
    /// Of `x`.
    count: usize,
    /// Elements from one term to the next.
    row: usize,
}

impl Panels {
    /// Of no size yet.
    pub(crate) fn new(cuda: &Cuda) -> Self {
        let packed = Packed { block: cuda.take(0), terms: 0, count: 0, row: 0 };
        Self { packed, dtype: Dtype::F32 }
    }

    /// Packs another matrix.
    pub(crate) fn pack_from(&mut self, cuda: &Cuda, b: Matrix, dtype: Dtype) {
        // What was packed before serves again, where it is large enough.
        self.packed.block = cuda.take(0);
        *self = Self { packed: Packed::new(cuda, b, dtype), dtype };
    }

    /// The summed dim.
    pub(crate) fn rows(&self) -> usize {
        self.packed.terms
    }

    /// Output columns.
    pub(crate) fn cols(&self) -> usize {
        self.packed.count
    }
}

impl Packed {
    /// From `[k][x]`.
    fn new(cuda: &Cuda, from: Matrix, dtype: Dtype) -> Self {
        let (terms, count) = (from.rows, from.cols);
        let row = count.next_multiple_of(4);
        let block = cuda.take(terms * row);
        let launch =
            cuda.kernel(SOURCE, "pack").matrix(from).run(block.run()).size(row).size(terms).size(count);
        let launch = launch.u32(u32::from(dtype == Dtype::Bf16));
        launch.launch([row.div_ceil(32), terms.div_ceil(32)], [32, 8]);
        Self { block, terms, count, row }
    }
}

/// A kernel for tiles of the output.
struct Tiles {
    kernel: &'static str,
    rows: usize,
    cols: usize,
    threads: u32,
}

impl Tiles {
    /// The largest tiles that still give all of a GPU something to do.
    fn of(dtype: Dtype, rows: usize, cols: usize, leaves: usize) -> Self {
        let all = match dtype {
            Dtype::F32 => [
                Self { kernel: "product_large", rows: 128, cols: 128, threads: 256 },
                Self { kernel: "product_medium", rows: 64, cols: 64, threads: 256 },
                Self { kernel: "product_small", rows: 16, cols: 64, threads: 64 },
            ],
            Dtype::Bf16 => [
                Self { kernel: "product_large_bf16", rows: 64, cols: 128, threads: 256 },
                Self { kernel: "product_medium_bf16", rows: 64, cols: 64, threads: 256 },
                Self { kernel: "product_small_bf16", rows: 16, cols: 64, threads: 64 },
            ],
        };
        let busy =
            |tiles: &Self| rows.div_ceil(tiles.rows) * cols.div_ceil(tiles.cols) * leaves >= BUSY_BLOCKS;
        let [large, medium, small] = all;
        match () {
            () if rows <= small.rows => small,
            () if busy(&large) => large,
            () if busy(&medium) => medium,
            () if rows <= medium.rows => small,
            () => medium,
        }
    }
}

/// `c = (c +) a · b`: one accumulator an element, over ascending `k`.
pub(crate) fn matmul(cuda: &Cuda, a: Matrix, b: &Panels, c: Matrix, start: Start) {
    let whole = 0..a.cols;
    multiply_runs(cuda, a, b, if whole.is_empty() { &[] } else { std::slice::from_ref(&whole) }, c, start);
}

/// The sum over runs of `k`, none of which is empty.
fn multiply_runs(cuda: &Cuda, a: Matrix, b: &Panels, runs: &[Range<usize>], c: Matrix, start: Start) {
    check(a, b, c);
    if !runs.is_empty() {
        let sum = Sum { leaves: &[runs], leaf_step: 0, from_c: start == Start::FromC };
        multiply(cuda, a, b, c, &sum);
    } else if start == Start::Zero {
        fill(cuda, c, 0.0);
    }
}

/// `c = (c +) a · b`, the sum over the runs of `leaves`, which are one leaf: it continues from `c`.
pub(crate) fn matmul_leaf(cuda: &Cuda, a: Matrix, b: &Panels, leaves: &Leaves, c: Matrix, start: Start) {
    multiply_runs(cuda, a, b, leaves.only(b.dtype, a.cols), c, start);
}

/// `c = (c +) a · b`, the sum over `k` cut into leaves, which are added in the tree.
pub(crate) fn matmul_tree(cuda: &Cuda, a: Matrix, b: &Panels, leaves: &Leaves, c: Matrix, start: Start) {
    check(a, b, c);
    assert!(leaves.end() <= a.cols, "a leaf ends at {} of {} terms", leaves.end(), a.cols);
    let ranges: Vec<&[Range<usize>]> =
        leaves.runs(b.dtype).iter().map(Vec::as_slice).filter(|ranges| !ranges.is_empty()).collect();
    if ranges.is_empty() {
        if start == Start::Zero {
            fill(cuda, c, NOTHING);
        }
        return;
    }
    if ranges.len() == 1 && start == Start::Zero {
        return multiply(cuda, a, b, c, &Sum { leaves: &ranges, leaf_step: 0, from_c: false });
    }
    let pairs = cuda.constants(&additions(leaves));
    let rows = (LEAF_ELEMENTS / (ranges.len() * c.cols.max(1))).max(1).next_multiple_of(128).min(c.rows);
    for first in (0..c.rows).step_by(rows.max(1)) {
        let part = first..c.rows.min(first + rows);
        let (a, c) = (a.row_range(part.clone()), c.row_range(part));
        let elements = c.rows * c.cols;
        let sums = cuda.take(ranges.len() * elements);
        let leaf = Matrix::new(sums.run(), [c.rows, c.cols], c.cols, 1);
        multiply(cuda, a, b, leaf, &Sum { leaves: &ranges, leaf_step: elements, from_c: false });
        let launch =
            cuda.kernel(SOURCE, "add_leaves").run(sums.run()).size(elements).run(pairs.run()).rows(c);
        launch.size(c.cols).size(elements).u32(u32::from(start == Start::FromC)).over(elements);
    }
}

/// The additions of the tree over the leaves that are not empty, counted without those that are: their number, then pairs of
/// where to and where from.
fn additions(leaves: &Leaves) -> Vec<u32> {
    // The number of each leaf's sum, and of an aligned run of them the one that takes the sum.
    let mut next = 0;
    let mut level: Vec<Option<u32>> = leaves
        .runs(Dtype::F32)
        .iter()
        .map(|ranges| {
            let number = (!ranges.is_empty()).then_some(next);
            next += u32::from(number.is_some());
            number
        })
        .collect();
    let mut pairs = vec![0];
    while level.len() > 1 {
        let merged = level.chunks(2).map(|two| match *two {
            [Some(to), Some(from)] => {
                pairs.extend([to, from]);
                Some(to)
            }
            [left, right] => left.or(right),
            _ => None,
        });
        level = merged.collect();
    }
    pairs[0] = number(pairs.len() / 2);
    pairs
}

fn check(a: Matrix, b: &Panels, c: Matrix) {
    assert_eq!(
        (a.cols, a.rows, b.cols()),
        (b.rows(), c.rows, c.cols),
        "dims of a product: a k, c rows, c columns"
    );
}

fn fill(cuda: &Cuda, c: Matrix, value: f32) {
    let launch = cuda.kernel("elementwise", "fill_matrix").rows(c).size(c.rows).size(c.cols).float(value);
    launch.over(c.rows * c.cols);
}

/// How the sum over `k` is done.
struct Sum<'a> {
    /// The ranges of each leaf; there are some.
    leaves: &'a [&'a [Range<usize>]],
    /// Elements from a leaf's output to the next one's.
    leaf_step: usize,
    from_c: bool,
}

fn multiply(cuda: &Cuda, a: Matrix, b: &Panels, c: Matrix, sum: &Sum<'_>) {
    if c.rows == 0 || c.cols == 0 {
        return;
    }
    let transposed =
        Matrix { rows: a.cols, cols: a.rows, row_stride: a.col_stride, col_stride: a.row_stride, ..a };
    // Gradients of weights read the outputs' gradients as they lie.
    let packed =
        (b.dtype != Dtype::F32 || !lies_packed(transposed)).then(|| Packed::new(cuda, transposed, b.dtype));
    let (a, a_row) = match &packed {
        Some(packed) => (packed.block.run().pointer, packed.row),
        None => (transposed.pointer, transposed.row_stride),
    };
    let leaves = cuda.constants(&leaf_ranges(sum.leaves));
    let tiles = Tiles::of(b.dtype, c.rows, c.cols, sum.leaves.len());
    let column_tiles = c.cols.div_ceil(tiles.cols);
    let launch = cuda.kernel(SOURCE, tiles.kernel);
    let launch = launch.u64(a).u32(number(a_row)).run(b.packed.block.run()).u32(number(b.packed.row));
    let launch = launch.rows(c).size(sum.leaf_step).u32(number(c.rows)).u32(number(c.cols));
    let launch = launch.u32(number(column_tiles)).run(leaves.run());
    launch
        .u32(sum.from_c.into())
        .launch([column_tiles * sum.leaves.len(), c.rows.div_ceil(tiles.rows)], [tiles.threads, 1]);
}

/// A dim as the kernels take it.
///
/// # Panics
/// It does not fit: the operand would be larger than a GPU's memory.
fn number(dim: usize) -> u32 {
    u32::try_from(dim).unwrap_or_else(|_| panic!("a product on a GPU of a dim of {dim}"))
}

/// Whether a matrix `[k][x]` lies as a packed one does: rows of fours from a place on that loads of four numbers take.
fn lies_packed(from: Matrix) -> bool {
    let fours = [from.row_stride, from.cols].iter().all(|elements| elements.is_multiple_of(4));
    from.col_stride == 1 && fours && from.pointer.is_multiple_of(16)
}

/// How many leaves there are, where the ranges of each begin and the last one's end, and then all ranges: first term and end.
fn leaf_ranges(leaves: &[&[Range<usize>]]) -> Vec<u32> {
    let mut numbers = vec![number(leaves.len()), 0];
    let mut end = 0;
    for ranges in leaves {
        end += number(ranges.len());
        numbers.push(end);
    }
    let bounds = leaves.iter().copied().flatten().flat_map(|range| [number(range.start), number(range.end)]);
    numbers.extend(bounds);
    numbers
}
