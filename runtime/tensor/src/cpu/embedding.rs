//! The rows of an embedding table, and their gradients.

use std::ops::Range;

use crate::cpu::add_assign;

/// Copies row `ids[t]` of `table` (`[vocabulary][width]`) to row `t` of `out`. A shard of the vocabulary passes
/// `first_id`; rows of ids outside of it stay as they are.
///
/// # Panics
/// `table` or `out` is not a whole number of rows of `width`, or `out` has not one row an id.
pub fn embed(table: &[f32], width: usize, first_id: usize, ids: &[u32], out: &mut [f32]) {
    for_each_row(table, width, first_id, ids, out, <[f32]>::copy_from_slice);
}

/// As [`embed`], adding to the rows of `out`.
///
/// # Panics
/// As for [`embed`].
pub fn embed_add(table: &[f32], width: usize, first_id: usize, ids: &[u32], out: &mut [f32]) {
    for_each_row(table, width, first_id, ids, out, add_assign);
}

fn for_each_row(
    table: &[f32],
    width: usize,
    first_id: usize,
    ids: &[u32],
    out: &mut [f32],
    with: impl Fn(&mut [f32], &[f32]),
) {
    assert_eq!((table.len() % width, out.len()), (0, ids.len() * width), "shapes of an embedding");
    for (&id, row) in ids.iter().zip(out.chunks_exact_mut(width)) {
        if let Some(index) = shard_row(table.len() / width, first_id, id) {
            with(row, &table[index * width..][..width]);
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

/// As [`embed_backward`] for rows of whole groups, of as many rows each: those of a token are summed in the order of the rows
/// within a group, groups in the balanced binary tree, and their sum is added to the table, of zeros or of the sums of
/// other groups.
///
/// # Panics
/// As for [`embed`].
pub fn embed_backward_groups(
    d_out: &[f32],
    width: usize,
    first_id: usize,
    ids: &[u32],
    groups: usize,
    d_table: &mut [f32],
) {
    assert_eq!((d_table.len() % width, d_out.len()), (0, ids.len() * width), "shapes of an embedding");
    let rows = d_table.len() / width;
    // Most rows belong to few groups. A group without the token would add +0, which changes no bit, since a sum
    // that began with +0 is never -0.
    let mut of_table: Vec<(usize, usize)> = (0..ids.len())
        .filter_map(|row| shard_row(rows, first_id, ids[row]).map(|of_table| (of_table, row)))
        .collect();
    of_table.sort_unstable();
    let group_len = ids.len() / groups;
    for rows in of_table.chunk_by(|a, b| a.0 == b.0) {
        let sum = tree_of_groups(rows, 0..groups, group_len, width, d_out);
        add_assign(&mut d_table[rows[0].0 * width..][..width], &sum);
    }
}

/// The sum of rows of `d_out`, given in order: in order within a group, then in the tree over `groups`.
fn tree_of_groups(
    rows: &[(usize, usize)],
    groups: Range<usize>,
    group_len: usize,
    width: usize,
    d_out: &[f32],
) -> Vec<f32> {
    if groups.len() == 1 {
        let mut sum = vec![0.0; width];
        rows.iter().for_each(|(_, row)| add_assign(&mut sum, &d_out[row * width..][..width]));
        return sum;
    }
    let middle = groups.start + groups.len() / 2;
    let (left, right) = rows.split_at(rows.partition_point(|(_, row)| row / group_len < middle));
    match (left, right) {
        ([], rows) => tree_of_groups(rows, middle..groups.end, group_len, width, d_out),
        (rows, []) => tree_of_groups(rows, groups.start..middle, group_len, width, d_out),
        (left, right) => {
            let mut sum = tree_of_groups(left, groups.start..middle, group_len, width, d_out);
            add_assign(&mut sum, &tree_of_groups(right, middle..groups.end, group_len, width, d_out));
            sum
        }
    }
}

fn shard_row(rows: usize, first_id: usize, id: u32) -> Option<usize> {
    (id as usize).checked_sub(first_id).filter(|&row| row < rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vocabulary_shards_add_up_to_the_whole_embedding() {
        let table: Vec<f32> = (0..5 * 3).map(|value| value as f32).collect();
        let ids = [4, 0, 2, 4];
        let (mut whole, mut cut) = (vec![0.0; 12], vec![9.0; 12]);
        embed(&table, 3, 0, &ids, &mut whole);
        embed(&table[..6], 3, 0, &ids, &mut cut);
        assert_eq!(cut, [9.0, 9.0, 9.0, 0.0, 1.0, 2.0, 9.0, 9.0, 9.0, 9.0, 9.0, 9.0]);
        embed(&table[6..], 3, 2, &ids, &mut cut);
        assert_eq!(cut, whole);
        embed_add(&table[..6], 3, 0, &ids, &mut cut);
        assert_eq!((&cut[..3], &cut[3..6]), (&whole[..3], &[0.0, 2.0, 4.0][..]));
        assert_eq!(whole[..3], [12.0, 13.0, 14.0]);
    }

    #[test]
    fn embedding_gradients_gather_by_id() {
        let d_out: Vec<f32> = (1..=4).flat_map(|value| [value as f32; 2]).collect();
        let mut d_table = vec![0.0; 3 * 2];
        embed_backward(&d_out, 2, 1, &[1, 0, 3, 1], &mut d_table);
        assert_eq!(d_table, [5.0, 5.0, 0.0, 0.0, 3.0, 3.0]);
    }

    #[test]
    fn gradients_of_groups_are_those_of_each_group_added_in_the_tree() {
        let (width, groups, ids) = (3, 4, [0, 2, 2, 1, 1, 2, 2, 2, 5, 9, 2, 1]);
        let d_out: Vec<f32> = (0..ids.len() * width).map(|at| 1.0 / (1.0 + at as f32)).collect();
        let mut tables: Vec<Vec<f32>> = vec![vec![0.0; 5 * width]; groups];
        for (group, table) in tables.iter_mut().enumerate() {
            let rows = group * 3..group * 3 + 3;
            embed_backward(&d_out[rows.start * width..rows.end * width], width, 1, &ids[rows], table);
        }
        crate::cpu::tree_sum(&mut tables.iter_mut().map(Vec::as_mut_slice).collect::<Vec<_>>());
        let mut together = vec![0.0; 5 * width];
        embed_backward_groups(&d_out, width, 1, &ids, groups, &mut together);
        assert_eq!(together, tables[0]);
    }
}
