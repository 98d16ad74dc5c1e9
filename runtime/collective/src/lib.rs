//! All-reduce, gather, broadcast and point-to-point exchange in a fixed order.
//!
//! The ranks of a [`TreeGroup`] are the leaves of a balanced binary tree; where a rank owns several
//! leaves of a larger tree it adds them first and takes part with one partial. Every sum has the
//! bits of the serial sum in that tree (`sixfold_tensor::cpu::tree_sum`), whatever arrives first, and
//! every rank gets the same bits. A [`PointToPoint`] carries activations between pipeline stages.
//!
//! This crate opens no connections and starts no threads: it works over [`TensorLink`]s that
//! someone else has established, on the caller's thread. Sums block, and every link must take
//! [`IN_FLIGHT_BYTES_MAX`] without its peer receiving; a pipeline's messages are handed over.
//!
//! Read [`TreeGroup`] first.
//!
//! [`TensorLink`]: sixfold_transport::link::TensorLink

mod exchange;
mod group;
mod point_to_point;
#[cfg(test)]
mod testing;

pub use exchange::IN_FLIGHT_BYTES_MAX;
pub use group::{CollectiveError, TreeGroup};
pub use point_to_point::{Kind, PointToPoint};

#[cfg(not(target_endian = "little"))]
compile_error!("ranks exchange numbers in memory order, which must be little endian");
