//! Rotary position embedding (Su et al., "RoFormer", 2021), with the pairs of Llama checkpoints in the Hugging Face
//! layout: element `i` of a head turns with element `i + head_dim / 2`.

use crate::cpu::simd::{simd_dispatch, simd_level};
use crate::cpu::{MatMut, threads};
use crate::math::sin_cos;

/// Elements of one task.
const TASK_ELEMENTS: usize = 1 << 15;

/// Sines and cosines of every position up to a limit.
#[derive(Clone, Debug)]
pub struct RopeTable {
    half: usize,
    cosines: Vec<f32>,
    sines: Vec<f32>,
}

impl RopeTable {
    /// The table for `positions` positions: pair `i` of a head turns by `position * frequencies[i]` (radians), and sines and
    /// cosines are multiplied by `scale`, which is 1 unless a model stretches its positions so.
    ///
    /// Frequency and angle are rounded to `f32` as in Hugging Face's `LlamaRotaryEmbedding`, so imported weights see the
    /// angles they were trained with.
    pub fn new(frequencies: &[f32], scale: f32, positions: usize) -> Self {
        let angles = (0..positions).flat_map(|position| frequencies.iter().map(move |f| f * position as f32));
        let scaled = |(sine, cosine): (f32, f32)| (sine * scale, cosine * scale);
        let (sines, cosines) = angles.map(sin_cos).map(scaled).unzip();
        Self { half: frequencies.len(), cosines, sines }
    }

    /// Elements of one head.
    pub fn head_dim(&self) -> usize {
        2 * self.half
    }

    /// Cosines and sines, `[positions][head_dim / 2]` each.
    pub(crate) fn parts(&self) -> [&[f32]; 2] {
        [&self.cosines, &self.sines]
    }

    /// Positions that the table covers.
    pub fn positions(&self) -> usize {
        self.cosines.len().checked_div(self.half).unwrap_or(0)
    }
}

/// Turns every head of `x` (`[tokens][heads * head_dim]`, whose rows may be columns of a wider matrix) in place by its token's
/// position; `inverse` turns it back, which is also how the gradient passes: a scale of the table multiplies both ways.
///
/// # Panics
/// `x` has not one row a position, a row is not a whole number of heads, or a position lies beyond the table.
pub fn rope(x: MatMut<'_>, positions: &[u32], table: &RopeTable, inverse: bool) {
    if positions.is_empty() || table.half == 0 || x.cols == 0 {
        return;
    }
    assert_eq!((x.rows, x.cols % table.head_dim()), (positions.len(), 0), "shape of a rotary embedding");
    let (level, sign) = (simd_level(), if inverse { -1.0 } else { 1.0 });
    let (rows, cost) = ((TASK_ELEMENTS / x.cols).max(1), x.rows * x.cols);
    let data = &mut x.data[..(x.rows - 1) * x.row_stride + x.cols];
    threads::for_each_chunk(data, rows * x.row_stride, cost, |index, chunk| {
        let tokens = chunk.chunks_mut(x.row_stride).zip(&positions[index * rows..]);
        for (token, &position) in tokens {
            let first = position as usize * table.half;
            let (cosines, sines) =
                (&table.cosines[first..][..table.half], &table.sines[first..][..table.half]);
            turn_at(level, &mut token[..x.cols], cosines, sines, sign);
        }
    });
}

simd_dispatch!(fn turn_at(heads: &mut [f32], cosines: &[f32], sines: &[f32], sign: f32) = turn);

#[inline(always)]
fn turn(heads: &mut [f32], cosines: &[f32], sines: &[f32], sign: f32) {
    let half = cosines.len();
    for head in heads.chunks_exact_mut(2 * half) {
        let (first, second) = head.split_at_mut(half);
        for (((a, b), &cosine), &sine) in first.iter_mut().zip(second).zip(cosines).zip(sines) {
            let sine = sine * sign;
            let turned = a.mul_add(cosine, -(*b * sine));
            *b = b.mul_add(cosine, *a * sine);
            *a = turned;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::{Counter, Purpose, SimdLevel};
    use crate::math::pow_f64;

    fn table(head_dim: usize, theta: f64, positions: usize) -> RopeTable {
        let frequency = |pair: usize| pow_f64(theta, -((2 * pair) as f64) / head_dim as f64) as f32;
        RopeTable::new(&(0..head_dim / 2).map(frequency).collect::<Vec<_>>(), 1.0, positions)
    }

    #[test]
    fn matches_golden_values() {
        // head_dim 4, theta 10000: frequencies 1 and 0.01; position 3 turns (1, 3) by 3 and (2, 4) by 0.03.
        let table = table(4, 10_000.0, 4);
        let mut x = [1.0, 2.0, 3.0, 4.0];
        rope(MatMut::row_major(&mut x, 1, 4), &[3], &table, false);
        let golden = [-1.413_352_5, 1.879_118, -2.828_857_4, 4.058_191];
        for (actual, expected) in x.iter().zip(golden) {
            assert!((actual - expected).abs() < 1e-6, "{x:?}");
        }
    }

    #[test]
    fn columns_of_a_wider_matrix_turn_and_the_others_stay() {
        const TOKENS: usize = 2 * TASK_ELEMENTS / 12 + 3;
        let table = table(6, 10_000.0, 64);
        let positions: Vec<u32> = (0..TOKENS as u32).map(|token| token % 64).collect();
        let mut wide: Vec<f32> = (0..TOKENS * 17).map(|value| (value % 23) as f32 - 9.0).collect();
        let before = wide.clone();
        let mut packed: Vec<f32> = before.chunks(17).flat_map(|row| row[2..14].to_vec()).collect();
        crate::cpu::set_threads(2).unwrap();
        rope(MatMut::row_major(&mut wide, TOKENS, 17).columns(2..14), &positions, &table, false);
        crate::cpu::set_threads(1).unwrap();
        rope(MatMut::row_major(&mut packed, TOKENS, 12), &positions, &table, false);
        for ((wide, before), packed) in wide.chunks(17).zip(before.chunks(17)).zip(packed.chunks(12)) {
            assert_eq!(wide, [&before[..2], packed, &before[14..]].concat());
        }
    }

    #[test]
    fn inverse_turns_back() {
        let table = table(6, 500_000.0, 900);
        let before: Vec<f32> = (0..24).map(|value| value as f32 - 10.0).collect();
        let mut x = before.clone();
        rope(MatMut::row_major(&mut x, 2, 12), &[7, 899], &table, false);
        assert_ne!(x, before);
        rope(MatMut::row_major(&mut x, 2, 12), &[7, 899], &table, true);
        assert!(x.iter().zip(&before).all(|(a, b)| (a - b).abs() < 1e-5));
    }

    #[test]
    fn a_scale_multiplies_both_ways() {
        let [plain, scaled] = [1.0, 1.5].map(|scale| RopeTable::new(&[1.0, 0.01], scale, 8));
        for inverse in [false, true] {
            let [mut x, mut y] = [[1.0, 2.0, 3.0, 4.0]; 2];
            rope(MatMut::row_major(&mut x, 1, 4), &[7], &plain, inverse);
            rope(MatMut::row_major(&mut y, 1, 4), &[7], &scaled, inverse);
            assert!(x.iter().zip(y).all(|(x, y)| (1.5 * x - y).abs() < 1e-6), "{x:?} {y:?}");
        }
    }

    #[test]
    fn levels_agree_and_a_token_does_not_depend_on_others() {
        let table = table(34, 10_000.0, 64);
        let mut x = vec![0.0; 68];
        Counter::new(1, 0, 0, 0, Purpose::INITIALISATION).fill_normal(0, &mut x);
        let mut expected = x.clone();
        turn_at(
            SimdLevel::PLAIN,
            &mut expected,
            &table.cosines[17 * 9..][..17],
            &table.sines[17 * 9..][..17],
            1.0,
        );
        for level in SimdLevel::available() {
            let mut actual = x.clone();
            turn_at(level, &mut actual, &table.cosines[17 * 9..][..17], &table.sines[17 * 9..][..17], 1.0);
            assert_eq!(actual, expected, "{}", level.name());
        }
        let mut batch = [x.clone(), x.clone(), x].concat();
        rope(MatMut::row_major(&mut batch, 3, 68), &[1, 9, 60], &table, false);
        assert_eq!(batch[68..136], expected);
    }
}
