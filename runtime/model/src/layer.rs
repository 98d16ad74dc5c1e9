//! A decoder layer, forwards and backwards, and what is kept between the two: [`Recompute`].

use serde::{Deserialize, Serialize};

use crate::attention::{Attention, AttentionTape};
use crate::branch::{self, BranchTape};
use crate::feed_forward::{FeedForward, FeedForwardTape};
use crate::linear::Gradients;
use crate::pass::Pass;
use crate::site::Part;
use crate::tensor_group::GroupError;

/// What the backward pass computes again instead of keeping it (Korthikanti et al., "Reducing Activation
/// Recomputation in Large Transformer Models", 2022). The bits are the same in any case.
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
    Kept(BranchTape<AttentionTape>, BranchTape<FeedForwardTape>),
    Input(Vec<f32>),
}

/// Takes the stream through a layer.
pub(crate) fn forward(
    pass: &mut Pass<'_>,
    layer: usize,
    x: Vec<f32>,
) -> Result<(Vec<f32>, LayerTape), GroupError> {
    let (y, mut attention, mut feed_forward) = both(pass, layer, x)?;
    match pass.recompute {
        Recompute::None => {}
        Recompute::Selective => {
            attention.drop_cheap::<Attention>();
            feed_forward.drop_cheap::<FeedForward>();
        }
        Recompute::Full => return Ok((y, LayerTape::Input(attention.into_input()))),
    }
    Ok((y, LayerTape::Kept(attention, feed_forward)))
}

/// The gradient of the layer's input from that of its output.
pub(crate) fn backward(
    pass: &mut Pass<'_>,
    layer: usize,
    tape: LayerTape,
    dx: Vec<f32>,
    gradients: &mut Gradients<'_>,
) -> Result<Vec<f32>, GroupError> {
    let (attention, feed_forward) = match tape {
        LayerTape::Kept(attention, feed_forward) => (attention, feed_forward),
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

type Branches = (Vec<f32>, BranchTape<AttentionTape>, BranchTape<FeedForwardTape>);

fn both(pass: &mut Pass<'_>, layer: usize, x: Vec<f32>) -> Result<Branches, GroupError> {
    pass.enter(false, Part::Attention(layer as u32));
    let (x, attention) = branch::forward::<Attention>(pass, layer, x)?;
    pass.enter(false, Part::FeedForward(layer as u32));
    let (y, feed_forward) = branch::forward::<FeedForward>(pass, layer, x)?;
    Ok((y, attention, feed_forward))
}
