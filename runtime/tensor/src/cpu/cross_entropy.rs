//! Softmax and cross-entropy over a vocabulary that may be cut into shards by columns.
//!
//! Each shard computes [`logit_maxima`]; the maximum over shards is global (a maximum has no order). Then each
//! computes [`logit_exp_sums`] and [`target_logits`]; the sums are added in the tree over the shards, exactly one shard
//! holds a target. Then [`cross_entropy_loss`] is the same number everywhere and [`cross_entropy_gradient`] is local to each shard.
//! With one shard the same calls serve a single device.

use crate::cpu::order::{fold_lanes, larger, largest_lane};
use crate::cpu::simd::{simd_dispatch, simd_level};
use crate::cpu::threads;
use crate::math::{exp, ln};

/// A target that counts neither in the loss nor in the gradient.
pub const IGNORED_TARGET: u32 = u32::MAX;

/// Rows of one task.
const TASK_ROWS: usize = 16;
/// Cost of one exponential in multiply-adds.
const EXP_COST: usize = 16;

/// Which part of the vocabulary the columns of a block of logits are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VocabularyShard {
    /// The id of the first column.
    pub first_id: usize,
    /// Columns of a row of logits, padding included.
    pub columns: usize,
    /// How many of them are words; the padding after them takes part in nothing.
    pub words: usize,
}

impl VocabularyShard {
    fn column(&self, target: u32) -> Option<usize> {
        (target as usize)
            .checked_sub(self.first_id)
            .filter(|&column| column < self.words && target != IGNORED_TARGET)
    }

    fn check(&self, logits: &[f32], rows: usize) {
        assert!(self.words <= self.columns, "{} words in {} columns", self.words, self.columns);
        assert_eq!(logits.len(), rows * self.columns, "shape of the logits");
    }
}

/// The largest logit of each row of `logits` (`[rows][columns]`); negative infinity for a shard without words.
///
/// # Panics
/// The shapes disagree.
pub fn logit_maxima(logits: &[f32], shard: VocabularyShard, maxima: &mut [f32]) {
    shard.check(logits, maxima.len());
    let level = simd_level();
    for_each_row(maxima, logits.len(), |row, maximum| {
        *maximum = maximum_at(level, words(logits, shard, row))
    });
}

/// The sum of `exp(logit - maximum)` of each row, in the lanes of [`lane_sum`](crate::cpu::lane_sum).
///
/// # Panics
/// The shapes disagree.
pub fn logit_exp_sums(logits: &[f32], shard: VocabularyShard, maxima: &[f32], sums: &mut [f32]) {
    shard.check(logits, sums.len());
    assert_eq!(maxima.len(), sums.len(), "one maximum a row");
    let level = simd_level();
    for_each_row(sums, logits.len() * EXP_COST, |row, sum| {
        *sum = exp_sum_at(level, words(logits, shard, row), maxima[row])
    });
}

/// Writes the logit of each row's target where this shard holds it; rows whose target lies elsewhere keep their
/// content.
///
/// # Panics
/// The shapes disagree.
pub fn target_logits(logits: &[f32], shard: VocabularyShard, targets: &[u32], out: &mut [f32]) {
    shard.check(logits, out.len());
    assert_eq!(targets.len(), out.len(), "one target a row");
    for (row, (out, &target)) in out.iter_mut().zip(targets).enumerate() {
        if let Some(column) = shard.column(target) {
            *out = logits[row * shard.columns + column];
        }
    }
}

/// One row's loss, `-ln softmax(target)`, from the maximum and the sum over the whole vocabulary.
pub fn cross_entropy_loss(maximum: f32, sum: f32, target_logit: f32) -> f32 {
    (maximum - target_logit) + ln(sum)
}

/// Each row's loss, from its maximum, sum and target's logit; zero where the target is [`IGNORED_TARGET`].
///
/// # Panics
/// The lengths differ.
pub fn cross_entropy_losses([maxima, sums, target_logits]: [&[f32]; 3], targets: &[u32], losses: &mut [f32]) {
    let rows = losses.len();
    assert_eq!([maxima.len(), sums.len(), target_logits.len(), targets.len()], [rows; 4], "rows of a loss");
    for (row, loss) in losses.iter_mut().enumerate() {
        *loss = match targets[row] {
            IGNORED_TARGET => 0.0,
            _ => cross_entropy_loss(maxima[row], sums[row], target_logits[row]),
        };
    }
}

/// Replaces the logits by their gradient, `(softmax - [column is target]) * scale`; zero in the padding and in rows
/// whose target is [`IGNORED_TARGET`].
///
/// # Panics
/// The shapes disagree.
pub fn cross_entropy_gradient(
    logits: &mut [f32],
    shard: VocabularyShard,
    targets: &[u32],
    maxima: &[f32],
    sums: &[f32],
    scale: f32,
) {
    shard.check(logits, targets.len());
    assert_eq!((maxima.len(), sums.len()), (targets.len(), targets.len()), "one maximum and one sum a row");
    if shard.columns == 0 {
        return;
    }
    let level = simd_level();
    let cost = logits.len() * EXP_COST;
    threads::for_each_chunk(logits, TASK_ROWS * shard.columns, cost, |task, rows| {
        for (offset, row) in rows.chunks_exact_mut(shard.columns).enumerate() {
            let index = task * TASK_ROWS + offset;
            if targets[index] == IGNORED_TARGET {
                row.fill(0.0);
                continue;
            }
            let (row, padding) = row.split_at_mut(shard.words);
            padding.fill(0.0);
            softmax_at(level, row, maxima[index], sums[index], scale);
            if let Some(column) = shard.column(targets[index]) {
                row[column] -= scale;
            }
        }
    });
}

fn words(logits: &[f32], shard: VocabularyShard, row: usize) -> &[f32] {
    &logits[row * shard.columns..][..shard.words]
}

fn for_each_row(rows: &mut [f32], cost: usize, work: impl Fn(usize, &mut f32) + Sync) {
    threads::for_each_chunk(rows, TASK_ROWS, cost, |task, chunk| {
        chunk.iter_mut().enumerate().for_each(|(offset, row)| work(task * TASK_ROWS + offset, row));
    });
}

simd_dispatch!(fn maximum_at(row: &[f32]) -> f32 = maximum);
simd_dispatch!(fn exp_sum_at(row: &[f32], maximum: f32) -> f32 = exp_sum);
simd_dispatch!(fn softmax_at(row: &mut [f32], maximum: f32, sum: f32, scale: f32) = softmax);

#[inline(always)]
fn maximum(row: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; 16];
    let (chunks, rest) = row.as_chunks::<16>();
    for chunk in chunks {
        for lane in 0..16 {
            lanes[lane] = larger(lanes[lane], chunk[lane]);
        }
    }
    rest.iter().copied().fold(largest_lane(lanes), larger)
}

#[inline(always)]
fn exp_sum(row: &[f32], maximum: f32) -> f32 {
    let mut lanes = [0.0f32; 16];
    let (chunks, rest) = row.as_chunks::<16>();
    for chunk in chunks {
        for lane in 0..16 {
            lanes[lane] += exp(chunk[lane] - maximum);
        }
    }
    for (lane, value) in lanes.iter_mut().zip(rest) {
        *lane += exp(value - maximum);
    }
    fold_lanes(lanes)
}

#[inline(always)]
fn softmax(row: &mut [f32], maximum: f32, sum: f32, scale: f32) {
    for value in row {
        *value = exp(*value - maximum) / sum * scale;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::{Counter, Purpose, SimdLevel, tree_sum_scalars};

    const WORDS: usize = 103;
    const ROWS: usize = 37;

    fn logits() -> Vec<f32> {
        let mut values = vec![0.0; ROWS * WORDS];
        Counter::new(41, 0, 0, 0, Purpose::INITIALISATION).fill_normal(0, &mut values);
        values.iter_mut().for_each(|value| *value *= 6.0);
        values
    }

    fn targets() -> Vec<u32> {
        (0..ROWS as u32).map(|row| if row == 5 { IGNORED_TARGET } else { row * 53 % WORDS as u32 }).collect()
    }

    /// Losses and gradients with the vocabulary cut at the given columns, each shard padded by three columns.
    fn sharded(cuts: &[usize]) -> (Vec<f32>, Vec<f32>) {
        let (logits, targets) = (logits(), targets());
        let mut shards: Vec<(VocabularyShard, Vec<f32>)> = cuts
            .windows(2)
            .map(|cut| {
                let words = cut[1] - cut[0];
                let shard = VocabularyShard { first_id: cut[0], columns: words + 3, words };
                let rows =
                    logits.chunks(WORDS).flat_map(|row| [&row[cut[0]..cut[1]], &[f32::NAN; 3]].concat());
                (shard, rows.collect())
            })
            .collect();
        let mut maxima = vec![f32::NEG_INFINITY; ROWS];
        for (shard, logits) in &shards {
            let mut part = vec![0.0; ROWS];
            logit_maxima(logits, *shard, &mut part);
            maxima.iter_mut().zip(part).for_each(|(all, part)| *all = all.max(part));
        }
        let mut parts = vec![vec![0.0; ROWS]; shards.len()];
        let mut at_target = vec![0.0; ROWS];
        for ((shard, logits), part) in shards.iter().zip(&mut parts) {
            logit_exp_sums(logits, *shard, &maxima, part);
            target_logits(logits, *shard, &targets, &mut at_target);
        }
        let sums: Vec<f32> = (0..ROWS)
            .map(|row| tree_sum_scalars(&parts.iter().map(|part| part[row]).collect::<Vec<_>>()))
            .collect();
        let losses =
            (0..ROWS).map(|row| cross_entropy_loss(maxima[row], sums[row], at_target[row])).collect();
        for (shard, logits) in &mut shards {
            cross_entropy_gradient(logits, *shard, &targets, &maxima, &sums, 0.5);
            assert!(logits.chunks(shard.columns).all(|row| row[shard.words..] == [0.0; 3]));
        }
        let gradient = |row: usize| {
            shards.iter().flat_map(move |(s, logits)| logits[row * s.columns..][..s.words].to_vec())
        };
        (losses, (0..ROWS).flat_map(gradient).collect())
    }

    #[test]
    fn matches_a_double_precision_reference() {
        let (logits, targets) = (logits(), targets());
        for cuts in [vec![0, WORDS], vec![0, 30, 30, 77, WORDS]] {
            let (losses, gradient) = sharded(&cuts);
            for row in (0..ROWS).filter(|&row| targets[row] != IGNORED_TARGET) {
                let logits: Vec<f64> = logits[row * WORDS..][..WORDS].iter().map(|&x| x.into()).collect();
                let sum: f64 = logits.iter().map(|x| x.exp()).sum();
                let expected = sum.ln() - logits[targets[row] as usize];
                assert!((f64::from(losses[row]) - expected).abs() < 4e-6 * (1.0 + expected), "row {row}");
                for (column, logit) in logits.iter().enumerate() {
                    let hit = f64::from(u8::from(column == targets[row] as usize));
                    let expected = 0.5 * (logit.exp() / sum - hit);
                    assert!(
                        (f64::from(gradient[row * WORDS + column]) - expected).abs() < 1e-6,
                        "{row} {column}"
                    );
                }
            }
            assert!(gradient[5 * WORDS..6 * WORDS].iter().all(|&value| value == 0.0));
        }
    }

    #[test]
    fn levels_agree_to_the_bit() {
        let row = &logits()[..WORDS];
        let run = |level| {
            let mut gradient = row.to_vec();
            let maximum = maximum_at(level, row);
            let sum = exp_sum_at(level, row, maximum);
            softmax_at(level, &mut gradient, maximum, sum, 0.3);
            (maximum, sum, gradient)
        };
        for level in SimdLevel::available() {
            assert_eq!(run(level), run(SimdLevel::PLAIN), "{}", level.name());
        }
    }
}
