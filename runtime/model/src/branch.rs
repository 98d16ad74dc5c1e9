//! A residual branch: norm, a sharded body, the sum over shards, a bias, dropout, addition to the stream.
//!
//! Attention and the feed-forward layer are the two [`Body`]s; everything that they share is here.
//! Shapes: `x`, `h`, `y` are `[rows, d]`.

use sixfold_tensor::{Purpose, add_assign};

use crate::bias;
use crate::linear::Gradients;
use crate::norm::Normed;
use crate::pass::Pass;
use crate::tensor_group::GroupError;
use crate::unit::{Tensor, UnitId};

/// What a branch computes from its normed input, for all of the rank's logical shards.
pub(crate) trait Body {
    /// What the backward pass needs of the forward pass.
    type Tape;
    /// The norm before the body.
    const NORM: Tensor;
    /// The bias after the sum over shards, in families that have biases.
    const BIAS: Tensor;
    /// The dropout after the body.
    const DROPOUT: Purpose;

    /// The sum of the shards' partial results.
    fn forward(pass: &mut Pass<'_>, layer: usize, h: &[f32]) -> (Vec<f32>, Self::Tape);

    /// Drops what [`Self::backward`] computes again at little cost where it is missing.
    fn drop_cheap(_tape: &mut Self::Tape) {}

    /// The sum of the shards' parts of the gradient of `h`; adds to the gradients of the shards' units.
    fn backward(
        pass: &mut Pass<'_>,
        layer: usize,
        tape: &Self::Tape,
        h: &[f32],
        dy: &[f32],
        gradients: &mut Gradients<'_>,
    ) -> Vec<f32>;
}

/// What the backward pass needs of a branch's forward pass.
pub(crate) struct BranchTape<T> {
    normed: Normed,
    body: T,
}

impl<T> BranchTape<T> {
    /// Drops what [`backward`] computes again at little cost.
    pub(crate) fn drop_cheap<B: Body<Tape = T>>(&mut self) {
        self.normed.rows.h = Vec::new();
        B::drop_cheap(&mut self.body);
    }

    /// The branch's input, from which all else follows.
    pub(crate) fn into_input(self) -> Vec<f32> {
        self.normed.x
    }
}

/// Runs `x + dropout(body(norm(x)) + bias)`.
pub(crate) fn forward<B: Body>(
    pass: &mut Pass<'_>,
    layer: usize,
    x: Vec<f32>,
) -> Result<(Vec<f32>, BranchTape<B::Tape>), GroupError> {
    let normed = Normed::forward(pass, UnitId::of_layer(layer, B::NORM, 0), x);
    let (mut y, body) = B::forward(pass, layer, &normed.rows.h);
    pass.group.sum(&mut y)?;
    bias::add_whole(pass, UnitId::of_layer(layer, B::BIAS, 0), &mut y);
    pass.dropout(&mut y, layer, B::DROPOUT);
    add_assign(&mut y, &normed.x);
    Ok((y, BranchTape { normed, body }))
}

/// The gradient of the branch's input from that of its output.
pub(crate) fn backward<B: Body>(
    pass: &mut Pass<'_>,
    layer: usize,
    tape: BranchTape<B::Tape>,
    dx: Vec<f32>,
    gradients: &mut Gradients<'_>,
) -> Result<Vec<f32>, GroupError> {
    let BranchTape { mut normed, body } = tape;
    if normed.rows.h.is_empty() {
        normed = Normed::forward(pass, UnitId::of_layer(layer, B::NORM, 0), normed.x);
    }
    let mut dy = dx.clone();
    pass.dropout(&mut dy, layer, B::DROPOUT);
    bias::backward_whole(pass, UnitId::of_layer(layer, B::BIAS, 0), &dy, gradients);
    let mut dh = B::backward(pass, layer, &body, &normed.rows.h, &dy, gradients);
    pass.group.sum(&mut dh)?;
    let mut dx_branch = normed.backward(pass, UnitId::of_layer(layer, B::NORM, 0), &dh, gradients);
    add_assign(&mut dx_branch, &dx);
    Ok(dx_branch)
}
