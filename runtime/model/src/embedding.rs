//! The embedding, cut by rows of the vocabulary, and that of positions, cut by rows too, where the family has one.
//!
//! A token's row lies in one shard; every other shard contributes nothing to the sum, so the sum
//! over the group is the row itself, or the sum of a token's row and its position's.

use sixfold_tensor::{Buffer, Purpose};

use crate::linear::Gradients;
use crate::pass::Pass;
use crate::tensor_group::{GroupError, NOTHING};
use crate::unit::UnitId;

/// The residual stream before the first layer: `[own rows, d]`, the rows that the rank has.
pub(crate) fn forward(pass: &mut Pass<'_>) -> Result<Buffer, GroupError> {
    let (stream, d) = (pass.stream, pass.width());
    let mut x = stream.filled(pass.rows() * d, NOTHING);
    for shard in pass.slice.shards.clone() {
        let (unit, first) = (UnitId::embedding(shard), pass.geometry.sharding.shard(shard).vocabulary.start);
        if let Some(table) = pass.parameters.plain().get(unit) {
            stream.embed(table, d, first, pass.tokens.view(), x.view_mut());
        } else if let Some(table) = pass.parameters.compressed(unit) {
            stream.embed_compressed(table, d, first, pass.tokens.view(), x.view_mut());
        }
    }
    for shard in pass.slice.shards.clone() {
        let Some(table) = pass.parameters.plain().get(UnitId::position_embedding(shard)) else { continue };
        let first = pass.geometry.positions(shard).start;
        stream.embed_add(table, d, first, pass.positions.view(), x.view_mut());
    }
    let mut x = pass.sum_rows(x)?;
    pass.dropout(x.view_mut(), 0, Purpose::EMBEDDING_DROPOUT);
    Ok(x)
}

/// Adds the gradient of each row of the batch, in order, to the row of its token and to that of its position, where tables
/// are trained.
pub(crate) fn backward(
    pass: &mut Pass<'_>,
    mut dx: Buffer,
    gradients: &mut Gradients<'_>,
) -> Result<(), GroupError> {
    if pass.geometry.lora.is_some() {
        return Ok(());
    }
    let d = pass.width();
    pass.dropout(dx.view_mut(), 0, Purpose::EMBEDDING_DROPOUT);
    let dx = pass.all_rows(dx)?;
    for shard in pass.slice.shards.clone() {
        let vocabulary = &pass.geometry.sharding.shard(shard).vocabulary;
        if !vocabulary.is_empty() {
            let unit = UnitId::embedding(shard);
            gradients.of_embedding(unit, dx.view(), d, vocabulary.start, pass.tokens.view());
        }
        let of_positions = UnitId::position_embedding(shard);
        if pass.parameters.plain().get(of_positions).is_some() {
            let first = pass.geometry.positions(shard).start;
            gradients.of_embedding(of_positions, dx.view(), d, first, pass.positions.view());
        }
    }
    Ok(())
}
