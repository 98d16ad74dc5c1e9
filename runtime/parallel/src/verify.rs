//! Whether a plan computes what one rank computes: [`Verification`].
//!
//! A gang of ranks, threads of this process over links within it, trains a few steps of a small job;
//! one rank alone trains them too. Gradients after all sums, parameters, moments and losses must have
//! the same bits on every rank. The ranks are [`Trainer`](crate::Trainer)s, as in a cluster; what is
//! not covered is what brings them links and tokens there.

mod compare;
pub(crate) mod gang;

#[cfg(test)]
mod faults;
#[cfg(test)]
pub(crate) mod small;

use std::io;
use std::ops::Range;

use serde::Serialize;
use sixfold_model::Recompute;
use sixfold_topology::{ParallelPlan, PipelineLayout, Rank};

use crate::error::{PlaceError, StepError};
use crate::job::{Execution, StepBatch, TrainingJob};
use crate::links::RankLinks;
use crate::slice::balanced_layout;

pub use compare::{Difference, Found, Quantity, TensorDifference, Values};
use compare::{first_difference, tensors};
use gang::{RankRun, connect, run_gang};

/// How the run computes with which others are compared.
const PLAIN: Execution = Execution { recompute: Recompute::None, pass_tokens: 1, sequence_parallel: false };

/// The part of a step's batch that lies in some of its data groups.
pub type Batches<'a> = dyn Fn(u64, Range<usize>) -> StepBatch + Sync + 'a;

/// A plan to be verified, and the job to do it with. The plan has been validated against the job.
pub struct Verification<'a> {
    /// A small job that makes the same structural choices as the one that the plan is for.
    pub job: &'a TrainingJob,
    /// The plan.
    pub plan: ParallelPlan,
    /// Which of the small job's layers each pipeline stage holds.
    pub layout: PipelineLayout,
    /// Logical data groups of a step.
    pub data_groups: usize,
    /// How the ranks of the plan compute; the one rank alone keeps everything and takes one micro-batch at a time.
    pub execution: Execution,
    /// Whether the replicas of the plan share the optimizer; the one rank alone has all of it.
    pub share_optimizer: bool,
    /// Steps to train.
    pub steps: u64,
    /// Batches by step and data groups.
    pub batches: &'a Batches<'a>,
}

/// A plan that computes what one rank computes, and what was compared to say so.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Verified {
    /// The plan.
    pub plan: ParallelPlan,
    /// Which layers of the small model its pipeline stages had.
    pub layout: PipelineLayout,
    /// Steps trained.
    pub steps: u64,
    /// Whole tensors of the small model.
    pub tensors: usize,
    /// Trainable numbers of the small model.
    pub parameters: usize,
    /// Numbers compared: gradients, parameters and moments of every step on every rank.
    pub numbers: u64,
    /// Mean loss of each step; its bits were compared too, on every rank.
    pub losses: Vec<f32>,
    /// What each rank held and sent.
    pub ranks: Vec<VerifiedRank>,
}

/// What a rank held and sent during a verification.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct VerifiedRank {
    /// The rank.
    pub rank: Rank,
    /// Parameters that it held.
    pub parameters: usize,
    /// Parameters whose moments it kept.
    pub moments: usize,
    /// Bytes that it sent to other ranks.
    pub bytes_sent: u64,
    /// Bytes that it would have sent if its sums had gone around rings.
    pub ring_bytes: u64,
}

/// A plan could not be verified, or computes something else than one rank.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The plan computes something else.
    #[error(transparent)]
    Differs(#[from] Box<Difference>),
    /// A rank cannot take its place in the plan.
    #[error("{rank}: {source}")]
    Place {
        /// The rank.
        rank: Rank,
        /// Why.
        source: PlaceError,
    },
    /// A step failed on a rank.
    #[error("{rank}, step {step}: {source}")]
    Step {
        /// The rank.
        rank: Rank,
        /// The step, counted from 0.
        step: u64,
        /// What failed.
        source: StepError,
    },
    /// A rank's thread panicked.
    #[error("{rank} panicked: {message}")]
    Panicked {
        /// The rank.
        rank: Rank,
        /// What it said.
        message: String,
    },
    /// A thread could not be started.
    #[error("no thread for a rank: {0}")]
    Thread(#[from] io::Error),
}

impl Verification<'_> {
    /// Trains under the plan and serially, and compares.
    ///
    /// # Errors
    /// [`VerifyError::Differs`] names the first number that has other bits; else why nothing could be
    /// compared.
    pub fn run(&self) -> Result<Verified, VerifyError> {
        let alone = balanced_layout(&self.job.geometry, &ParallelPlan::SERIAL, 1);
        let alone = alone.map_err(|error| VerifyError::Place { rank: Rank(0), source: error.into() })?;
        let serial = self.trace(&ParallelPlan::SERIAL, &alone, PLAIN, false)?;
        let serial = &serial[0];
        let ranks = self.trace(&self.plan, &self.layout, self.execution, self.share_optimizer)?;
        let geometry = &self.job.geometry;
        let traces: Vec<_> = ranks.iter().map(|rank| &rank.trace).collect();
        if let Some(difference) =
            first_difference(geometry, (&self.plan, &self.layout), &serial.trace, &traces)
        {
            return Err(Box::new(difference).into());
        }
        let held = |rank: &RankRun| rank.trainer.parameters().values().len();
        let of_rank = |(index, rank): (u32, &RankRun)| VerifiedRank {
            rank: Rank(index),
            parameters: held(rank),
            moments: rank.trace.kept(),
            bytes_sent: rank.trainer.bytes_sent(),
            ring_bytes: rank.trainer.ring_bytes(),
        };
        let held_by_all: usize = ranks.iter().map(held).sum();
        let kept_by_all: usize = ranks.iter().map(|rank| rank.trace.kept()).sum();
        // Parameters before and after each step; gradients and two moments of what is kept.
        let numbers = held_by_all as u64 * (1 + self.steps) + kept_by_all as u64 * 3 * self.steps;
        Ok(Verified {
            plan: self.plan,
            layout: self.layout.clone(),
            steps: self.steps,
            tensors: tensors(&serial.trainer.parameters()),
            parameters: held(serial),
            numbers,
            losses: serial.trace.steps.iter().map(|step| step.report.loss).collect(),
            ranks: (0..).zip(&ranks).map(of_rank).collect(),
        })
    }

    /// What every rank of a plan computes.
    fn trace(
        &self,
        plan: &ParallelPlan,
        layout: &PipelineLayout,
        execution: Execution,
        share_optimizer: bool,
    ) -> Result<Vec<RankRun>, VerifyError> {
        run_gang(plan, connect(plan), |rank, links| {
            let links =
                RankLinks::new(plan, rank, links).map_err(|source| VerifyError::Place { rank, source })?;
            let mut run = RankRun::begin(self.job, plan, layout, rank, links)?;
            run.trainer.set_execution(execution);
            if share_optimizer {
                run.share_optimizer();
            }
            for step in 0..self.steps {
                run.step(step, (self.batches)(step, plan.groups(rank, self.data_groups)))?;
            }
            Ok(run)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::small::{batch, config, job};
    use super::*;

    fn verify(plan: &str, share_optimizer: bool, batches: &Batches<'_>) -> Result<Verified, VerifyError> {
        let job = job(config());
        let (plan, execution) = (plan.parse().unwrap(), Execution::default());
        let layout = balanced_layout(&job.geometry, &plan, 1).unwrap();
        let verification = Verification {
            job: &job,
            plan,
            layout,
            data_groups: 4,
            execution,
            share_optimizer,
            steps: 2,
            batches,
        };
        verification.run()
    }

    #[test]
    fn a_plan_that_is_right_is_told_with_what_was_compared() {
        let job = job(config());
        let verified = verify("dp2.tp2.pp2", false, &|step, own| batch(&job, 4, 1, step, own)).unwrap();
        let Verified { tensors, parameters, numbers, losses, ranks, .. } = verified;
        assert_eq!((tensors, losses.len(), ranks.len()), (3 + 9 * 4, 2, 8));
        assert_eq!(parameters, job.geometry.config.parameters());
        let held: usize = ranks.iter().map(|rank| rank.parameters).sum();
        assert!(held > 2 * parameters, "every replica is held, and norms by several ranks");
        assert_eq!(numbers, 9 * held as u64);
        for VerifiedRank { rank, bytes_sent, ring_bytes, .. } in ranks {
            assert!(0 < ring_bytes && ring_bytes <= bytes_sent, "{rank}: {ring_bytes} of {bytes_sent}");
        }
    }

    #[test]
    fn a_shared_optimizer_is_compared_where_it_is() {
        let job = job(config());
        let verified = verify("dp2.tp2.pp2", true, &|step, own| batch(&job, 4, 1, step, own)).unwrap();
        let all: usize = verified.ranks.iter().map(|rank| rank.parameters).sum();
        let kept: usize = verified.ranks.iter().map(|rank| rank.moments).sum();
        assert!(kept < all * 6 / 10, "{kept} of {all}");
        assert_eq!(verified.numbers, (3 * all + 6 * kept) as u64);
    }

    #[test]
    fn a_plan_that_is_not_right_is_refused() {
        let job = job(config());
        let wrong = |step, own: Range<usize>| {
            let own = if own == (2..4) { 0..2 } else { own };
            batch(&job, 4, 1, step, own)
        };
        for shared in [false, true] {
            let error = verify("dp2", shared, &wrong).unwrap_err();
            assert!(matches!(error, VerifyError::Differs(_)), "{error}");
            assert!(
                error.to_string().starts_with("step 0, the gradient of model.embed_tokens.weight"),
                "{error}"
            );
        }
    }

    #[test]
    fn a_rank_that_panics_is_named() {
        let job = job(config());
        let wrong = |step, own: Range<usize>| {
            assert_ne!(own, 2..4, "no such groups");
            batch(&job, 4, 1, step, own)
        };
        let error = verify("dp2.tp2", false, &wrong).unwrap_err().to_string();
        assert!(error.starts_with("rank 2 panicked") && error.contains("no such groups"), "{error}");
    }
}
