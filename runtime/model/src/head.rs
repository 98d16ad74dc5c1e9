//! The final norm, the head and the cross entropy, with the vocabulary cut into logical shards.
//!
//! Shapes: `h` is `[rows, d]`; `logits` of a shard are `[rows, vocabulary of the shard]`. The
//! largest logit and the sum of exponents of a row are taken over shards in the tree.

use sixfold_tensor::{
    IGNORED_TARGET, VocabularyShard, cross_entropy_gradient, cross_entropy_loss, logit_exp_sums,
    logit_maxima, target_logits,
};

use crate::branch::Normed;
use crate::linear::{Gradients, pack};
use crate::pass::Pass;
use crate::tensor_group::{GroupError, NOTHING};
use crate::unit::{Geometry, Place, Tensor, UnitId};

/// What the backward pass needs of the head's forward pass.
pub(crate) struct HeadTape {
    normed: Normed,
    /// For each of the rank's shards, in order; empty where the shard is.
    logits: Vec<Vec<f32>>,
    max: Vec<f32>,
    exp_sum: Vec<f32>,
}

/// The unit whose rows make logits: the head, or the embedding where they are tied.
pub(crate) fn table(geometry: &Geometry, shard: usize) -> UnitId {
    if geometry.config.tie_word_embeddings { UnitId::embedding(shard) } else { UnitId::head(shard) }
}

/// The loss of each row (zero where its target does not count), and the tape.
pub(crate) fn forward(pass: &mut Pass<'_>, x: Vec<f32>) -> Result<(Vec<f32>, HeadTape), GroupError> {
    let normed = Normed::forward(pass, UnitId::FINAL_NORM, x);
    let logits = logits(pass, &normed.h);
    let max = row_max(pass, &logits)?;
    let first = pass.slice.shards.start;
    let exp_sum = pass.sum(max.len(), |pass, shard| {
        let logits = &logits[shard - first];
        let mut sums = vec![0.0; max.len()];
        (!logits.is_empty()).then(|| {
            logit_exp_sums(logits, vocabulary(pass.geometry, shard), &max, &mut sums);
            sums
        })
    })?;
    let target = targets_of_all(pass, &logits)?;
    let loss = |(row, target_id): (usize, &u32)| match *target_id {
        IGNORED_TARGET => 0.0,
        _ => cross_entropy_loss(max[row], exp_sum[row], target[row]),
    };
    let losses = pass.batch.targets.iter().enumerate().map(loss).collect();
    Ok((losses, HeadTape { normed, logits, max, exp_sum }))
}

fn vocabulary(geometry: &Geometry, shard: usize) -> VocabularyShard {
    let range = &geometry.sharding.shard(shard).vocabulary;
    VocabularyShard { first_id: range.start, columns: range.len(), words: range.len() }
}

fn logits(pass: &mut Pass<'_>, h: &[f32]) -> Vec<Vec<f32>> {
    let rows = pass.rows();
    let mut logits = Vec::with_capacity(pass.slice.shards.len());
    for weight in &pass.weights.head {
        logits.push(weight.forward(h, rows));
        pass.work.head += weight.flops(rows);
    }
    logits
}

fn row_max(pass: &mut Pass<'_>, logits: &[Vec<f32>]) -> Result<Vec<f32>, GroupError> {
    let mut max = vec![f32::NEG_INFINITY; pass.rows()];
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
fn targets_of_all(pass: &mut Pass<'_>, logits: &[Vec<f32>]) -> Result<Vec<f32>, GroupError> {
    let mut target = vec![NOTHING; pass.rows()];
    for (logits, shard) in logits.iter().zip(pass.slice.shards.clone()) {
        if !logits.is_empty() {
            target_logits(logits, vocabulary(pass.geometry, shard), &pass.batch.targets, &mut target);
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
    let HeadTape { normed, mut logits, max, exp_sum } = tape;
    let first = pass.slice.shards.start;
    let rows = pass.rows();
    let h = pack(&normed.h, pass.width());
    let dh = pass.sum(normed.h.len(), |pass, shard| {
        let dlogits = &mut logits[shard - first];
        if dlogits.is_empty() {
            return None;
        }
        let vocabulary = vocabulary(pass.geometry, shard);
        cross_entropy_gradient(dlogits, vocabulary, &pass.batch.targets, &max, &exp_sum, scale);
        let run = gradients.run(Place::Output, &[Tensor::Head], &(shard..shard + 1));
        gradients.of_outputs(run, dlogits, &h);
        let weight = &pass.weights.head[shard - first];
        pass.work.head += 2 * weight.flops(rows);
        Some(weight.backward(dlogits, rows))
    })?;
    Ok(normed.backward(pass, UnitId::FINAL_NORM, &dh, gradients))
}
