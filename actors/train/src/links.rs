//! Where a rank's links come from: [`LinkFactory`]. Whoever hosts a rank implements it; the rank
//! itself knows no network.

use std::collections::HashMap;
use std::net::SocketAddr;

use async_trait::async_trait;
use sixfold_cluster::task::Gang;
use sixfold_topology::Rank;
use sixfold_transport::link::{LinkError, TensorLink};

/// What a set of links is for. A rank may have one link to a peer for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LinkPurpose {
    /// Activations, partial sums and gradients.
    Tensors,
    /// The names of the final states, after the last step.
    Records,
}

/// The links of a rank by the peer at their other end.
pub type Links = HashMap<Rank, Box<dyn TensorLink>>;

/// Establishes links between the ranks of a gang.
#[async_trait]
pub trait LinkFactory: Send + Sync {
    /// Where other ranks reach this one; announced to the gang.
    fn address(&self) -> SocketAddr;

    /// Links from `rank` to each of `peers`, which call it too, with `rank` among their peers.
    /// Links of an older epoch of the gang are refused.
    ///
    /// # Errors
    /// [`LinkError`] names the peer that cannot be reached.
    async fn connect(
        &self,
        gang: &Gang,
        rank: Rank,
        peers: &[Rank],
        purpose: LinkPurpose,
    ) -> Result<Links, LinkError>;
}
