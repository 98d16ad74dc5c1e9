//! The final norm, the head and the cross entropy, with the vocabulary cut into logical shards.
//!
//! Shapes: `h` is `[rows, d]`; `logits` of a shard are `[rows, vocabulary of the shard]`. The
//! largest logit and the sum of exponents of a row are taken over shards in the tree.
//!
//! Logits are by far the largest activations, so that forward computes them for some rows at a time and keeps a few
//! numbers a row; backward computes those of one shard again, when it needs them. Only where all of them
//! take little memory are they kept.

use std::ops::Range;

use sixfold_tensor::{
    IGNORED_TARGET, VocabularyShard, cross_entropy_gradient, cross_entropy_loss, logit_exp_sums,
    logit_maxima, target_logits,
};

use crate::layer::Recompute;
use crate::linear::{Gradients, pack};
use crate::norm::Normed;
use crate::pass::Pass;
use crate::tensor_group::{GroupError, NOTHING};
use crate::unit::{Geometry, Place, Tensor, UnitId};

/// Logits of a rank, of all rows, that are kept from forward to backward: 512 MiB.
const KEPT_LOGITS: usize = 1 << 27;
/// Logits of a rank that are computed at a time where they are not kept: 16 MiB.
const LOGITS_AT_A_TIME: usize = 1 << 22;

/// What the backward pass needs of the head's forward pass.
pub(crate) struct HeadTape {
    normed: Normed,
    statistics: Statistics,
    /// For each of the rank's shards, in order; empty where the shard is. Nothing if they are computed again.
    logits: Option<Vec<Vec<f32>>>,
}

/// A number of each kind a row.
#[derive(Default)]
struct Statistics {
    max: Vec<f32>,
    exp_sum: Vec<f32>,
    target: Vec<f32>,
}

/// The unit whose rows make logits: the head, or the embedding where they are tied.
pub(crate) fn table(geometry: &Geometry, shard: usize) -> UnitId {
    if geometry.config.tie_word_embeddings { UnitId::embedding(shard) } else { UnitId::head(shard) }
}

/// The loss of each row (zero where its target does not count), and the tape.
pub(crate) fn forward(pass: &mut Pass<'_>, x: Vec<f32>) -> Result<(Vec<f32>, HeadTape), GroupError> {
    let normed = Normed::forward(pass, UnitId::FINAL_NORM, x);
    // Of the whole vocabulary, so that all ranks of a group make the same calls.
    let columns = pass.geometry.config.vocab_size;
    let rows = pass.rows();
    let keep = pass.recompute == Recompute::None && rows * columns <= KEPT_LOGITS;
    let at_a_time = if keep { rows } else { (LOGITS_AT_A_TIME / columns).clamp(1, rows) };
    let (mut statistics, mut logits) = (Statistics::default(), None);
    for first in (0..rows).step_by(at_a_time) {
        let part = first..rows.min(first + at_a_time);
        logits = Some(statistics.extend(pass, &normed.rows.h, part)?);
    }
    let loss = |(row, target_id): (usize, &u32)| match *target_id {
        IGNORED_TARGET => 0.0,
        _ => cross_entropy_loss(statistics.max[row], statistics.exp_sum[row], statistics.target[row]),
    };
    let losses = pass.batch.targets.iter().enumerate().map(loss).collect();
    Ok((losses, HeadTape { normed, statistics, logits: logits.filter(|_| keep) }))
}

fn vocabulary(geometry: &Geometry, shard: usize) -> VocabularyShard {
    let range = &geometry.sharding.shard(shard).vocabulary;
    VocabularyShard { first_id: range.start, columns: range.len(), words: range.len() }
}

/// The logits of one shard, which may be empty.
fn logits_of(pass: &mut Pass<'_>, shard: usize, h: &[f32]) -> Vec<f32> {
    let rows = h.len() / pass.width();
    let weight = &pass.weights.head[shard - pass.slice.shards.start];
    pass.work.head += weight.flops(rows);
    weight.forward(h, rows)
}

impl Statistics {
    /// Adds those of some rows, and returns the logits of each shard.
    fn extend(
        &mut self,
        pass: &mut Pass<'_>,
        h: &[f32],
        rows: Range<usize>,
    ) -> Result<Vec<Vec<f32>>, GroupError> {
        let (d, shards) = (pass.width(), pass.slice.shards.clone());
        let h = &h[rows.start * d..rows.end * d];
        let logits: Vec<Vec<f32>> = shards.clone().map(|shard| logits_of(pass, shard, h)).collect();
        let max = row_max(pass, &logits, rows.len())?;
        let exp_sum = pass.sum(max.len(), |pass, shard| {
            let logits = &logits[shard - shards.start];
            let mut sums = vec![0.0; max.len()];
            (!logits.is_empty()).then(|| {
                logit_exp_sums(logits, vocabulary(pass.geometry, shard), &max, &mut sums);
                sums
            })
        })?;
        self.target.extend(targets_of(pass, &logits, rows)?);
        self.max.extend(max);
        self.exp_sum.extend(exp_sum);
        Ok(logits)
    }
}

fn row_max(pass: &mut Pass<'_>, logits: &[Vec<f32>], rows: usize) -> Result<Vec<f32>, GroupError> {
    let mut max = vec![f32::NEG_INFINITY; rows];
    let mut of_shard = max.clone();
    for (logits, shard) in logits.iter().zip(pass.slice.shards.clone()) {
        if !logits.is_empty() {
            logit_maxima(logits, vocabulary(pass.geometry, shard), &mut of_shard);
            max.iter_mut().zip(&of_shard).for_each(|(max, of_shard)| *max = max.max(*of_shard));
        }
    }
    pass.group.max(&mut max)?;
    Ok(max)
}

/// The logit of each row's target, from the one shard that has it.
fn targets_of(pass: &mut Pass<'_>, logits: &[Vec<f32>], rows: Range<usize>) -> Result<Vec<f32>, GroupError> {
    let mut target = vec![NOTHING; rows.len()];
    for (logits, shard) in logits.iter().zip(pass.slice.shards.clone()) {
        if !logits.is_empty() {
            let targets = &pass.batch.targets[rows.clone()];
            target_logits(logits, vocabulary(pass.geometry, shard), targets, &mut target);
        }
    }
    pass.group.sum(&mut target)?;
    Ok(target)
}

/// The gradient of the head's input, where each row's loss counts `scale` times.
pub(crate) fn backward(
    pass: &mut Pass<'_>,
    tape: HeadTape,
    scale: f32,
    gradients: &mut Gradients<'_>,
) -> Result<Vec<f32>, GroupError> {
    let HeadTape { normed, statistics, mut logits } = tape;
    let first = pass.slice.shards.start;
    let rows = pass.rows();
    let h = pack(&normed.rows.h, pass.width(), pass.geometry.config.dtype);
    let dh = pass.sum(normed.rows.h.len(), |pass, shard| {
        let mut dlogits = match &mut logits {
            Some(kept) => std::mem::take(&mut kept[shard - first]),
            None => logits_of(pass, shard, &normed.rows.h),
        };
        if dlogits.is_empty() {
            return None;
        }
        let Statistics { max, exp_sum, .. } = &statistics;
        let vocabulary = vocabulary(pass.geometry, shard);
        cross_entropy_gradient(&mut dlogits, vocabulary, &pass.batch.targets, max, exp_sum, scale);
        let run = gradients.run(Place::Output, &[Tensor::Head], &(shard..shard + 1));
        gradients.of_outputs(run, &dlogits, &h);
        let weight = &pass.weights.head[shard - first];
        pass.work.head += 2 * weight.flops(rows);
        Some(weight.backward(&dlogits, rows))
    })?;
    Ok(normed.backward(pass, UnitId::FINAL_NORM, &dh, gradients))
}
