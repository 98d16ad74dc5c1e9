//! A decoder layer, forwards and backwards, and what is kept between the two: [`Recompute`].

use serde::{Deserialize, Serialize};
use sixfold_tensor::Buffer;

use crate::attention::{Attention, AttentionTape};
use crate::branch::{self, BranchTape};
use crate::feed_forward::{FeedForward, FeedForwardTape};
use crate::linear::Gradients;
use crate::pass::Pass;
use crate::site::Part;
use crate::tensor_group::GroupError;

/// What the backward pass computes again instead of keeping it (Korthikanti et al., "Reducing Activation
/// Recomputation in Large Transformer Models", 2022). The bits are the same in any case.
///
/// Tensor-parallel ranks share what attention (`4 d`) and the feed-forward layer keep. With
/// [sequence parallelism](crate::Network::sequence_parallel) they share the rest too, but for the outputs of norms (`2 d`),
/// which [`Self::None`] keeps whole rather than have them sent again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Recompute {
    /// Nothing: `8 d + 3 f` numbers a token and layer are kept, of width `d` and feed-forward width `f`, less
    /// where there are fewer key-value heads.
    #[default]
    None,
    /// Norms and gated products, which cost little: `6 d + 2 f` numbers are kept.
    Selective,
    /// All but a layer's input: `d` numbers are kept, and a layer's products are done a third time.
    Full,
}

/// What the backward pass needs of a layer's forward pass.
pub(crate) enum LayerTape {
    Kept(Box<(BranchTape<AttentionTape>, BranchTape<FeedForwardTape>)>),
    Input(Buffer),
}

/// Takes the stream through a layer.
pub(crate) fn forward(
    pass: &mut Pass<'_>,
    layer: usize,
    x: Buffer,
) -> Result<(Buffer, LayerTape), GroupError> {
    let (y, mut attention, mut feed_forward) = both(pass, layer, x)?;
    match pass.recompute {
        Recompute::None => {}
        Recompute::Selective => {
            attention.drop_cheap::<Attention>(pass.stream);
            feed_forward.drop_cheap::<FeedForward>(pass.stream);
        }
        Recompute::Full => return Ok((y, LayerTape::Input(attention.into_input()))),
    }
    Ok((y, LayerTape::Kept(Box::new((attention, feed_forward)))))
}

/// The gradient of the layer's input from that of its output.
pub(crate) fn backward(
    pass: &mut Pass<'_>,
    layer: usize,
    tape: LayerTape,
    dx: Buffer,
    gradients: &mut Gradients<'_>,
) -> Result<Buffer, GroupError> {
    let (attention, feed_forward) = match tape {
        LayerTape::Kept(branches) => *branches,
        LayerTape::Input(x) => {
            let (_, attention, feed_forward) = both(pass, layer, x)?;
            (attention, feed_forward)
        }
    };
    pass.enter(true, Part::FeedForward(layer as u32));
    let dx = branch::backward::<FeedForward>(pass, layer, feed_forward, dx, gradients)?;
    pass.enter(true, Part::Attention(layer as u32));
    branch::backward::<Attention>(pass, layer, attention, dx, gradients)
}

type Branches = (Buffer, BranchTape<AttentionTape>, BranchTape<FeedForwardTape>);

fn both(pass: &mut Pass<'_>, layer: usize, x: Buffer) -> Result<Branches, GroupError> {
    pass.enter(false, Part::Attention(layer as u32));
    let (x, attention) = branch::forward::<Attention>(pass, layer, x)?;
    pass.enter(false, Part::FeedForward(layer as u32));
    let (y, feed_forward) = branch::forward::<FeedForward>(pass, layer, x)?;
    Ok((y, attention, feed_forward))
}
