//! Tests of `matmul`.

use std::ops::Range;

use super::*;
use crate::cpu::{Counter, Purpose, set_threads};

/// The definition, element by element.
fn reference(a: Mat<'_>, b: Mat<'_>, c: &mut MatMut<'_>, start: Start) {
    for m in 0..c.rows {
        for n in 0..c.cols {
            let begin = if start == Start::FromC { c.row_mut(m)[n] } else { 0.0 };
            c.row_mut(m)[n] = (0..a.cols).fold(begin, |sum, k| a.at(m, k).mul_add(b.at(k, n), sum));
        }
    }
}

fn random(index: u64, len: usize) -> Vec<f32> {
    let mut values = vec![0.0; len];
    Counter::new(7, index, 0, 0, Purpose::INITIALISATION).fill_normal(0, &mut values);
    values
}

fn check(level: SimdLevel, m: usize, n: usize, k: usize, start: Start) {
    let (a, b, c) = (random(1, m * k), random(2, k * n), random(3, m * (n + 3)));
    let (a, b) = (Mat::row_major(&a, m, k), Mat::row_major(&b, k, n));
    let (mut expected, mut actual) = (c.clone(), c);
    reference(a, b, &mut MatMut::with_stride(&mut expected, m, n, n + 3), start);
    matmul_at(level, a, b, &mut MatMut::with_stride(&mut actual, m, n, n + 3), start);
    assert_eq!(actual, expected, "{} {m}x{n}x{k} {start:?}", level.name());
}

#[test]
fn odd_shapes_have_the_bits_of_the_definition_at_every_level() {
    let shapes = Counter::new(3, 0, 0, 0, Purpose::ORDER);
    for level in SimdLevel::available() {
        for case in 0..24u64 {
            let dim = |index, below: u32| 1 + (shapes.word(case * 4 + index) % below) as usize;
            let start = if case % 2 == 0 { Start::Zero } else { Start::FromC };
            check(level, dim(0, 70), dim(1, 90), dim(2, 60), start);
        }
        check(level, 61, 33, 1100, Start::FromC);
        check(level, 1, 500, 700, Start::Zero);
        check(level, 49, 420, 20, Start::Zero);
    }
}

#[test]
fn threads_do_not_change_the_bits() {
    let (m, n, k) = (131, 605, 600);
    let (a, b) = (random(4, m * k), random(5, k * n));
    let product = |rows: usize, count| {
        set_threads(count).unwrap();
        let mut c = vec![0.0; rows * n];
        let a = Mat::row_major(&a, m, k).row_range(0..rows);
        matmul(a, Mat::row_major(&b, k, n), &mut MatMut::row_major(&mut c, rows, n), Start::Zero);
        set_threads(1).unwrap();
        c
    };
    for rows in [1, 40, m] {
        assert_eq!(product(rows, 1), product(rows, 3), "{rows} rows");
    }
}

#[test]
fn a_row_does_not_depend_on_its_batch() {
    let (m, n, k) = (512, 70, 530);
    let (a, b) = (random(6, m * k), random(7, k * n));
    let leaves = Leaves::new([0..k / 3, k / 3..k].map(|range| Vec::from([range])));
    for (level, dtype) in
        SimdLevel::available().into_iter().flat_map(|level| [(level, Dtype::F32), (level, Dtype::Bf16)])
    {
        let panels = Panels::pack(Mat::row_major(&b, k, n), dtype);
        let rows = |range: std::ops::Range<usize>| {
            let (mut plain, mut tree) = (vec![0.0; range.len() * n], vec![0.0; range.len() * n]);
            let a = Mat::row_major(&a, m, k).row_range(range.clone());
            let c = &mut MatMut::row_major(&mut plain, range.len(), n);
            matmul_panels_at(level, a, &panels, c, Start::Zero);
            tree::matmul_tree_at(
                level,
                a,
                &panels,
                &leaves,
                &mut MatMut::row_major(&mut tree, range.len(), n),
                Start::Zero,
            );
            [plain, tree]
        };
        let all = rows(0..m);
        // Batches of 1, 2, 16 and other rows, at the ends and amid the 512.
        for range in [0..1, 257..258, 511..512, 0..2, 300..302, 5..21, 496..512, 20..63] {
            for (some, all) in rows(range.clone()).iter().zip(&all) {
                assert_eq!(
                    some[..],
                    all[range.start * n..range.end * n],
                    "{range:?} {dtype:?} {}",
                    level.name()
                );
            }
        }
    }
}

#[test]
fn transposed_operands_and_column_ranges_are_read_in_place() {
    let (m, n, k) = (50, 40, 30);
    let (a, b) = (random(8, m * k), random(9, k * n));
    let (a, b) = (Mat::row_major(&a, k, m).transposed(), Mat::row_major(&b, n, k).transposed());
    let (mut expected, mut actual) = (vec![1.0; m * n], vec![1.0; m * n]);
    reference(a, b, &mut MatMut::row_major(&mut expected, m, n), Start::FromC);
    matmul(a, b, &mut MatMut::row_major(&mut actual, m, n), Start::FromC);
    assert_eq!(actual, expected);
    // The same product, one column shard at a time.
    actual.fill(1.0);
    let mut c = MatMut::row_major(&mut actual, m, n);
    matmul(a, b.columns(0..13), &mut c.columns(0..13), Start::FromC);
    matmul(a, b.columns(13..n), &mut c.columns(13..n), Start::FromC);
    assert_eq!(actual, expected);
}

#[test]
fn an_empty_sum_is_the_start() {
    let mut c = [3.0; 4];
    matmul(
        Mat::row_major(&[], 2, 0),
        Mat::row_major(&[], 0, 2),
        &mut MatMut::row_major(&mut c, 2, 2),
        Start::FromC,
    );
    assert_eq!(c, [3.0; 4]);
    matmul(
        Mat::row_major(&[], 2, 0),
        Mat::row_major(&[], 0, 2),
        &mut MatMut::row_major(&mut c, 2, 2),
        Start::Zero,
    );
    assert_eq!(c, [0.0; 4]);
}

/// What [`Dtype::Bf16`] makes of an operand.
fn operand(value: f32) -> f32 {
    if value.abs() < 2f32.powi(-56) { 0.0 } else { half::bf16::from_f32(value).to_f32() }
}

/// The definition of a sum in bfloat16, element by element.
fn reference_bf16(a: Mat<'_>, b: Mat<'_>, runs: &[Range<usize>], c: &mut MatMut<'_>, start: Start) {
    for m in 0..c.rows {
        for n in 0..c.cols {
            let mut sum = if start == Start::FromC { c.row_mut(m)[n] } else { 0.0 };
            for run in runs {
                for block in run.clone().step_by(32) {
                    let mut of_block = [0.0f32; 2];
                    for k in block..run.end.min(block + 32) {
                        let so_far = &mut of_block[(k - block) % 2];
                        *so_far = operand(a.at(m, k)).mul_add(operand(b.at(k, n)), *so_far);
                    }
                    sum += of_block[0] + of_block[1];
                }
            }
            c.row_mut(m)[n] = sum;
        }
    }
}

/// Random numbers of which some are far from one: others that products of operands cannot tell from zero.
fn spread(index: u64, len: usize) -> Vec<f32> {
    let (mut values, exponents) = (random(index, len), Counter::new(7, index, 0, 1, Purpose::ORDER));
    for (i, value) in values.iter_mut().enumerate() {
        let exponent = (exponents.word(i as u64) % 64) as i32 - 60;
        *value *= if i % 5 == 0 { 2f32.powi(exponent) } else { 1.0 };
    }
    values
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn sums_in_bf16_have_the_bits_of_the_definition_at_every_level() {
    let shapes = Counter::new(3, 0, 0, 1, Purpose::ORDER);
    let dim = |case: u64, index, below: u32| 1 + (shapes.word(case * 4 + index) % below) as usize;
    let random_shapes = (0..24).map(|case| (dim(case, 0, 90), dim(case, 1, 90), dim(case, 2, 140)));
    let shapes =
        random_shapes.chain([(61, 33, 1101), (1, 500, 701), (49, 20, 1031), (14, 40, 513), (96, 64, 1024)]);
    for (case, (m, n, k)) in shapes.enumerate() {
        let (a, b) = (spread(12, 2 * m * k), spread(13, k * n));
        // A left operand by rows, by columns, and with gaps between its elements.
        let a = match case % 3 {
            0 => Mat::row_major(&a, m, k),
            1 => Mat::row_major(&a, k, m).transposed(),
            _ => Mat::with_strides(&a, m, k, 2, 2 * m),
        };
        let b = Mat::row_major(&b, k, n);
        let start = if case % 2 == 0 { Start::Zero } else { Start::FromC };
        // Runs and leaves that part pairs, one of two runs and not in order.
        let (cut, last) = (k / 3, k - k / 4);
        let whole = vec![0..cut, cut..last, last..k];
        let leaves: [Vec<Range<usize>>; 2] = [vec![cut..last, 0..cut], std::iter::once(last..k).collect()];
        let panels = Panels::pack(b, Dtype::Bf16);
        let mut expected: [Vec<f32>; 3] = std::array::from_fn(|_| random(14, m * n));
        let [plain, leaf, tree] = &mut expected;
        reference_bf16(a, b, std::slice::from_ref(&(0..k)), &mut MatMut::row_major(plain, m, n), start);
        reference_bf16(a, b, &whole, &mut MatMut::row_major(leaf, m, n), start);
        let mut other = vec![0.0; m * n];
        reference_bf16(a, b, &leaves[0], &mut MatMut::row_major(&mut other, m, n), Start::Zero);
        reference_bf16(a, b, &leaves[1], &mut MatMut::row_major(tree, m, n), Start::Zero);
        match last < k {
            true => tree.iter_mut().zip(&other).for_each(|(sum, left)| *sum += left),
            false => tree.copy_from_slice(&other),
        }
        let tree_leaves = Leaves::new(leaves);
        let one_leaf = Leaves::new([whole.clone()]);
        for level in SimdLevel::available() {
            let mut actual: [Vec<f32>; 3] = std::array::from_fn(|_| random(14, m * n));
            let [plain, leaf, tree] = &mut actual;
            matmul_panels_at(level, a, &panels, &mut MatMut::row_major(plain, m, n), start);
            let runs = &one_leaf.runs(Dtype::Bf16)[0];
            multiply_runs(level, a, &panels, runs, &mut MatMut::row_major(leaf, m, n), start);
            let mut out = MatMut::row_major(tree, m, n);
            tree::matmul_tree_at(level, a, &panels, &tree_leaves, &mut out, Start::Zero);
            for (name, (actual, expected)) in
                ["plain", "leaf", "tree"].iter().zip(actual.iter().zip(&expected))
            {
                assert_eq!(bits(actual), bits(expected), "{name} {m}x{n}x{k} case {case} {}", level.name());
            }
        }
    }
}

#[test]
fn what_bf16_cannot_tell_from_zero_makes_no_denormal() {
    // The smallest operands, whose product is the smallest number that is no denormal, and sums of such that differ in their
    // last places.
    let tiny = 2f32.powi(-56);
    let a: Vec<f32> = (0..64).map(|k| [tiny, -tiny * 1.007_812_5, tiny * 0.99, 1e-40][k % 4]).collect();
    let b: Vec<f32> = (0..64).map(|k| [tiny, tiny, 1e-30, 1.0][k % 4]).collect();
    let (a, b) = (Mat::row_major(&a, 1, 64), Mat::row_major(&b, 64, 1));
    let mut expected = [0.0];
    reference_bf16(
        a,
        b,
        std::slice::from_ref(&(0..64)),
        &mut MatMut::row_major(&mut expected, 1, 1),
        Start::Zero,
    );
    assert!(expected[0] == 0.0 || expected[0].is_normal(), "{expected:?}");
    let panels = Panels::pack(b, Dtype::Bf16);
    for level in SimdLevel::available() {
        let mut c = [1.0];
        matmul_panels_at(level, a, &panels, &mut MatMut::row_major(&mut c, 1, 1), Start::Zero);
        assert_eq!(bits(&c), bits(&expected), "{}", level.name());
    }
}
