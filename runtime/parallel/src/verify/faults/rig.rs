//! A gang in which one thing can be made wrong: [`Planted`].

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use sixfold_model::{HostUnits, ModelConfig, UnitBuffer};
use sixfold_tensor::Device;
use sixfold_topology::{Coordinates, ParallelPlan, PipelineLayout, Rank};
use sixfold_transport::link::{LinkError, TensorLink};

use crate::job::{Execution, StepBatch, TrainingJob};
use crate::links::RankLinks;
use crate::slice::{RankSlice, balanced_layout};
use crate::trainer::Trainer;
use crate::verify::Difference;
use crate::verify::compare::first_difference;
use crate::verify::gang::{Links, RankRun, connect, run_gang};
use crate::verify::small::{batch, job};

const STEPS: u64 = 3;
const GROUPS: usize = 4;
const PER_GROUP: usize = 2;
/// Fewer numbers than the activations of a micro-batch have, or half of them, and more than any smaller message.
const LONG: usize = 150;

/// A message as a rank receives it.
pub(super) struct Message<'a> {
    pub(super) rank: Rank,
    pub(super) peer: Rank,
    pub(super) step: u64,
    /// Which of the step's messages of at least [`LONG`] numbers on this link, from 1; 0 for a shorter one.
    pub(super) long: usize,
    /// What the rank has sent to the peer last.
    pub(super) own: &'a [f32],
    pub(super) theirs: &'a mut [f32],
}

/// Does harm to a message, or not; returns whether it did.
type Harm = dyn Fn(&mut Message<'_>) -> bool + Send + Sync;
/// A rank's input, from where it stands, the step, its right input, and the step's data groups.
type Input =
    dyn Fn(Coordinates, u64, StepBatch, &dyn Fn(Range<usize>) -> StepBatch) -> StepBatch + Send + Sync;
/// What is done to a rank before a step.
type Before = dyn Fn(&mut Run<'_>, Rank, u64) + Send + Sync;

/// A rank before a step, and what was kept of it earlier.
pub(super) struct Run<'a> {
    pub(super) trainer: &'a mut Trainer,
    kept: &'a mut Option<[UnitBuffer; 3]>,
}

impl Run<'_> {
    /// Remembers weights and moments.
    pub(super) fn keep(&mut self) {
        *self.kept = Some(self.trainer.state().map(HostUnits::into_owned));
    }

    /// Puts back the moments that were kept.
    pub(super) fn restore_moments(&mut self) {
        let [_, first, second] = self.kept.take().unwrap();
        let parameters = self.trainer.parameters().into_owned();
        self.trainer.restore([&parameters, &first, &second]);
    }

    /// Puts back what was kept.
    pub(super) fn restore(&mut self) {
        let kept = self.kept.take().unwrap();
        self.trainer.restore(kept.each_ref());
    }
}

/// A gang in which one thing is wrong.
pub(super) struct Planted {
    pub(super) job: TrainingJob,
    pub(super) plan: &'static str,
    /// Chunks of layers of each pipeline stage.
    pub(super) chunks: usize,
    pub(super) groups: usize,
    pub(super) per_group: usize,
    /// Whether replicas share the optimizer.
    pub(super) shared: bool,
    /// Whether the ranks of a tensor-parallel group share the rows between products.
    pub(super) sequence_parallel: bool,
    pub(super) harm: Box<Harm>,
    /// Whose place among the links a rank takes.
    pub(super) position: fn(Rank) -> Rank,
    /// Whose part of the model a rank computes.
    pub(super) part: fn(Rank) -> Rank,
    /// What is done to the chunks of layers that a rank computes.
    pub(super) slice: fn(Rank, &mut RankSlice),
    pub(super) input: Box<Input>,
    pub(super) before: Box<Before>,
}

impl Planted {
    pub(super) fn nothing(config: ModelConfig, plan: &'static str) -> Self {
        Self {
            job: job(config),
            plan,
            chunks: 1,
            groups: GROUPS,
            per_group: PER_GROUP,
            shared: false,
            sequence_parallel: false,
            harm: Box::new(|_| false),
            position: |rank| rank,
            part: |rank| rank,
            slice: |_, _| {},
            input: Box::new(|_, _, batch, _| batch),
            before: Box::new(|_, _, _| {}),
        }
    }

    pub(super) fn messages(
        plan: &'static str,
        harm: impl Fn(&mut Message<'_>) -> bool + Send + Sync + 'static,
    ) -> Self {
        Self { harm: Box::new(harm), ..Self::nothing(super::config(), plan) }
    }

    pub(super) fn inputs(
        plan: &'static str,
        input: impl Fn(Coordinates, u64, StepBatch, &dyn Fn(Range<usize>) -> StepBatch) -> StepBatch
        + Send
        + Sync
        + 'static,
    ) -> Self {
        Self { input: Box::new(input), ..Self::nothing(super::config(), plan) }
    }

    /// What is found, and how many messages were harmed.
    pub(super) fn find(self) -> (Option<Difference>, usize) {
        let Self { job, plan, chunks, shared, harm, position, part, slice, input, before, .. } = self;
        let execution = Execution { sequence_parallel: self.sequence_parallel, ..Execution::default() };
        let batches = |step, own| batch(&job, self.groups, self.per_group, step, own);
        let layout_of = |plan: &ParallelPlan, chunks| -> PipelineLayout {
            balanced_layout(&job.geometry, plan, chunks).unwrap()
        };
        let alone = layout_of(&ParallelPlan::SERIAL, 1);
        let serial = run_gang(&ParallelPlan::SERIAL, vec![Links::new()], |rank, _| {
            let links = RankLinks::new(&ParallelPlan::SERIAL, rank, Links::new()).unwrap();
            let mut run = RankRun::begin(&job, &ParallelPlan::SERIAL, &alone, rank, links)?;
            (0..STEPS).try_for_each(|step| run.step(step, batches(step, 0..self.groups)))?;
            Ok(run)
        });
        let plan: ParallelPlan = plan.parse().unwrap();
        let layout = layout_of(&plan, chunks);
        let mut links: Vec<_> = connect(&plan).into_iter().map(Some).collect();
        let placed = plan.ranks().map(|rank| links[position(rank).index()].take().unwrap()).collect();
        let (harm, harmed) = (Arc::<Harm>::from(harm), Arc::new(AtomicUsize::new(0)));
        let ranks = run_gang(&plan, placed, |rank, links| {
            let now = Arc::new(AtomicU64::new(0));
            let wrap = |(peer, inner)| {
                let (now, harm, harmed) = (now.clone(), harm.clone(), harmed.clone());
                let link = FaultyLink { inner, rank, peer, now, seen: (0, 0), own: Vec::new(), harm, harmed };
                (peer, Box::new(link) as Box<dyn TensorLink>)
            };
            let links = RankLinks::new(&plan, position(rank), links.into_iter().map(wrap).collect()).unwrap();
            let mut own = RankSlice::new(&job.geometry, &plan, &layout, part(rank));
            slice(rank, &mut own);
            let trainer =
                Trainer::of_slice(&job, &plan, &layout, part(rank), own, links, Device::cpu().stream());
            let mut run = RankRun::of_trainer(&job, part(rank), trainer);
            run.trainer.set_execution(execution);
            if shared {
                run.share_optimizer();
            }
            let mut kept = None;
            for step in 0..STEPS {
                now.store(step, Ordering::Relaxed);
                before(&mut Run { trainer: &mut run.trainer, kept: &mut kept }, rank, step);
                if step == 0 {
                    run.trace.initial = run.trainer.parameters().into_owned();
                }
                let right = batches(step, plan.groups(rank, self.groups));
                run.step(step, input(plan.coordinates(rank), step, right, &|own| batches(step, own)))?;
            }
            Ok(run)
        });
        let (serial, ranks) = (serial.unwrap(), ranks.unwrap());
        let traces: Vec<_> = ranks.iter().map(|rank| &rank.trace).collect();
        let found = first_difference(&job.geometry, (&plan, &layout), &serial[0].trace, &traces);
        (found, harmed.load(Ordering::Relaxed))
    }
}

/// A link whose messages may come to harm.
struct FaultyLink {
    inner: Box<dyn TensorLink>,
    rank: Rank,
    peer: Rank,
    /// The rank's step.
    now: Arc<AtomicU64>,
    /// A step, and how many of its long messages were received.
    seen: (u64, usize),
    own: Vec<f32>,
    harm: Arc<Harm>,
    harmed: Arc<AtomicUsize>,
}

impl TensorLink for FaultyLink {
    fn send(&mut self, message: &[u8]) -> Result<(), LinkError> {
        self.own = numbers(message);
        self.inner.send(message)
    }

    fn recv(&mut self, message: &mut [u8]) -> Result<(), LinkError> {
        self.inner.recv(message)?;
        let step = self.now.load(Ordering::Relaxed);
        if self.seen.0 != step {
            self.seen = (step, 0);
        }
        let mut theirs = numbers(message);
        let is_long = theirs.len() >= LONG;
        self.seen.1 += usize::from(is_long);
        let long = if is_long { self.seen.1 } else { 0 };
        let (rank, peer, own) = (self.rank, self.peer, self.own.as_slice());
        if (self.harm)(&mut Message { rank, peer, step, long, own, theirs: &mut theirs }) {
            self.harmed.fetch_add(1, Ordering::Relaxed);
            for (bytes, number) in message.chunks_exact_mut(4).zip(&theirs) {
                bytes.copy_from_slice(&number.to_le_bytes());
            }
        }
        Ok(())
    }

    fn bytes_sent(&self) -> u64 {
        self.inner.bytes_sent()
    }

    fn waited(&self) -> Duration {
        self.inner.waited()
    }

    fn kind(&self) -> &'static str {
        self.inner.kind()
    }
}

fn numbers(message: &[u8]) -> Vec<f32> {
    message.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}
