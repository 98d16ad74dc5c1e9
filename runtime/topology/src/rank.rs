//! Who a member of a training job is: [`Rank`], and its [`Coordinates`] in the plan's mesh.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A member of a gang, counted from 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Rank(pub u32);

impl Rank {
    /// The rank as an index into a list with one entry a rank.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for Rank {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rank {}", self.0)
    }
}

/// Where a rank stands along the three axes of the mesh.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Coordinates {
    /// Which part of the batch it works on.
    pub data: usize,
    /// Which pipeline stage, that is, which layers, it holds.
    pub pipeline: usize,
    /// Which logical shards of those layers it holds.
    pub tensor: usize,
}

impl fmt::Display for Coordinates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "data {}, pipeline stage {}, tensor {}", self.data, self.pipeline, self.tensor)
    }
}
