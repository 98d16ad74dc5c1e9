//! A parallel plan: how many ways a job is split, and what follows from that for each rank.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::partition::subtree;
use crate::rank::{Coordinates, Rank};

/// Most ranks that a plan may have. It keeps the product of the degrees far from overflow.
const RANKS_MAX: usize = 1 << 16;

/// Degrees of parallelism, written `dp2·tp2·pp1`.
///
/// Ranks are numbered with the tensor axis fastest and the data axis slowest, so that a
/// tensor-parallel group, which exchanges the most, is a run of neighbouring ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ParallelPlan {
    /// Ways that the batch is split.
    pub data_parallel: usize,
    /// Ways that every layer is split.
    pub tensor_parallel: usize,
    /// Pipeline stages; which layers each holds is a [`PipelineLayout`](crate::PipelineLayout).
    pub pipeline_parallel: usize,
}

/// The counts of a job that a plan has to fit. They are fixed for the job, whatever the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobShape {
    /// Decoder layers.
    pub layers: usize,
    /// Logical tensor shards.
    pub tensor_shards: usize,
    /// Logical data groups, see [`data_groups`](crate::data_groups).
    pub data_groups: usize,
}

/// A plan does not fit the job.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// A degree is zero.
    #[error("{0} must be at least 1")]
    Zero(&'static str),
    /// There is no balanced tree of sums over such a degree.
    #[error("{axis} is {degree}; it must be a power of two")]
    NotPowerOfTwo {
        /// Name of the degree.
        axis: &'static str,
        /// Its value.
        degree: usize,
    },
    /// Fewer things than ranks to hold them.
    #[error("{axis} is {degree}, but there are only {available} {of}")]
    TooMany {
        /// Name of the degree.
        axis: &'static str,
        /// Its value.
        degree: usize,
        /// How many there are.
        available: usize,
        /// Of what.
        of: &'static str,
    },
    /// An absurd number of ranks.
    #[error("a plan of more than {RANKS_MAX} ranks is not supported")]
    TooManyRanks,
}

/// The text is not a plan.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a parallel plan; write it like `dp2·tp2·pp1` or `tp2.pp2`")]
pub struct ParsePlanError(String);

impl Default for ParallelPlan {
    fn default() -> Self {
        Self::SERIAL
    }
}

impl ParallelPlan {
    /// One rank.
    pub const SERIAL: Self = Self { data_parallel: 1, tensor_parallel: 1, pipeline_parallel: 1 };

    /// Number of ranks.
    pub fn world_size(&self) -> usize {
        self.data_parallel * self.tensor_parallel * self.pipeline_parallel
    }

    /// Checks the plan against the job.
    ///
    /// # Errors
    /// [`PlanError`] names the first degree that does not fit.
    pub fn validate(&self, job: &JobShape) -> Result<(), PlanError> {
        let axes = [
            (
                "data_parallel",
                self.data_parallel,
                job.data_groups,
                "data groups (the largest power of two up to 8 that divides the sequences of a step)",
            ),
            ("tensor_parallel", self.tensor_parallel, job.tensor_shards, "logical tensor shards"),
            ("pipeline_parallel", self.pipeline_parallel, job.layers, "layers"),
        ];
        for (axis, degree, available, of) in axes {
            if degree == 0 {
                return Err(PlanError::Zero(axis));
            }
            if axis != "pipeline_parallel" && !degree.is_power_of_two() {
                return Err(PlanError::NotPowerOfTwo { axis, degree });
            }
            if degree > available {
                return Err(PlanError::TooMany { axis, degree, available, of });
            }
        }
        let product = axes.iter().try_fold(1_usize, |product, axis| product.checked_mul(axis.1));
        match product {
            Some(ranks) if ranks <= RANKS_MAX => Ok(()),
            _ => Err(PlanError::TooManyRanks),
        }
    }

    /// All ranks in order.
    pub fn ranks(&self) -> impl Iterator<Item = Rank> + use<> {
        (0..self.world_size() as u32).map(Rank)
    }

    /// Where `rank` stands in the mesh.
    pub fn coordinates(&self, rank: Rank) -> Coordinates {
        let (rest, tensor) = (rank.index() / self.tensor_parallel, rank.index() % self.tensor_parallel);
        let (data, pipeline) = (rest / self.pipeline_parallel, rest % self.pipeline_parallel);
        Coordinates { data, pipeline, tensor }
    }

    /// The rank at `at`.
    pub fn rank(&self, at: Coordinates) -> Rank {
        let row = at.data * self.pipeline_parallel + at.pipeline;
        Rank((row * self.tensor_parallel + at.tensor) as u32)
    }

    /// The ranks that share `rank`'s layers and data, by tensor coordinate.
    pub fn tensor_group(&self, rank: Rank) -> Vec<Rank> {
        let at = self.coordinates(rank);
        (0..self.tensor_parallel).map(|tensor| self.rank(Coordinates { tensor, ..at })).collect()
    }

    /// The ranks that hold the same units as `rank`, by data coordinate.
    pub fn data_group(&self, rank: Rank) -> Vec<Rank> {
        let at = self.coordinates(rank);
        (0..self.data_parallel).map(|data| self.rank(Coordinates { data, ..at })).collect()
    }

    /// The ranks that pass `rank`'s micro-batches along, by pipeline stage.
    pub fn pipeline_group(&self, rank: Rank) -> Vec<Rank> {
        let at = self.coordinates(rank);
        (0..self.pipeline_parallel).map(|pipeline| self.rank(Coordinates { pipeline, ..at })).collect()
    }

    /// Logical shards that `rank` holds, out of `tensor_shards`: an aligned subtree.
    pub fn shards(&self, rank: Rank, tensor_shards: usize) -> Range<usize> {
        subtree(tensor_shards, self.tensor_parallel, self.coordinates(rank).tensor)
    }

    /// Data groups that `rank` works on, out of `data_groups`: an aligned subtree.
    pub fn groups(&self, rank: Rank, data_groups: usize) -> Range<usize> {
        subtree(data_groups, self.data_parallel, self.coordinates(rank).data)
    }
}

impl fmt::Display for ParallelPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "dp{}·tp{}·pp{}", self.data_parallel, self.tensor_parallel, self.pipeline_parallel)
    }
}

impl FromStr for ParallelPlan {
    type Err = ParsePlanError;

    /// Reads `dp2·tp2·pp1`; `.` may stand for `·`, and a degree that is left out is 1.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text).ok_or_else(|| ParsePlanError(text.chars().take(80).collect()))
    }
}

fn parse(text: &str) -> Option<ParallelPlan> {
    let mut degrees = [None; 3];
    for part in text.split(['·', '.']) {
        let (axis, degree) = part.split_at_checked(2)?;
        let axis = ["dp", "tp", "pp"].iter().position(|name| *name == axis)?;
        let degree: usize = degree.parse().ok().filter(|degree| (1..=RANKS_MAX).contains(degree))?;
        if degrees[axis].replace(degree).is_some() {
            return None;
        }
    }
    let [data, tensor, pipeline] = degrees.map(|degree| degree.unwrap_or(1));
    Some(ParallelPlan { data_parallel: data, tensor_parallel: tensor, pipeline_parallel: pipeline })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn plans() -> impl Strategy<Value = ParallelPlan> {
        (1_usize..5, 1_usize..5, 1_usize..5).prop_map(|(data, tensor, pipeline)| ParallelPlan {
            data_parallel: data,
            tensor_parallel: tensor,
            pipeline_parallel: pipeline,
        })
    }

    proptest! {
        #[test]
        fn text_round_trips(plan in plans()) {
            prop_assert_eq!(plan.to_string().parse(), Ok(plan));
            prop_assert_eq!(plan.to_string().replace('·', ".").parse(), Ok(plan));
        }

        #[test]
        fn ranks_and_coordinates_are_one_to_one(plan in plans()) {
            let mut seen: Vec<_> = plan.ranks().map(|rank| plan.coordinates(rank)).collect();
            for (rank, at) in plan.ranks().zip(&seen) {
                prop_assert_eq!(plan.rank(*at), rank);
                prop_assert!(at.data < plan.data_parallel && at.pipeline < plan.pipeline_parallel);
            }
            seen.sort();
            seen.dedup();
            prop_assert_eq!(seen.len(), plan.world_size());
        }

        #[test]
        fn groups_of_an_axis_partition_the_ranks(plan in plans()) {
            type Group = fn(&ParallelPlan, Rank) -> Vec<Rank>;
            let axes: [(Group, usize); 3] = [
                (ParallelPlan::tensor_group, plan.tensor_parallel),
                (ParallelPlan::data_group, plan.data_parallel),
                (ParallelPlan::pipeline_group, plan.pipeline_parallel),
            ];
            for (group, size) in axes {
                for rank in plan.ranks() {
                    let members = group(&plan, rank);
                    prop_assert_eq!(members.len(), size);
                    prop_assert!(members.contains(&rank));
                    for member in &members {
                        prop_assert_eq!(&group(&plan, *member), &members);
                    }
                }
            }
        }

        #[test]
        fn every_unit_is_held_once_in_each_data_replica(plan in plans()) {
            prop_assume!(plan.tensor_parallel != 3 && plan.data_parallel != 3);
            let mut held = vec![0; plan.pipeline_parallel * 4 * 4];
            for rank in plan.ranks() {
                let stage = plan.coordinates(rank).pipeline;
                for shard in plan.shards(rank, 4) {
                    for group in plan.groups(rank, 4) {
                        held[(stage * 4 + shard) * 4 + group] += 1;
                    }
                }
            }
            prop_assert!(held.iter().all(|count| *count == 1));
        }
    }

    #[test]
    fn tensor_is_the_fastest_axis() {
        let plan: ParallelPlan = "dp2·tp2·pp2".parse().unwrap();
        assert_eq!(plan.coordinates(Rank(5)), Coordinates { data: 1, pipeline: 0, tensor: 1 });
        assert_eq!(plan.tensor_group(Rank(5)), [Rank(4), Rank(5)]);
        assert_eq!(plan.pipeline_group(Rank(5)), [Rank(5), Rank(7)]);
        assert_eq!(plan.data_group(Rank(5)), [Rank(1), Rank(5)]);
    }

    #[test]
    fn refuses_text_that_is_not_a_plan() {
        for text in
            ["", "tp", "tp0", "tp2·tp2", "xx2", "tp2 pp2", "tp-1", "·", "tp99999999999999999999", "é2"]
        {
            assert!(text.parse::<ParallelPlan>().is_err(), "{text}");
        }
        assert_eq!("pp3".parse(), Ok(ParallelPlan { pipeline_parallel: 3, ..ParallelPlan::SERIAL }));
    }

    #[test]
    fn says_what_does_not_fit_the_job() {
        let job = JobShape { layers: 3, tensor_shards: 4, data_groups: 2 };
        let check = |text: &str| text.parse::<ParallelPlan>().unwrap().validate(&job);
        assert_eq!(check("dp2·tp4·pp3"), Ok(()));
        assert_eq!(check("tp3").unwrap_err().to_string(), "tensor_parallel is 3; it must be a power of two");
        assert_eq!(
            check("tp8").unwrap_err().to_string(),
            "tensor_parallel is 8, but there are only 4 logical tensor shards"
        );
        assert!(matches!(check("pp4"), Err(PlanError::TooMany { axis: "pipeline_parallel", .. })));
        assert!(matches!(check("dp4"), Err(PlanError::TooMany { axis: "data_parallel", .. })));
        let zero = ParallelPlan { data_parallel: 0, ..ParallelPlan::SERIAL };
        assert_eq!(zero.validate(&job), Err(PlanError::Zero("data_parallel")));
    }
}
