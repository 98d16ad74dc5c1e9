//! Forward: chunks of rows (queries x heads of a KV group) against one block of keys after the other.

mod chunk;

use std::ops::Range;

use super::pack::{HeadBlocks, Source};
use super::{AttentionShape, Segment, Visible, head_of, row_place};
use crate::cpu::{Mat, MatMut, SimdLevel, threads};
use chunk::{CHUNK_ROWS, Chunk};

/// Rows of one task, where a head is cut into several.
pub(super) const TASK_ROWS: usize = 4 * CHUNK_ROWS;

/// Rows of one KV head in one segment, and where their results go.
struct Task<'a, S> {
    segment: &'a Segment,
    source: &'a S,
    kv_head: usize,
    rows: Range<usize>,
    /// For each row its head of the output and its log-sum-exp.
    results: Vec<(&'a mut [f32], &'a mut f32)>,
}

/// Attends in all segments, in tasks of up to `task_rows` rows, a multiple of [`CHUNK_ROWS`] or no limit.
pub(super) fn run<S: Source>(
    level: SimdLevel,
    q: Mat<'_>,
    work: &[(&Segment, &S)],
    shape: &AttentionShape,
    task_rows: usize,
    out: MatMut<'_>,
    lse_th: &mut [f32],
) {
    let mut tasks = tasks(work, shape, task_rows, out, lse_th);
    let cost = work.iter().map(|(segment, _)| segment.cost(shape)).sum();
    threads::for_each(&mut tasks, cost, |task| task.run(level, q, shape));
}

/// Cuts the work into tasks and hands each its heads of the output.
fn tasks<'a, S>(
    work: &[(&'a Segment, &'a S)],
    shape: &AttentionShape,
    task_rows: usize,
    out: MatMut<'a>,
    lse_th: &'a mut [f32],
) -> Vec<Task<'a, S>> {
    let mut tasks = Vec::new();
    let mut out_rows = out.data.chunks_mut(out.row_stride.max(1));
    let mut lse_rows = lse_th.chunks_exact_mut(shape.q_heads);
    for &(segment, source) in work {
        let (rows, first_task) = (segment.rows(shape), tasks.len());
        for kv_head in 0..shape.kv_heads {
            tasks.extend((0..rows).step_by(task_rows).map(|first| {
                let rows = first..rows.min(first.saturating_add(task_rows));
                Task { segment, source, kv_head, results: Vec::with_capacity(rows.len()), rows }
            }));
        }
        let tasks = &mut tasks[first_task..];
        let tasks_a_head = rows.div_ceil(task_rows);
        let queries = out_rows.by_ref().zip(lse_rows.by_ref()).take(segment.queries.len());
        for (query, (out, lse)) in queries.enumerate() {
            let heads = out[..out_width(shape)].chunks_exact_mut(shape.head_dim).zip(lse);
            for (head, results) in heads.enumerate() {
                let row = query * shape.group() + head % shape.group();
                tasks[head / shape.group() * tasks_a_head + row / task_rows].results.push(results);
            }
        }
    }
    tasks
}

fn out_width(shape: &AttentionShape) -> usize {
    shape.q_heads * shape.head_dim
}

impl<S: Source> Task<'_, S> {
    fn run(&mut self, level: SimdLevel, q: Mat<'_>, shape: &AttentionShape) {
        let results = std::mem::take(&mut self.results);
        self.source.with_head(self.kv_head, |blocks| self.attend(level, q, shape, blocks, results));
    }

    fn attend(
        &self,
        level: SimdLevel,
        q: Mat<'_>,
        shape: &AttentionShape,
        blocks: &dyn HeadBlocks,
        results: Vec<(&mut [f32], &mut f32)>,
    ) {
        let mut chunk = Chunk::new(shape.head_dim, self.rows.len().min(CHUNK_ROWS));
        let mut results = results.into_iter();
        for first in self.rows.clone().step_by(CHUNK_ROWS) {
            let rows = first..self.rows.end.min(first + CHUNK_ROWS);
            chunk.begin(rows.len());
            chunk.set_queries(|r| {
                let (token, head) = row_place(shape, self.segment, self.kv_head, rows.start + r);
                head_of(q, token, head, shape.head_dim)
            });
            for block in self.segment.blocks(shape, rows.clone()) {
                let mut visible = [Visible::default(); CHUNK_ROWS];
                for (visible, row) in visible.iter_mut().zip(rows.clone()) {
                    *visible = self.segment.visible(shape, row, block);
                }
                let (keys, values) = blocks.block(block);
                chunk.attend(level, keys, values, &visible[..rows.len()], shape.scale());
            }
            chunk.finish(level, results.by_ref().take(rows.len()));
        }
    }
}
