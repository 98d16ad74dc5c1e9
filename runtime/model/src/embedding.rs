//! The embedding, cut by rows of the vocabulary, and that of positions, cut by rows too, where the family has one.
//!
//! A token's row lies in one shard; every other shard contributes nothing to the sum, so the sum
//! over the group is the row itself, or the sum of a token's row and its position's.

use sixfold_tensor::{Purpose, add_assign};

use crate::linear::Gradients;
use crate::pass::Pass;
use crate::tensor_group::{GroupError, NOTHING};
use crate::unit::UnitId;

/// The residual stream before the first layer: `[rows, d]`.
pub(crate) fn forward(pass: &mut Pass<'_>) -> Result<Vec<f32>, GroupError> {
    let d = pass.width();
    let mut x = vec![NOTHING; pass.rows() * d];
    for shard in pass.slice.shards.clone() {
        let vocabulary = &pass.geometry.sharding.shard(shard).vocabulary;
        for (token, row) in pass.batch.tokens.iter().zip(x.chunks_exact_mut(d)) {
            let token = *token as usize;
            if vocabulary.contains(&token) {
                let at = token - vocabulary.start;
                row.copy_from_slice(&pass.parameters.unit(UnitId::embedding(shard))[at * d..(at + 1) * d]);
            }
        }
    }
    for shard in pass.slice.shards.clone() {
        let Some(table) = pass.parameters.get(UnitId::position_embedding(shard)) else { continue };
        let positions = pass.geometry.positions(shard);
        for (position, row) in pass.positions.iter().zip(x.chunks_exact_mut(d)) {
            let position = *position as usize;
            if positions.contains(&position) {
                add_assign(row, &table[(position - positions.start) * d..][..d]);
            }
        }
    }
    pass.group.sum(&mut x)?;
    pass.dropout(&mut x, 0, Purpose::EMBEDDING_DROPOUT);
    Ok(x)
}

/// Adds the gradient of each row of the batch, in order, to the row of its token and to that of its position.
pub(crate) fn backward(pass: &Pass<'_>, mut dx: Vec<f32>, gradients: &mut Gradients<'_>) {
    let d = pass.width();
    pass.dropout(&mut dx, 0, Purpose::EMBEDDING_DROPOUT);
    for shard in pass.slice.shards.clone() {
        let vocabulary = &pass.geometry.sharding.shard(shard).vocabulary;
        if !vocabulary.is_empty() {
            let tokens = &pass.batch.tokens;
            gradients.of_embedding(UnitId::embedding(shard), &dx, d, vocabulary.start, tokens);
        }
        let of_positions = UnitId::position_embedding(shard);
        if pass.parameters.get(of_positions).is_some() {
            let first = pass.geometry.positions(shard).start;
            gradients.of_embedding(of_positions, &dx, d, first, &pass.positions);
        }
    }
}
