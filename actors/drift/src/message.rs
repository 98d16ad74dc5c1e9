//! What is asked of a monitor, and what it answers. Enums grow only at their end.

use std::fmt;

use serde::{Deserialize, Serialize};
use sixfold_wire::message::Message;

/// Most entries of an observation; what is more goes into another one.
pub const OBSERVED_ENTRIES_MAX: usize = 1 << 16;
/// Most tokens of an observation.
pub const OBSERVED_TOKENS_MAX: u64 = 1 << 32;

/// A message to a monitor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DriftRequest {
    /// What was asked of a model since the last observation. Answered with [`DriftReply::Accepted`].
    Observe {
        /// Name of the model.
        model: String,
        /// Tokens of prompts and how often each occurred; at most [`OBSERVED_ENTRIES_MAX`] of them.
        counts: Vec<(u32, u64)>,
    },
    /// How things stand. Answered with [`DriftReply::Report`].
    Report,
}

impl Message for DriftRequest {
    type Reply = DriftReply;
    const PROTOCOL: &'static str = "sixfold-drift";
}

/// An answer of a monitor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum DriftReply {
    /// The observation was counted.
    Accepted,
    /// How things stand.
    Report(DriftReport),
    /// Nothing was done, for this reason.
    Refused(String),
}

/// How what is asked compares with what was trained on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DriftReport {
    /// Name of the model that is watched.
    pub model: String,
    /// The verdict.
    pub state: DriftState,
    /// Tokens in the window that is compared.
    pub window_tokens: u64,
    /// Tokens asked since the monitor started.
    pub tokens_asked: u64,
    /// Kullback-Leibler divergence of the training text from the window, in nats; 0 for an empty window.
    pub kl_nats: f64,
    /// Jensen-Shannon distance, base 2, from 0 to 1; 0 for an empty window.
    pub js_distance: f64,
    /// Distances above this are drift at the window's present size.
    pub js_limit: f64,
    /// Times that drift began since the monitor started.
    pub alarms: u64,
}

/// The verdict of a monitor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum DriftState {
    /// The window has too few tokens for a verdict.
    #[default]
    TooFew,
    /// What is asked is like what was trained on.
    NoDrift,
    /// What is asked is unlike what was trained on.
    Drift,
}

impl fmt::Display for DriftState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TooFew => "too few tokens",
            Self::NoDrift => "no drift",
            Self::Drift => "drift",
        })
    }
}
