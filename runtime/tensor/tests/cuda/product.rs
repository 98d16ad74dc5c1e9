//! Products.

use std::ops::Range;

use sixfold_tensor::{Dtype, Leaves, Mat, MatMut, Start, Stream, View};

use crate::rig::{Random, Rig};

/// The runs of `k` of each leaf.
type Cut = Vec<Vec<Range<usize>>>;

/// How the sum over `k` is cut.
#[derive(Clone, Copy, PartialEq)]
enum Sum {
    Whole,
    /// Into the runs of one leaf, which continues.
    Leaf,
    Tree,
}

pub(crate) fn compare(rig: &mut Rig) {
    for dtype in [Dtype::F32, Dtype::Bf16] {
        let (cases, most) = if rig.is_fast { (24, [600, 600, 900]) } else { (16, [70, 90, 70]) };
        let mut compare = |name: &str, cases, shape: &dyn Fn(&mut Random) -> [usize; 3], sum: Sum| {
            let draw = |random: &mut Random| {
                let shape = shape(random);
                let leaves = match sum {
                    Sum::Whole => vec![std::iter::once(0..shape[2]).collect()],
                    Sum::Leaf => vec![runs(random, shape[2])],
                    Sum::Tree => leaves(random, shape[2]),
                };
                Operands::new(random, shape, sum, leaves)
            };
            let reference = |stream: &Stream, random: &mut Random| match dtype {
                Dtype::F32 => draw(random).product(stream, dtype),
                Dtype::Bf16 => draw(random).reference_bf16(),
            };
            let run = |stream: &Stream, random: &mut Random| draw(random).product(stream, dtype);
            rig.against(&format!("{name} {}", dtype.name()), cases, reference, run);
        };
        // Rows in fours, where a left operand may be read as it lies.
        let any = |random: &mut Random| {
            let [m, n, k] = most.map(|most| random.dim(most));
            [if random.is() { m.next_multiple_of(4) } else { m }, n, k]
        };
        compare("matmul_panels", cases, &any, Sum::Whole);
        compare("matmul_leaf", cases, &any, Sum::Leaf);
        compare("matmul_tree", cases, &any, Sum::Tree);
        let few = |random: &mut Random| [random.dim(17), random.dim(most[1]), random.dim(most[2])];
        compare("matmul_panels of few rows", 3, &few, Sum::Whole);
        // Enough for the largest tiles, and not whole ones.
        let large = if most[0] > 100 { [2049, 1111, 515] } else { [1441, 1427, 13] };
        compare("matmul_panels, large", 2, &|_| large, Sum::Whole);
    }
    rig.operation("products without terms", 1, |stream, _| {
        let nothing = stream.zeros(0);
        let (a, b) = (Mat::row_major(nothing.view(), 3, 0), Mat::row_major(nothing.view(), 0, 5));
        let panels = stream.pack(b, Dtype::F32);
        let mut outputs = Vec::new();
        for start in [Start::Zero, Start::FromC] {
            let mut c = stream.filled(15, 2.0);
            stream.matmul_panels(a, &panels, MatMut::row_major(c.view_mut(), 3, 5), start);
            outputs.push(stream.to_vec(c.view()));
            let mut c = stream.filled(15, 2.0);
            let leaves = Leaves::new([vec![], vec![]]);
            stream.matmul_tree(a, &panels, &leaves, MatMut::row_major(c.view_mut(), 3, 5), start);
            outputs.push(stream.to_vec(c.view()));
        }
        outputs
    });
}

/// Random operands of a product, plain or transposed or parts of wider ones.
struct Operands {
    shape: [usize; 3],
    a: (Vec<f32>, usize),
    b: (Vec<f32>, usize),
    /// Rows of three elements more than there are columns.
    c: Vec<f32>,
    start: Start,
    sum: Sum,
    leaves: Cut,
}

impl Operands {
    fn new(random: &mut Random, [m, n, k]: [usize; 3], sum: Sum, leaves: Cut) -> Self {
        let start = if random.is() { Start::Zero } else { Start::FromC };
        // In some products there are zeros of both signs, and numbers whose products are too small or too large.
        let mut numbers =
            |len| if start == Start::Zero { random.normal(len) } else { random.any_finite(len) };
        let (a, b, c) = (numbers(m * (k + 5) + 4), numbers(n * (k + 5) + 4), numbers(m * (n + 3)));
        Self { shape: [m, n, k], a: (a, random.below(3)), b: (b, random.below(3)), c, start, sum, leaves }
    }

    /// A `rows` x `cols` matrix in one of three layouts.
    fn mat(data: View<'_>, layout: usize, [rows, cols]: [usize; 2]) -> Mat<'_> {
        match layout {
            0 => Mat::row_major(data.slice(0..rows * cols), rows, cols),
            1 => Mat::row_major(data.slice(4..4 + cols * rows), cols, rows).transposed(),
            _ => Mat::row_major(data.slice(0..rows * (cols + 5)), rows, cols + 5).columns(3..3 + cols),
        }
    }

    /// The place of an element of [`Self::mat`].
    fn place(layout: usize, [rows, cols]: [usize; 2], row: usize, column: usize) -> usize {
        match layout {
            0 => row * cols + column,
            1 => 4 + column * rows + row,
            _ => row * (cols + 5) + 3 + column,
        }
    }

    /// The product, and another one that is added to it.
    fn product(&self, stream: &Stream, dtype: Dtype) -> Vec<Vec<f32>> {
        let [m, n, k] = self.shape;
        let (a, b) = (stream.upload(&self.a.0), stream.upload(&self.b.0));
        let mut c = stream.upload(&self.c);
        let a = Self::mat(a.view(), self.a.1, [m, k]);
        let b = Self::mat(b.view(), self.b.1, [n, k]).transposed();
        let mut panels = stream.no_panels();
        stream.pack_into(b, dtype, &mut panels);
        assert_eq!((panels.rows(), panels.cols()), (k, n));
        for start in [self.start, Start::FromC] {
            let out = MatMut::row_major(c.view_mut(), m, n + 3).columns(2..2 + n);
            let leaves = Leaves::new(self.leaves.clone());
            match self.sum {
                Sum::Whole => stream.matmul_panels(a, &panels, out, start),
                Sum::Leaf => stream.matmul_leaf(a, &panels, &leaves, out, start),
                Sum::Tree => stream.matmul_tree(a, &panels, &leaves, out, start),
            }
        }
        vec![stream.to_vec(c.view())]
    }

    /// The definition of [`Self::product`] in bfloat16, element by element.
    fn reference_bf16(&self) -> Vec<Vec<f32>> {
        let [m, n, k] = self.shape;
        let operand = |x: f32| if x.abs() < 2f32.powi(-56) { 0.0 } else { half::bf16::from_f32(x).to_f32() };
        let terms = |(data, layout): &(Vec<f32>, usize), outer: usize, row: usize| -> Vec<f32> {
            (0..k).map(|k_| operand(data[Self::place(*layout, [outer, k], row, k_)])).collect()
        };
        let rows: Vec<Vec<f32>> = (0..m).map(|row| terms(&self.a, m, row)).collect();
        let columns: Vec<Vec<f32>> = (0..n).map(|column| terms(&self.b, n, column)).collect();
        let mut c = self.c.clone();
        for (row, a) in rows.iter().enumerate() {
            for (column, b) in columns.iter().enumerate() {
                let c = &mut c[row * (n + 3) + 2 + column];
                for start in [self.start, Start::FromC] {
                    let is_tree = self.sum == Sum::Tree;
                    let begin = if !is_tree && start == Start::FromC { *c } else { 0.0 };
                    let of_leaf = |runs: &Vec<Range<usize>>| {
                        (!runs.is_empty())
                            .then(|| runs.iter().fold(begin, |sum, run| sum_bf16(a, b, run, sum)))
                    };
                    let tree = tree(self.leaves.iter().map(of_leaf).collect());
                    *c = match (start, is_tree, tree) {
                        (Start::FromC, true, Some(tree)) => *c + tree,
                        (Start::FromC, true, None) => *c,
                        (_, _, tree) => tree.unwrap_or(-0.0),
                    };
                }
            }
        }
        vec![c]
    }
}

/// Blocks of 32 terms, of which even and odd ones are added apart.
fn sum_bf16(a: &[f32], b: &[f32], run: &Range<usize>, mut sum: f32) -> f32 {
    for block in run.clone().step_by(32) {
        let mut of_block = [0.0f32; 2];
        for k in block..run.end.min(block + 32) {
            let so_far = &mut of_block[(k - block) % 2];
            *so_far = a[k].mul_add(b[k], *so_far);
        }
        sum += of_block[0] + of_block[1];
    }
    sum
}

/// The sum in the tree, in which empty leaves are left out.
fn tree(leaves: Vec<Option<f32>>) -> Option<f32> {
    if let [leaf] = leaves[..] {
        return leaf;
    }
    let (left, right) = leaves.split_at(leaves.len() / 2);
    match (tree(left.to_vec()), tree(right.to_vec())) {
        (Some(left), Some(right)) => Some(left + right),
        (left, right) => left.or(right),
    }
}

/// `k` cut at random into four runs at most.
fn runs(random: &mut Random, k: usize) -> Vec<Range<usize>> {
    let mut bounds: Vec<usize> = (0..3).map(|_| random.below(k + 1)).chain([0, k]).collect();
    bounds.sort_unstable();
    bounds.dedup();
    bounds.windows(2).map(|two| two[0]..two[1]).collect()
}

/// `k` cut at random into leaves, of which some are empty and some have two ranges.
fn leaves(random: &mut Random, k: usize) -> Cut {
    let count = 1 << random.below(4);
    let mut bounds: Vec<usize> = (0..2 * count).map(|_| random.below(k + 1)).collect();
    bounds.extend([0, k]);
    bounds.sort_unstable();
    let mut pieces: Vec<Range<usize>> = bounds.windows(2).map(|two| two[0]..two[1]).collect();
    let mut cut: Vec<Vec<Range<usize>>> = vec![Vec::new(); count];
    while let Some(piece) = pieces.pop() {
        let leaf = random.below(count);
        cut[leaf].insert(0, piece);
    }
    for runs in &mut cut {
        runs.retain(|run| !run.is_empty());
    }
    cut
}
