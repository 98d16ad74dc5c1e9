//! Backward: probabilities are recomputed from the scores and the saved log-sum-exp, block by block (Dao et al. 2022).

mod scratch;
mod task;

use std::ops::Range;

use super::{AttentionShape, Segment, check_rows, segments};
use crate::cpu::simd::simd_level;
use crate::cpu::{Mat, RowsMut, SimdLevel, threads};
use task::Task;

/// What forward read and wrote, each with a row stride of its own.
#[derive(Clone, Copy, Debug)]
pub struct AttentionSaved<'a> {
    /// Queries, `[tokens][q_heads * head_dim]`.
    pub q: Mat<'a>,
    /// Keys, `[keys][kv_heads * head_dim]`.
    pub k: Mat<'a>,
    /// Values, `[keys][kv_heads * head_dim]`.
    pub v: Mat<'a>,
    /// Forward's output, shaped like the queries.
    pub out: Mat<'a>,
    /// Forward's log-sum-exp, `[tokens][q_heads]`.
    pub lse_th: &'a [f32],
}

/// Where backward writes; every element is overwritten, with zero for keys that no query sees.
#[derive(Debug)]
pub struct AttentionGradients<'a> {
    /// Gradient of the queries.
    pub d_q: RowsMut<'a>,
    /// Gradient of the keys, from this call's queries alone.
    pub d_k: RowsMut<'a>,
    /// Gradient of the values, from this call's queries alone.
    pub d_v: RowsMut<'a>,
}

/// The gradients of [`attention`](super::attention()) for the output's gradient `d_out`, `[tokens][q_heads * head_dim]`.
///
/// # Panics
/// The shapes disagree, the elements of a row do not lie side by side, or the first query lies before the first document.
pub fn attention_backward(
    d_out: Mat<'_>,
    saved: &AttentionSaved<'_>,
    shape: &AttentionShape,
    document_starts: &[usize],
    gradients: AttentionGradients<'_>,
) {
    backward_at(simd_level(), d_out, saved, shape, document_starts, gradients);
}

pub(super) fn backward_at(
    level: SimdLevel,
    d_out: Mat<'_>,
    saved: &AttentionSaved<'_>,
    shape: &AttentionShape,
    document_starts: &[usize],
    gradients: AttentionGradients<'_>,
) {
    let d_q = (gradients.d_q.rows(), gradients.d_q.cols());
    shape.check(&saved.q, d_q, saved.lse_th);
    shape.check_keys(&saved.k, &saved.v);
    check_rows("outputs", &saved.out, d_q);
    check_rows("gradients of the outputs", &d_out, d_q);
    for rows in [&gradients.d_k, &gradients.d_v] {
        let width = shape.kv_heads * shape.head_dim;
        assert_eq!((rows.rows(), rows.cols()), (shape.keys, width), "shape of the keys' or values' gradient");
    }
    let segments = segments(shape, document_starts);
    let mut tasks = tasks(shape, &segments, gradients);
    let cost = segments.iter().map(|segment| segment.cost(shape)).sum();
    threads::for_each(&mut tasks, cost, |task| task.run(level, d_out, saved));
}

/// A task a KV head and segment, each with its heads of the gradients.
fn tasks<'a>(
    shape: &'a AttentionShape,
    segments: &'a [Segment],
    gradients: AttentionGradients<'a>,
) -> Vec<Task<'a>> {
    let mut tasks: Vec<Task<'a>> = segments
        .iter()
        .flat_map(|segment| (0..shape.kv_heads).map(move |kv_head| Task::new(shape, segment, kv_head)))
        .collect();
    let AttentionGradients { d_q, d_k, d_v } = gradients;
    hand_out(shape, d_q, segments.iter().map(|segment| &segment.queries), |segment, head, row| {
        tasks[segment * shape.kv_heads + head / shape.group()].d_q.push(row);
    });
    hand_out(shape, d_k, segments.iter().map(|segment| &segment.keys), |segment, head, row| {
        tasks[segment * shape.kv_heads + head].d_k.push(row);
    });
    hand_out(shape, d_v, segments.iter().map(|segment| &segment.keys), |segment, head, row| {
        tasks[segment * shape.kv_heads + head].d_v.push(row);
    });
    tasks
}

/// Gives the heads of the rows in `ranges` (ascending, one a segment) away, with segment and head; zeroes the other rows.
fn hand_out<'a>(
    shape: &AttentionShape,
    rows: RowsMut<'a>,
    ranges: impl Iterator<Item = &'a Range<usize>>,
    mut give: impl FnMut(usize, usize, &'a mut [f32]),
) {
    let mut ranges = ranges.enumerate().peekable();
    for (index, row) in rows.into_rows().enumerate() {
        while ranges.next_if(|(_, range)| range.end <= index).is_some() {}
        match ranges.peek() {
            Some((segment, range)) if range.contains(&index) => {
                let heads = row.chunks_exact_mut(shape.head_dim).enumerate();
                heads.for_each(|(head, row)| give(*segment, head, row));
            }
            _ => row.fill(0.0),
        }
    }
}
