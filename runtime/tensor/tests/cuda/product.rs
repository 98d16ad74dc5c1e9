//! Products.

use std::ops::Range;

use sixfold_tensor::{Dtype, Leaves, Mat, MatMut, Start, Stream};

use crate::rig::{Random, Rig};

pub(crate) fn compare(rig: &mut Rig) {
    for dtype in [Dtype::F32, Dtype::Bf16] {
        let name = dtype.name();
        let (cases, most) = if rig.is_fast { (24, [600, 600, 900]) } else { (16, [70, 90, 70]) };
        rig.operation(&format!("matmul_panels {name}"), cases, |stream, random| {
            let shape = most.map(|most| random.dim(most));
            product(stream, random, shape, dtype, None)
        });
        rig.operation(&format!("matmul_tree {name}"), cases, |stream, random| {
            let shape = most.map(|most| random.dim(most));
            let leaves = leaves(random, shape[2]);
            product(stream, random, shape, dtype, Some(&leaves))
        });
        rig.operation(&format!("matmul_panels {name}, few rows"), 3, |stream, random| {
            let shape = [random.dim(17), random.dim(most[1]), random.dim(most[2])];
            product(stream, random, shape, dtype, None)
        });
        // Enough for the largest tiles, and not whole ones.
        let large: &[[usize; 3]] = if rig.is_fast {
            &[[2049, 1111, 515], [1, 5000, 4096], [4100, 520, 64]]
        } else {
            &[[1441, 1427, 13]]
        };
        rig.operation(&format!("matmul_panels {name}, large"), large.len() as u64, |stream, random| {
            let shape = large[random.below(large.len())];
            product(stream, random, shape, dtype, None)
        });
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

/// A product of random operands, plain or transposed or parts of wider ones, twice with the same panels.
fn product(
    stream: &Stream,
    random: &mut Random,
    [m, n, k]: [usize; 3],
    dtype: Dtype,
    leaves: Option<&Leaves>,
) -> Vec<Vec<f32>> {
    let start = if random.is() { Start::Zero } else { Start::FromC };
    // Some products of operands with zeros of both signs, and with numbers whose products are too small or too large.
    let mut numbers = |len| if start == Start::Zero { random.normal(len) } else { random.any_finite(len) };
    let wide = k + 5;
    let (a, b, c) =
        (numbers(m.max(n) * wide + m * wide), numbers(n * wide + 2 * k * n), numbers(m * (n + 3)));
    let (a, b, mut c) = (stream.upload(&a), stream.upload(&b), stream.upload(&c));
    let a_mat = match random.below(3) {
        0 => Mat::row_major(a.slice(0..m * k), m, k),
        1 => Mat::row_major(a.slice(1..1 + k * m), k, m).transposed(),
        _ => Mat::row_major(a.slice(0..m * wide), m, wide).columns(3..3 + k),
    };
    let b_mat = match random.below(3) {
        0 => Mat::row_major(b.slice(0..k * n), k, n),
        1 => Mat::row_major(b.slice(0..n * k), n, k).transposed(),
        _ => Mat::row_major(b.slice(0..n * wide), n, wide).columns(1..1 + k).transposed(),
    };
    let mut panels = stream.no_panels();
    stream.pack_into(b_mat, dtype, &mut panels);
    assert_eq!((panels.rows(), panels.cols()), (k, n));
    for start in [start, Start::FromC] {
        let out = MatMut::row_major(c.view_mut(), m, n + 3).columns(2..2 + n);
        match leaves {
            None => stream.matmul_panels(a_mat, &panels, out, start),
            Some(leaves) => stream.matmul_tree(a_mat, &panels, leaves, out, start),
        }
    }
    vec![stream.to_vec(c.view())]
}

/// `k` cut at random into leaves, of which some are empty and some have two ranges.
fn leaves(random: &mut Random, k: usize) -> Leaves {
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
    Leaves::new(cut)
}
