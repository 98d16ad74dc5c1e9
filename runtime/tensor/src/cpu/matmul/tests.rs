//! Tests of `matmul`.

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

/// What [`Dtype::Bf16`] makes of operands.
fn rounded(values: &[f32]) -> Vec<f32> {
    values.iter().map(|&value| half::bf16::from_f32(value).to_f32()).collect()
}

#[test]
fn rounded_operands_have_the_bits_of_their_product_in_f32() {
    let shapes = Counter::new(3, 0, 0, 1, Purpose::ORDER);
    let dim = |case: u64, index, below: u32| 1 + (shapes.word(case * 4 + index) % below) as usize;
    let random_shapes = (0..24).map(|case| (dim(case, 0, 90), dim(case, 1, 90), dim(case, 2, 70)));
    let shapes = random_shapes.chain([(61, 33, 1101), (1, 500, 701), (49, 20, 1031), (14, 40, 513)]);
    for (case, (m, n, k)) in shapes.enumerate() {
        let (a, b) = (random(12, m * k), random(13, k * n));
        let (a, b) = (Mat::row_major(&a, k, m).transposed(), Mat::row_major(&b, k, n));
        let (round_a, round_b) = (rounded(a.data), rounded(b.data));
        let (round_a, round_b) =
            (Mat::row_major(&round_a, k, m).transposed(), Mat::row_major(&round_b, k, n));
        let start = if case % 2 == 0 { Start::Zero } else { Start::FromC };
        // Leaves that part pairs.
        let cut = k / 3;
        let leaves = Leaves::new([0..cut, cut..k].map(|range| Vec::from([range])));
        for level in SimdLevel::available() {
            let product = |a, b, dtype| {
                let panels = Panels::pack(b, dtype);
                let (mut plain, mut tree) = (vec![1.5; m * n], vec![0.0; m * n]);
                matmul_panels_at(level, a, &panels, &mut MatMut::row_major(&mut plain, m, n), start);
                let mut out = MatMut::row_major(&mut tree, m, n);
                tree::matmul_tree_at(level, a, &panels, &leaves, &mut out, Start::Zero);
                (plain, tree)
            };
            let expected = product(round_a, round_b, Dtype::F32);
            assert_eq!(product(a, b, Dtype::Bf16), expected, "{m}x{n}x{k} {}", level.name());
        }
    }
}
