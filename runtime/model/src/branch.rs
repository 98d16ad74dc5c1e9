//! A residual branch: norm, a sharded body, the sum over shards, a bias, dropout, addition to the stream.
//!
//! Attention and the feed-forward layer are the two [`Body`]s; everything that they share is here.
//! Shapes: the stream `x` and all that is added to it are `[own rows, d]`, the rows that the rank has
//! ([`row_parts`](crate::row_parts)); `h` and what the body makes of it are `[rows, d]`.

use sixfold_tensor::{Buffer, Purpose, Stream, View, ViewMut};

use crate::bias;
use crate::families::Family;
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

    /// The projections that read the normed input.
    fn readers(family: Family) -> &'static [Tensor];

    /// The sum of the shards' partial results.
    ///
    /// # Errors
    /// [`GroupError`] if the tensor-parallel group fails.
    fn forward(pass: &mut Pass<'_>, layer: usize, h: View<'_>) -> Result<(Buffer, Self::Tape), GroupError>;

    /// Adds to `y`, the sum over the shards of all ranks, what is no part of that sum.
    fn add_to_sum(pass: &Pass<'_>, layer: usize, tape: &Self::Tape, y: ViewMut<'_>);

    /// Drops what [`Self::backward`] computes again at little cost where it is missing.
    fn drop_cheap(_stream: &Stream, _tape: &mut Self::Tape) {}

    /// The sum of the shards' parts of the gradient of `h`, and what is to be added to the sum of all ranks' parts; adds to
    /// the gradients of the shards' units. `h` is empty where [`Self::readers`] need no gradient.
    ///
    /// # Errors
    /// [`GroupError`] if the tensor-parallel group fails.
    fn backward(
        pass: &mut Pass<'_>,
        layer: usize,
        tape: &Self::Tape,
        h: View<'_>,
        dy: View<'_>,
        gradients: &mut Gradients<'_>,
    ) -> Result<(Buffer, Option<Buffer>), GroupError>;
}

/// What the backward pass needs of a branch's forward pass.
pub(crate) struct BranchTape<T> {
    normed: Normed,
    body: T,
}

impl<T> BranchTape<T> {
    /// Drops what [`backward`] computes again at little cost.
    pub(crate) fn drop_cheap<B: Body<Tape = T>>(&mut self, stream: &Stream) {
        self.normed.rows.h = stream.uninit(0);
        B::drop_cheap(stream, &mut self.body);
    }

    /// The branch's input, from which all else follows.
    pub(crate) fn into_input(self) -> Buffer {
        self.normed.x
    }
}

/// Whether the backward pass needs the normed input: gradients of those that read it are wanted.
fn reads_again<B: Body>(pass: &Pass<'_>) -> bool {
    pass.geometry.trains_any(B::readers(pass.geometry.config.family))
}

/// Runs `x + dropout(body(norm(x)) + bias)`.
pub(crate) fn forward<B: Body>(
    pass: &mut Pass<'_>,
    layer: usize,
    x: Buffer,
) -> Result<(Buffer, BranchTape<B::Tape>), GroupError> {
    let stream = pass.stream;
    let mut normed = Normed::forward(pass, UnitId::of_layer(layer, B::NORM, 0), x)?;
    let (y, body) = B::forward(pass, layer, normed.rows.h.view())?;
    if !reads_again::<B>(pass) {
        normed.rows.h = stream.uninit(0);
    }
    let mut y = pass.sum_rows(y)?;
    B::add_to_sum(pass, layer, &body, y.view_mut());
    bias::add_whole(pass, UnitId::of_layer(layer, B::BIAS, 0), y.view_mut());
    pass.dropout(y.view_mut(), layer, B::DROPOUT);
    stream.add_assign(y.view_mut(), normed.x.view());
    Ok((y, BranchTape { normed, body }))
}

/// The gradient of the branch's input from that of its output.
pub(crate) fn backward<B: Body>(
    pass: &mut Pass<'_>,
    layer: usize,
    tape: BranchTape<B::Tape>,
    dx: Buffer,
    gradients: &mut Gradients<'_>,
) -> Result<Buffer, GroupError> {
    let stream = pass.stream;
    let BranchTape { mut normed, body } = tape;
    if normed.rows.h.is_empty() && reads_again::<B>(pass) {
        normed = Normed::forward(pass, UnitId::of_layer(layer, B::NORM, 0), normed.x)?;
    }
    let mut dy = stream.copy_of(dx.view());
    pass.dropout(dy.view_mut(), layer, B::DROPOUT);
    bias::backward_whole(pass, UnitId::of_layer(layer, B::BIAS, 0), dy.view(), gradients);
    let dy = pass.all_rows(dy)?;
    let (dh, to_sum) = B::backward(pass, layer, &body, normed.rows.h.view(), dy.view(), gradients)?;
    let mut dh = pass.sum_rows(dh)?;
    if let Some(more) = to_sum {
        stream.add_assign(dh.view_mut(), more.view());
    }
    let mut dx_branch = normed.backward(pass, UnitId::of_layer(layer, B::NORM, 0), dh.view(), gradients);
    stream.add_assign(dx_branch.view_mut(), dx.view());
    Ok(dx_branch)
}
