//! What one rank of a verification does: [`RankRun`].

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use sixfold_model::{Geometry, HostUnits, UnitBuffer, UnitIndex, gradient_of};
use sixfold_tensor::Device;
use sixfold_topology::{ParallelPlan, PipelineLayout, Rank};

use super::VerifyError;
use crate::gang::{self, RankError, lost_a_peer};
use crate::job::{StepBatch, StepReport, TrainingJob};
use crate::links::RankLinks;
use crate::state::UnitParts;
use crate::trainer::Trainer;

pub(crate) use crate::gang::Links;

/// How long a rank may say nothing: ranks that wait for each other for ever are an error, not a hang.
const SILENCE: Duration = Duration::from_secs(20);

/// What one rank computed: its state before the first step and after each.
pub(super) struct RankTrace {
    pub(super) initial: UnitBuffer,
    /// Of which numbers it has finished gradients and moments.
    pub(super) parts: UnitParts,
    pub(super) steps: Vec<StepTrace>,
}

impl RankTrace {
    /// How many numbers these are.
    pub(super) fn kept(&self) -> usize {
        self.parts.values().map(Range::len).sum()
    }
}

/// What one rank computed in a step.
pub(super) struct StepTrace {
    pub(super) report: StepReport,
    /// After all sums, before clipping.
    pub(super) gradients: UnitBuffer,
    pub(super) parameters: UnitBuffer,
    pub(super) moments: [UnitBuffer; 2],
}

/// A rank that trains and keeps what it computes.
pub(super) struct RankRun {
    rank: Rank,
    geometry: Geometry,
    pub(super) trainer: Trainer,
    pub(super) trace: RankTrace,
}

impl RankRun {
    pub(super) fn begin(
        job: &TrainingJob,
        plan: &ParallelPlan,
        layout: &PipelineLayout,
        rank: Rank,
        links: RankLinks,
    ) -> Result<Self, VerifyError> {
        let trainer = Trainer::with_layout(job, plan, layout, rank, links, Device::cpu().stream())
            .map_err(|source| VerifyError::Place { rank, source })?;
        Ok(Self::of_trainer(job, rank, trainer))
    }

    /// A rank that trains with `trainer`.
    pub(super) fn of_trainer(job: &TrainingJob, rank: Rank, trainer: Trainer) -> Self {
        let (initial, parts) = (trainer.parameters().into_owned(), trainer.optimizer().parts().clone());
        let trace = RankTrace { initial, parts, steps: Vec::new() };
        Self { rank, geometry: job.geometry.clone(), trainer, trace }
    }

    /// From now on replicas share the optimizer.
    pub(super) fn share_optimizer(&mut self) {
        self.trainer.share_optimizer();
        self.trace.parts = self.trainer.optimizer().parts().clone();
    }

    pub(super) fn step(&mut self, step: u64, batch: StepBatch) -> Result<(), VerifyError> {
        let (geometry, parts) = (&self.geometry, &self.trace.parts);
        let stream = self.trainer.stream().clone();
        let lengths = parts.iter().map(|(unit, part)| (*unit, part.len()));
        let mut gradients = UnitBuffer::zeros(Arc::new(UnitIndex::new(lengths)));
        let done = self.trainer.step_and_show(step, batch, |sums| {
            for (unit, part) in parts {
                let finished = gradient_of(geometry, sums, *unit).slice(part.clone());
                stream.to_host(finished, gradients.unit_mut(*unit));
            }
        });
        let report = done.map_err(|source| VerifyError::Step { rank: self.rank, step, source })?;
        let [parameters, first, second] = self.trainer.state().map(HostUnits::into_owned);
        let moments = [first, second];
        self.trace.steps.push(StepTrace { report, gradients, parameters, moments });
        Ok(())
    }
}

/// The links that every rank of a plan needs, within this process.
pub(crate) fn connect(plan: &ParallelPlan) -> Vec<Links> {
    gang::connect(plan, SILENCE)
}

/// As [`gang::run_gang`], with the errors of a verification.
pub(crate) fn run_gang<T: Send>(
    plan: &ParallelPlan,
    links: Vec<Links>,
    each: impl Fn(Rank, Links) -> Result<T, VerifyError> + Sync,
) -> Result<Vec<T>, VerifyError> {
    gang::run_gang(plan, links, each)
}

impl RankError for VerifyError {
    fn panicked(rank: Rank, message: String) -> Self {
        Self::Panicked { rank, message }
    }

    fn is_of_a_peer(&self) -> bool {
        matches!(self, Self::Step { source, .. } if lost_a_peer(source))
    }
}
