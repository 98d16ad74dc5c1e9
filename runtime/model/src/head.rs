//! The final norm, the head and the cross entropy, with the vocabulary cut into logical shards.
//!
//! Shapes: `h` is `[rows, d]`; `logits` of a shard are `[rows, vocabulary of the shard]`. The
//! largest logit and the sum of exponents of a row are taken over shards in the tree.
//!
//! Logits are by far the largest activations, so that forward computes them for some rows at a time and keeps a few
//! numbers a row; backward computes those of one shard again, when it needs them. Only where all of them
//! take little memory are they kept, since their product is a large one.

use std::ops::Range;

use sixfold_tensor::{Buffer, Mat, Stream, View, VocabularyShard};

use crate::layer::Recompute;
use crate::linear::{Gradients, pack};
use crate::norm::Normed;
use crate::pass::Pass;
use crate::sampling::greedy;
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
    logits: Option<Vec<Option<Buffer>>>,
}

/// A number of each kind a row.
struct Statistics {
    max: Buffer,
    exp_sum: Buffer,
    target: Buffer,
}

/// The unit whose rows make logits: the head, or the embedding where they are tied.
pub(crate) fn table(geometry: &Geometry, shard: usize) -> UnitId {
    if geometry.config.tie_word_embeddings { UnitId::embedding(shard) } else { UnitId::head(shard) }
}

/// The loss of each row (zero where its target does not count), and the tape.
pub(crate) fn forward(pass: &mut Pass<'_>, x: Buffer) -> Result<(Buffer, HeadTape), GroupError> {
    let normed = Normed::forward(pass, UnitId::FINAL_NORM, x)?;
    // Of the whole vocabulary, so that all ranks of a group make the same calls.
    let columns = pass.geometry.config.vocab_size;
    let (stream, rows) = (pass.stream, pass.rows());
    let keep = pass.recompute != Recompute::Full && rows * columns <= KEPT_LOGITS;
    let at_a_time = if keep { rows } else { (LOGITS_AT_A_TIME / columns).clamp(1, rows) };
    let (mut statistics, mut logits) = (Statistics::new(stream, rows), None);
    for first in (0..rows).step_by(at_a_time) {
        let part = first..rows.min(first + at_a_time);
        logits = Some(statistics.compute(pass, normed.rows.h.view(), part)?);
    }
    let mut losses = stream.uninit(rows);
    let [max, exp_sum, target] = statistics.views();
    stream.cross_entropy_losses(max, exp_sum, target, pass.targets.view(), losses.view_mut());
    let kept = logits.filter(|_| keep).map(|logits| logits.into_iter().map(Some).collect());
    Ok((losses, HeadTape { normed, statistics, logits: kept }))
}

fn vocabulary(geometry: &Geometry, shard: usize) -> VocabularyShard {
    let range = &geometry.sharding.shard(shard).vocabulary;
    VocabularyShard { first_id: range.start, columns: range.len(), words: range.len() }
}

/// The logits of one shard, which may be empty.
fn logits_of(pass: &mut Pass<'_>, shard: usize, h: View<'_>) -> Buffer {
    let rows = h.len() / pass.width();
    let weight = &pass.weights.head[shard - pass.slice.shards.start];
    pass.work.head += weight.flops(rows);
    weight.forward(pass.stream, pass.parameters, h, rows)
}

impl Statistics {
    fn new(stream: &Stream, rows: usize) -> Self {
        Self { max: stream.uninit(rows), exp_sum: stream.uninit(rows), target: stream.uninit(rows) }
    }

    fn views(&self) -> [View<'_>; 3] {
        [&self.max, &self.exp_sum, &self.target].map(Buffer::view)
    }

    /// Fills in those of some rows, and returns the logits of each shard.
    fn compute(
        &mut self,
        pass: &mut Pass<'_>,
        h: View<'_>,
        rows: Range<usize>,
    ) -> Result<Vec<Buffer>, GroupError> {
        let (stream, d, shards) = (pass.stream, pass.width(), pass.slice.shards.clone());
        let h = h.slice(rows.start * d..rows.end * d);
        let logits: Vec<Buffer> = shards.clone().map(|shard| logits_of(pass, shard, h)).collect();
        let max = row_max(pass, &logits, rows.len())?;
        let exp_sum = pass.sum(rows.len(), |pass, shard| {
            let logits = &logits[shard - shards.start];
            (!logits.is_empty()).then(|| {
                let mut sums = stream.uninit(rows.len());
                let vocabulary = vocabulary(pass.geometry, shard);
                stream.logit_exp_sums(logits.view(), vocabulary, max.view(), sums.view_mut());
                sums
            })
        })?;
        let target = targets_of(pass, &logits, rows.clone())?;
        stream.copy(max.view(), self.max.slice_mut(rows.clone()));
        stream.copy(exp_sum.view(), self.exp_sum.slice_mut(rows.clone()));
        stream.copy(target.view(), self.target.slice_mut(rows));
        Ok(logits)
    }
}

fn row_max(pass: &mut Pass<'_>, logits: &[Buffer], rows: usize) -> Result<Buffer, GroupError> {
    let stream = pass.stream;
    let mut max = stream.filled(rows, f32::NEG_INFINITY);
    let mut of_shard = stream.uninit(rows);
    for (logits, shard) in logits.iter().zip(pass.slice.shards.clone()) {
        if !logits.is_empty() {
            stream.logit_maxima(logits.view(), vocabulary(pass.geometry, shard), of_shard.view_mut());
            stream.max_assign(max.view_mut(), of_shard.view());
        }
    }
    pass.group.max(stream, max.view_mut())?;
    Ok(max)
}

/// The logit of each row's target, from the one shard that has it.
fn targets_of(pass: &mut Pass<'_>, logits: &[Buffer], rows: Range<usize>) -> Result<Buffer, GroupError> {
    let stream = pass.stream;
    let mut target = stream.filled(rows.len(), NOTHING);
    for (logits, shard) in logits.iter().zip(pass.slice.shards.clone()) {
        if !logits.is_empty() {
            let (vocabulary, targets) = (vocabulary(pass.geometry, shard), pass.targets.slice(rows.clone()));
            stream.target_logits(logits.view(), vocabulary, targets, target.view_mut());
        }
    }
    pass.group.sum(stream, target.view_mut())?;
    Ok(target)
}

/// The token with the largest logit in each of some rows, the first of equals: on every rank of the group, what [`greedy`] says
/// of whole rows.
pub(crate) fn likeliest(
    pass: &mut Pass<'_>,
    tape: &HeadTape,
    rows: Range<usize>,
) -> Result<Vec<u32>, GroupError> {
    let (stream, d, shards) = (pass.stream, pass.width(), pass.slice.shards.clone());
    let h = tape.normed.rows.h.slice(rows.start * d..rows.end * d);
    let first_of_rank = vocabulary(pass.geometry, shards.start).first_id;
    let mut best = vec![(first_of_rank, f32::NEG_INFINITY); rows.len()];
    for shard in shards {
        let VocabularyShard { first_id, columns, .. } = vocabulary(pass.geometry, shard);
        if columns == 0 {
            continue;
        }
        let logits = stream.to_vec(logits_of(pass, shard, h).view());
        for (best, logits) in best.iter_mut().zip(logits.chunks_exact(columns)) {
            let column = greedy(logits) as usize;
            if logits[column] > best.1 {
                *best = (first_id + column, logits[column]);
            }
        }
    }
    let mut largest = stream.upload(&best.iter().map(|(_, logit)| *logit).collect::<Vec<_>>());
    pass.group.max(stream, largest.view_mut())?;
    // The lowest id is the largest of their negatives, and an f32 has every id of a vocabulary exactly.
    let of_rank = best.iter().zip(stream.to_vec(largest.view()));
    let of_rank = of_rank
        .map(|((id, logit), largest)| if *logit == largest { -(*id as f32) } else { f32::NEG_INFINITY });
    let mut ids = stream.upload(&of_rank.collect::<Vec<_>>());
    pass.group.max(stream, ids.view_mut())?;
    Ok(stream.to_vec(ids.view()).into_iter().map(|id| -id as u32).collect())
}

/// The gradient of the head's input, where each row's loss counts `scale` times.
pub(crate) fn backward(
    pass: &mut Pass<'_>,
    tape: HeadTape,
    scale: f32,
    gradients: &mut Gradients<'_>,
) -> Result<Buffer, GroupError> {
    let HeadTape { normed, statistics, mut logits } = tape;
    let first = pass.slice.shards.start;
    let (stream, rows) = (pass.stream, pass.rows());
    let (wanted, dtype) = (pass.geometry.lora.is_none(), pass.geometry.config.dtype);
    let h = wanted.then(|| pack(stream, normed.rows.h.view(), pass.width(), dtype));
    let [max, exp_sum, _] = statistics.views();
    let dh = pass.partial_sum(normed.rows.h.len(), |pass, shard| {
        let kept = logits.as_mut().and_then(|kept| kept[shard - first].take());
        let mut dlogits = kept.unwrap_or_else(|| logits_of(pass, shard, normed.rows.h.view()));
        if dlogits.is_empty() {
            return None;
        }
        let (vocabulary, targets) = (vocabulary(pass.geometry, shard), pass.targets.view());
        stream.cross_entropy_gradient(dlogits.view_mut(), vocabulary, targets, max, exp_sum, scale);
        let weight = &pass.weights.head[shard - first];
        if let Some(h) = &h {
            let run = gradients.run(Place::Output, &[Tensor::Head], &(shard..shard + 1));
            gradients.of_outputs(run, Mat::row_major(dlogits.view(), rows, weight.outputs()), h);
            pass.work.head += weight.flops(rows);
        }
        pass.work.head += weight.flops(rows);
        Some(weight.backward(stream, pass.parameters, dlogits.view(), rows))
    });
    let dh = pass.sum_rows(dh)?;
    Ok(normed.backward(pass, UnitId::FINAL_NORM, dh.view(), gradients))
}
