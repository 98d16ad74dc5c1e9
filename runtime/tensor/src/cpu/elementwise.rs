//! Element-wise sums and scaling, and the rows of an embedding.

use crate::cpu::simd::{simd_dispatch, simd_level};
use crate::cpu::threads;

/// Elements of one task.
const TASK_ELEMENTS: usize = 1 << 15;

/// `sum[i] += term[i]`.
///
/// # Panics
/// The lengths differ.
pub fn add_assign(sum: &mut [f32], term: &[f32]) {
    assert_eq!(sum.len(), term.len(), "lengths of a sum");
    let (level, cost) = (simd_level(), sum.len());
    threads::for_each_chunk(sum, TASK_ELEMENTS, cost, |task, sum| {
        add_assign_at(level, sum, &term[task * TASK_ELEMENTS..][..sum.len()]);
    });
}

/// `out[i] = a[i] + b[i]`.
///
/// # Panics
/// The lengths differ.
pub fn add(a: &[f32], b: &[f32], out: &mut [f32]) {
    assert_eq!((a.len(), b.len()), (out.len(), out.len()), "lengths of a sum");
    add_at(simd_level(), a, b, out);
}

/// `values[i] *= factor`.
pub fn scale(values: &mut [f32], factor: f32) {
    scale_at(simd_level(), values, factor);
}

/// Copies row `ids[t]` of `table` (`[vocabulary][width]`) to row `t` of `out`. A shard of the vocabulary passes
/// `first_id`; rows of ids outside of it become zero.
///
/// # Panics
/// `table` or `out` is not a whole number of rows of `width`, or `out` has not one row an id.
pub fn embed(table: &[f32], width: usize, first_id: usize, ids: &[u32], out: &mut [f32]) {
    assert_eq!((table.len() % width, out.len()), (0, ids.len() * width), "shapes of an embedding");
    for (&id, row) in ids.iter().zip(out.chunks_exact_mut(width)) {
        match shard_row(table.len() / width, first_id, id) {
            Some(index) => row.copy_from_slice(&table[index * width..][..width]),
            None => row.fill(0.0),
        }
    }
}

/// Adds row `t` of `d_out` to row `ids[t]` of `d_table`, in the order of the tokens; ids outside of the shard are skipped.
///
/// # Panics
/// As for [`embed`].
pub fn embed_backward(d_out: &[f32], width: usize, first_id: usize, ids: &[u32], d_table: &mut [f32]) {
    assert_eq!((d_table.len() % width, d_out.len()), (0, ids.len() * width), "shapes of an embedding");
    let rows = d_table.len() / width;
    for (&id, row) in ids.iter().zip(d_out.chunks_exact(width)) {
        if let Some(index) = shard_row(rows, first_id, id) {
            add_assign(&mut d_table[index * width..][..width], row);
        }
    }
}

fn shard_row(rows: usize, first_id: usize, id: u32) -> Option<usize> {
    (id as usize).checked_sub(first_id).filter(|&row| row < rows)
}

simd_dispatch!(pub(crate) fn add_assign_at(sum: &mut [f32], term: &[f32]) = add_assign_body);
simd_dispatch!(fn add_at(a: &[f32], b: &[f32], out: &mut [f32]) = add_body);
simd_dispatch!(fn scale_at(values: &mut [f32], factor: f32) = scale_body);

#[inline(always)]
fn add_assign_body(sum: &mut [f32], term: &[f32]) {
    for (sum, term) in sum.iter_mut().zip(term) {
        *sum += term;
    }
}

#[inline(always)]
fn add_body(a: &[f32], b: &[f32], out: &mut [f32]) {
    for (out, (a, b)) in out.iter_mut().zip(a.iter().zip(b)) {
        *out = a + b;
    }
}

#[inline(always)]
fn scale_body(values: &mut [f32], factor: f32) {
    for value in values {
        *value *= factor;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_and_scales_every_element() {
        let mut values: Vec<f32> = (0..37).map(|value| value as f32).collect();
        let term = values.clone();
        let mut out = vec![0.0; 37];
        add(&values, &term, &mut out);
        add_assign(&mut values, &term);
        assert_eq!(values, out);
        scale(&mut values, 0.5);
        assert_eq!(values, term);
    }

    #[test]
    fn vocabulary_shards_add_up_to_the_whole_embedding() {
        let table: Vec<f32> = (0..5 * 3).map(|value| value as f32).collect();
        let ids = [4, 0, 2, 4];
        let (mut whole, mut low, mut high) = (vec![0.0; 12], vec![9.0; 12], vec![9.0; 12]);
        embed(&table, 3, 0, &ids, &mut whole);
        embed(&table[..6], 3, 0, &ids, &mut low);
        embed(&table[6..], 3, 2, &ids, &mut high);
        add_assign(&mut low, &high);
        assert_eq!(low, whole);
        assert_eq!(whole[..3], [12.0, 13.0, 14.0]);
    }

    #[test]
    fn embedding_gradients_gather_by_id() {
        let d_out: Vec<f32> = (1..=4).flat_map(|value| [value as f32; 2]).collect();
        let mut d_table = vec![0.0; 3 * 2];
        embed_backward(&d_out, 2, 1, &[1, 0, 3, 1], &mut d_table);
        assert_eq!(d_table, [5.0, 5.0, 0.0, 0.0, 3.0, 3.0]);
    }
}
