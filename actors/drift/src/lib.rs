//! The drift-monitor role: what is asked of a served model against what it was trained on.
//!
//! The tokens of the last prompts ([`window::AskedWindow`]) are compared with the tokens of the
//! training split ([`counts::TokenCounts`]) by two figures: the Kullback-Leibler divergence and the
//! Jensen-Shannon distance. A few thousand tokens over a vocabulary of many thousands are far from
//! their own distribution by chance alone, so neither figure means anything by itself: a
//! [`noise::NoiseBand`] says how far pieces of the training text of the same size are from the rest of
//! it, and only what lies beyond is drift. With fewer tokens than a stated number there is no verdict.
//!
//! [`Monitor`] is the pure core; [`DriftMonitor`] is the role that a node daemon hosts. Gateways send
//! it the counts of what was asked ([`DriftRequest::Observe`]), never text. The window is in memory
//! alone: after a restart it is empty, and the verdict is [`DriftState::TooFew`] until it has filled
//! again.
//!
//! Read [`Monitor`] first.

mod actor;
pub mod counts;
mod error;
mod measure;
mod message;
mod monitor;
pub mod noise;
mod options;
mod reference;
pub mod window;

pub use actor::{DriftEvent, DriftMonitor};
pub use error::{DriftError, ObserveError};
pub use message::{
    DriftReply, DriftReport, DriftRequest, DriftState, OBSERVED_ENTRIES_MAX, OBSERVED_TOKENS_MAX,
};
pub use monitor::{Change, Monitor};
pub use options::DriftOptions;
pub use reference::Reference;

/// Name of the role in a job.
pub const ROLE: &str = "drift";
/// Name under which a node's monitor takes [`DriftRequest`]s. There is one on a node; a second one
/// takes its place.
pub const ACTOR: &str = "drift-monitor";
/// Key under which a monitor announces the name of the model that it watches.
pub const ABOUT_MODEL: &str = "model";
