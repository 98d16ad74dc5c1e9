//! A gang of ranks as threads of this process: [`run_gang`], and what one of them does: [`RankRun`].

use std::any::Any;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use sixfold_model::{Geometry, HostUnits, UnitBuffer, UnitIndex, gradient_of};
use sixfold_tensor::Device;
use sixfold_topology::{ParallelPlan, PipelineLayout, Rank};
use sixfold_transport::link::TensorLink;
use sixfold_transport::tensor::local_pair;

use super::VerifyError;
use crate::error::StepError;
use crate::job::{StepBatch, StepReport, TrainingJob};
use crate::links::RankLinks;
use crate::state::UnitParts;
use crate::trainer::Trainer;

/// Far more than a small job's ranks ever have under way on a link.
const WINDOW_BYTES: usize = 64 << 20;
/// How long a rank may say nothing: ranks that wait for each other for ever are an error, not a hang.
const SILENCE: Duration = Duration::from_secs(20);

/// Links of one rank, by peer.
pub(crate) type Links = HashMap<Rank, Box<dyn TensorLink>>;

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
    let mut links: Vec<Links> = plan.ranks().map(|_| Links::new()).collect();
    for rank in plan.ranks() {
        for peer in RankLinks::peers(plan, rank).into_iter().filter(|peer| *peer > rank) {
            let (near, far) = local_pair(WINDOW_BYTES, SILENCE);
            links[rank.index()].insert(peer, Box::new(near));
            links[peer.index()].insert(rank, Box::new(far));
        }
    }
    links
}

/// Runs `each` rank on a thread of its own and returns what they return, by rank.
///
/// A rank that fails drops its links, so that the others end too; one that is done keeps them until
/// all are done. Of several errors the one nearest to the cause is returned.
pub(crate) fn run_gang<T: Send>(
    plan: &ParallelPlan,
    links: Vec<Links>,
    each: impl Fn(Rank, Links) -> Result<T, VerifyError> + Sync,
) -> Result<Vec<T>, VerifyError> {
    let each = &each;
    let ended = thread::scope(|scope| {
        let threads: Vec<_> = plan
            .ranks()
            .zip(links)
            .map(|(rank, links)| {
                let thread = thread::Builder::new().name(format!("verify-{}", rank.0));
                (rank, thread.spawn_scoped(scope, move || each(rank, links)))
            })
            .collect();
        let join = |(rank, thread): (Rank, std::io::Result<thread::ScopedJoinHandle<'_, _>>)| {
            thread?
                .join()
                .unwrap_or_else(|panic| Err(VerifyError::Panicked { rank, message: said(panic.as_ref()) }))
        };
        threads.into_iter().map(join).collect::<Vec<_>>()
    });
    let (mut done, mut failed) = (Vec::new(), Vec::new());
    for result in ended {
        match result {
            Ok(result) => done.push(result),
            Err(error) => failed.push(error),
        }
    }
    failed.into_iter().min_by_key(distance_from_cause).map_or(Ok(done), Err)
}

/// What a panic said.
fn said(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("nothing").to_owned()
}

/// A rank that lost a peer only suffers from what happened to the peer.
fn distance_from_cause(error: &VerifyError) -> u8 {
    match error {
        VerifyError::Step {
            source: StepError::Pipeline(_) | StepError::Tensor(_) | StepError::Data(_),
            ..
        } => 1,
        _ => 0,
    }
}
