//! Ranks, parallel plans, placement and pipeline schedules: pure functions, no IO.
//!
//! A [`ParallelPlan`] says how many ways a training job is split by data, by tensor and by pipeline
//! stage; it turns a [`Rank`] into [`Coordinates`] and back, names the process groups, and says
//! which part of the model and of the batch a rank owns. [`place`] puts the ranks on nodes and
//! says why; [`fit`] finds a smaller plan where there is not enough room. A [`PipelineLayout`] says which layers a pipeline
//! stage holds, and [`pipeline_schedule`] in which order it works.
//!
//! This crate knows nothing of models or links: layers, logical shards and data groups are counts.
//! Read [`ParallelPlan`] first.

mod fit;
mod layout;
mod partition;
mod placement;
mod plan;
mod rank;
mod schedule;

pub use fit::{Slots, fit, has_room};
pub use layout::{LayoutError, PipelineLayout, StageCosts};
pub use partition::{data_groups, subtree};
pub use placement::{NodeResources, Placement, PlacementError, RankNeeds, place};
pub use plan::{JobShape, ParallelPlan, ParsePlanError, PlanError};
pub use rank::{Coordinates, Rank};
pub use schedule::{PipelineOp, pipeline_bubble, pipeline_schedule};
