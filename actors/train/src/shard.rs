//! The life of a rank, from its task to its result: [`run`], on a thread that may block.

use std::fmt;
use std::time::{Duration, Instant};

use sixfold_artifact::Manifest;
use sixfold_artifact::tokens::TokenShards;
use sixfold_cluster::task::{
    ACCOUNT_FIGURE, CommitSchedule, Gang, HISTORY_FIGURE, HeldStates, HostError, Metric, Metrics, SavedState,
    TaskOutput,
};
use sixfold_model::Geometry;
use sixfold_parallel::{
    NotFinite, RankLinks, RankSlice, StateParts, StepReport, Trainer, TrainingJob, UnitParts,
};
use sixfold_tensor::Device;
use sixfold_topology::{ParallelPlan, PipelineLayout, Rank};
use sixfold_wire::id::{ArtifactId, ContentHash};

use crate::agreement::{agree, collect};
use crate::base::Base;
use crate::batches::{Batches, HeldOut};
use crate::checkpoint::{Loaded, SavedStep, SavedSteps, Saver, Snapshot, Told, Writer, best_of};
use crate::commit::Commits;
use crate::error::TrainError;
use crate::evaluations::{Evaluation, Evaluations};
use crate::history::History;
use crate::host::BlockingHost;
use crate::links::{LinkFactory, LinkPurpose, Links};
use crate::model_artifact::{self, Trained};
use crate::options::{OptionsError, TrainOptions};
use crate::peak::Peak;
use crate::prefetch::{Fetched, Prefetch};
use crate::progress::{DoneStep, Progress, json};
use crate::sequences::Packed;
use crate::straggler::Straggler;

/// The corpus to train on, among the task's inputs.
const TOKENS_KIND: &str = "tokens";
/// The split of it that is trained on.
const SPLIT: &str = "train";
/// The split that is only evaluated.
const HELD_OUT_SPLIT: &str = "held-out";

/// Does the task: joins the gang, goes on from where an earlier attempt was, trains, and saves.
///
/// # Errors
/// [`TrainError`] says what failed; the state of the last checkpoint remains.
pub(crate) fn run(host: &BlockingHost, links: &dyn LinkFactory) -> Result<TaskOutput, TrainError> {
    let options = host.context().options::<TrainOptions>()?.under_smaller_plan();
    options.validate()?;
    let plan = options.plan();
    let spec = &host.context().spec;
    if plan.world_size() != spec.count as usize {
        let (ranks, members) = (plan.world_size(), spec.count as usize);
        return Err(TrainError::GangSize { plan: plan.to_string(), ranks, members });
    }
    sixfold_tensor::keep_freed_memory();
    sixfold_tensor::set_threads(options.threads).map_err(|error| TrainError::Thread(error.to_string()))?;
    let peak = Peak::start(options.peak_gflops, Device::cpu(), options.dtype);
    let Corpus { id: tokens, shards, held_out, base } = Corpus::open(host, options.evaluate_every_steps > 0)?;
    let vocabulary = shards.vocabulary() as usize;
    let geometry = match &base {
        Some(base) => base.geometry(&options, vocabulary)?,
        None if options.base.is_some() => return Err(TrainError::NoBase),
        None => options.geometry(vocabulary, end_of_text(&shards)?)?,
    };
    let geometry = options.with_lora(geometry)?;
    let job = TrainingJob {
        geometry,
        optimizer: options.optimizer(),
        seed: options.seed,
        dropout: options.dropout,
        adapter_dropout: options.lora_dropout,
        base_compression: options.base_format.compression(),
    };
    let rank = Rank(spec.id.index);
    let gathering = host.context().host.rendezvous(links.address());
    let gang = host.wait_unless_stopped(gathering).ok_or(TrainError::StoppedWaiting)??;
    let layout = options.layout(&job.geometry).map_err(OptionsError::from)?;
    let slice = RankSlice::new(&job.geometry, &plan, &layout, rank);
    let member = Member { host, links, gang, plan, layout, rank };
    let inputs = Inputs { tokens, base: base.as_ref().map(|base| base.id) };
    let fingerprint = fingerprint(&options, &job.geometry, inputs)?;
    let groups = plan.groups(rank, options.data_groups());
    let held_out = held_out.map(|shards| HeldOut::new(shards, &options, groups.clone())).transpose()?;
    let batches = Batches::new(shards, &options, groups)?;
    let parts = StateParts::new(&job.geometry, &plan, &slice, rank, options.shares_optimizer());
    let owned = Owned { slice, parts };
    let (mut trainer, loaded) = member.begin(&job, &options, &owned, &fingerprint, base)?;
    trainer.set_execution(options.execution());
    let Begun { losses, history, evaluations, earlier, best } = loaded.map(Begun::from).unwrap_or_default();
    let epoch = Epoch { samples: batches.samples(), packed: batches.packed() };
    let prefetch = Prefetch::start(batches, losses.len() as u64..options.steps)?;
    let writer = Writer {
        host: host.clone(),
        fingerprint,
        slice: owned.slice,
        replica: plan.coordinates(rank).data,
        batch_sequences: options.batch_sequences as u64,
        earlier,
    };
    let schedule = CommitSchedule::new(options.commit_every_steps, losses.len() as u64);
    let commits = Commits::start(writer.clone(), schedule, trainer.flag())?;
    let keeper = Keeper { writer: writer.clone(), best };
    let evaluations = Evaluations::new(&options, evaluations);
    let saver = checkpoints(writer)?;
    let (saved, peak_gflops) = (owned.parts.saved, peak.gflops());
    trainer.set_peak_gflops(peak_gflops as f32);
    let model_flop = job.geometry.training_flop_per_token(options.sequence()) * options.batch_tokens() as f64;
    let progress = Progress::new(rank, &options, model_flop, peak_gflops, history);
    let mut training = Training {
        member,
        options,
        prefetch,
        epoch,
        trainer,
        losses,
        held_out,
        evaluations,
        keeper,
        saved,
        saver,
        commits,
        progress,
    };
    training.announce();
    training.evaluate_if_due()?;
    training.train()?;
    training.finish(&job.geometry, inputs)
}

/// What an attempt begins with.
#[derive(Default)]
struct Begun {
    losses: Vec<f32>,
    history: History,
    evaluations: Vec<Evaluation>,
    earlier: Option<SavedStep>,
    best: Option<SavedStep>,
}

impl From<Loaded> for Begun {
    fn from(loaded: Loaded) -> Self {
        let Loaded { losses, history, evaluations, durable: earlier, best, .. } = loaded;
        Self { losses, history, evaluations, earlier, best }
    }
}

/// A thread that makes snapshots durable, and says of each how that ended.
type Checkpoints = Saver<Snapshot, (u64, Result<SavedState, TrainError>)>;

fn checkpoints(mut writer: Writer) -> Result<Checkpoints, TrainError> {
    Saver::start("checkpoint", move |snapshot: Snapshot| (snapshot.step, writer.save(&snapshot)))
}

/// What the numbers of a job follow from, in one hash: a checkpoint of another is refused.
fn fingerprint(options: &TrainOptions, geometry: &Geometry, inputs: Inputs) -> Result<String, TrainError> {
    let parts = (options.without_plan(), &geometry.config, inputs.tokens, inputs.base);
    let text = serde_json::to_vec(&parts).map_err(|error| TrainError::Thread(error.to_string()))?;
    Ok(ContentHash::of(&text).to_string())
}

/// What a training is made of.
#[derive(Clone, Copy)]
struct Inputs {
    tokens: ArtifactId,
    base: Option<ArtifactId>,
}

/// The tokens to train on, and the model to start from.
struct Corpus {
    id: ArtifactId,
    shards: TokenShards,
    /// The split to evaluate on.
    held_out: Option<TokenShards>,
    base: Option<Base>,
}

impl Corpus {
    fn open(host: &BlockingHost, evaluates: bool) -> Result<Self, TrainError> {
        let inputs = host.block_on(host.context().fetch_inputs())?;
        let is_tokens = |(_, manifest): &&(ArtifactId, Manifest)| manifest.kind == TOKENS_KIND;
        let (id, tokens) = inputs.iter().find(is_tokens).ok_or(TrainError::NoTokens)?;
        let shards = TokenShards::from_artifact(host.store(), *id, SPLIT)?;
        let held_out = || TokenShards::from_artifact(host.store(), *id, HELD_OUT_SPLIT);
        let held_out = evaluates.then(held_out).transpose()?;
        Ok(Self { id: *id, shards, held_out, base: Base::find(host, &inputs, tokens)? })
    }
}

/// The token that every document ends with.
fn end_of_text(shards: &TokenShards) -> Result<Option<u32>, TrainError> {
    match shards.document(0) {
        Some(range) if !range.is_empty() => Ok(shards.get(range.end - 1..range.end)?.pop()),
        _ => Ok(None),
    }
}

/// What a rank has of the model.
struct Owned {
    slice: RankSlice,
    parts: StateParts,
}

/// A rank among its gang.
struct Member<'a> {
    host: &'a BlockingHost,
    links: &'a dyn LinkFactory,
    gang: Gang,
    plan: ParallelPlan,
    layout: PipelineLayout,
    rank: Rank,
}

impl Member<'_> {
    /// A rank and where it runs.
    fn name(&self, rank: Rank) -> String {
        match self.gang.members.get(rank.index()) {
            Some(member) => format!("{rank} on node {}", member.node),
            None => rank.to_string(),
        }
    }

    fn connect(&self, purpose: LinkPurpose) -> Result<Links, TrainError> {
        let peers = RankLinks::peers(&self.plan, self.rank);
        let connecting = self.links.connect(&self.gang, self.rank, &peers, purpose);
        let links = self.host.wait_unless_stopped(connecting).ok_or(TrainError::StoppedWaiting)?;
        links.map_err(TrainError::of_link(self.rank))
    }

    /// Links the rank, and brings it to the newest step that every rank can begin with: where there is none, to `base`,
    /// or to random weights.
    fn begin(
        &self,
        job: &TrainingJob,
        options: &TrainOptions,
        Owned { slice, parts }: &Owned,
        fingerprint: &str,
        base: Option<Base>,
    ) -> Result<(Trainer, Option<Loaded>), TrainError> {
        let mut links = self.connect(LinkPurpose::Tensors)?;
        let held = if options.commit_every_steps > 0 { self.held() } else { HeldStates::default() };
        let mut saved =
            SavedSteps::new(self.host, &job.geometry, slice, parts, (fingerprint, options), &held.states);
        let mut newest = u64::MAX;
        let loaded = loop {
            let loaded = saved.load(newest);
            let step = loaded.as_ref().map_or(0, |loaded| loaded.step);
            let (least, greatest) = agree(&self.plan, self.rank, &mut links, step)?;
            if least == greatest {
                break loaded;
            }
            newest = least;
        };
        let step = loaded.as_ref().map_or(0, |loaded| loaded.step);
        if self.rank == Rank(0) && (step > 0 || held.furthest > 0) {
            self.host.went_on(step, held.furthest.saturating_sub(step));
        }
        let links = RankLinks::new(&self.plan, self.rank, links)?;
        let stream = Device::cpu().stream();
        let mut trainer = Trainer::with_layout(job, &self.plan, &self.layout, self.rank, links, stream)?;
        if options.shares_optimizer() {
            trainer.share_optimizer();
        }
        if let (Some(base), Some(_)) = (&base, &job.geometry.lora) {
            trainer.set_base(base.frozen(job, slice)?);
        }
        match (&loaded, base) {
            (Some(loaded), _) => loaded.state.restore(&mut trainer)?,
            (None, Some(base)) if job.geometry.lora.is_none() => {
                trainer.set_parameters(&base.parameters(&job.geometry, slice)?)
            }
            (None, _) => {}
        }
        Ok((trainer, loaded))
    }

    /// What nodes hold in memory. Without an answer there are the checkpoints.
    fn held(&self) -> HeldStates {
        self.host.held().unwrap_or_else(|error| {
            self.host.log(format!("no node says which states it holds: {error}"));
            HeldStates::default()
        })
    }
}

/// Where the best weights are kept.
struct Keeper {
    writer: Writer,
    best: Option<SavedStep>,
}

/// What an epoch consists of.
struct Epoch {
    /// Sequences.
    samples: u64,
    packed: Packed,
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} sequences in an epoch", self.samples)?;
        match self.packed {
            Packed { documents: 0, .. } => Ok(()),
            Packed { documents, cut, left_out } => write!(
                f,
                " of {documents} dialogues, {cut} of them cut at sequence_length; {left_out} without an answer are left \
                 out"
            ),
        }
    }
}

/// A rank at work.
struct Training<'a> {
    member: Member<'a>,
    options: TrainOptions,
    prefetch: Prefetch,
    epoch: Epoch,
    trainer: Trainer,
    /// The loss of every step done so far, by earlier attempts too.
    losses: Vec<f32>,
    held_out: Option<HeldOut>,
    evaluations: Evaluations,
    keeper: Keeper,
    /// The part of the state that this rank saves.
    saved: UnitParts,
    saver: Checkpoints,
    commits: Commits,
    progress: Progress,
}

impl Training<'_> {
    fn step(&self) -> u64 {
        self.losses.len() as u64
    }

    fn is_first(&self) -> bool {
        self.member.rank == Rank(0)
    }

    fn announce(&self) {
        if !self.is_first() {
            return;
        }
        let (step, steps) = (self.step(), self.options.steps);
        let plan = match &self.member {
            Member { plan, layout, .. } if layout.stages() > 1 => format!("{plan} ({layout})"),
            Member { plan, .. } => plan.to_string(),
        };
        self.member.host.log(match step {
            0 => format!("training {steps} steps on {plan}, {}", self.epoch),
            step => format!("going on from step {step} of {steps} on {plan}"),
        });
    }

    fn train(&mut self) -> Result<(), TrainError> {
        let rank = self.member.rank;
        while self.step() < self.options.steps && !self.evaluations.are_over() {
            let step = self.step();
            if self.member.host.context().cancel.is_cancelled() {
                return Err(TrainError::Stopped { step });
            }
            let Fetched { batch, waited, starved } = self.prefetch.next()?;
            let done = self.trainer.step(step, batch);
            let report = done.map_err(|source| TrainError::Step { rank, step, source })?;
            let StepReport { loss, gradient_norm, .. } = report;
            if !(loss.is_finite() && gradient_norm.is_finite()) {
                let origin = self.not_finite_origin();
                return Err(TrainError::NotFinite { origin, step, loss, gradient_norm });
            }
            self.losses.push(loss);
            self.member.host.reached(self.step());
            self.evaluate_if_due()?;
            self.report(&report, waited, starved);
            let saving = Instant::now();
            self.save_if_due(report.flags)?;
            self.progress.saved(saving.elapsed());
        }
        if self.is_first() && self.evaluations.are_over() {
            let Evaluation { step, loss } = self.best();
            self.member.host.log(format!(
                "ending after step {}: no evaluation since step {step} had a lower held-out loss than its {loss:.4}",
                self.step()
            ));
        }
        Ok(())
    }

    /// The evaluation whose weights become the model.
    fn best(&self) -> Evaluation {
        self.evaluations.best().unwrap_or(Evaluation { step: self.step(), loss: f32::NAN })
    }

    /// Computes the held-out loss with the ranks of the plan, and keeps the weights if they are the best and are to be kept.
    fn evaluate_if_due(&mut self) -> Result<(), TrainError> {
        let (rank, step) = (self.member.rank, self.step());
        let Some(held_out) = self.held_out.as_ref().filter(|_| self.evaluations.is_due(step)) else {
            return Ok(());
        };
        let since = Instant::now();
        let mut sum = 0.0;
        for batch in held_out.batches() {
            if self.member.host.context().cancel.is_cancelled() {
                return Err(TrainError::Stopped { step });
            }
            // All ranks pass over the same ones.
            let batch = batch?;
            if batch.global_targets > 0 {
                let loss = self.trainer.evaluate(batch);
                sum += f64::from(loss.map_err(|source| TrainError::Step { rank, step, source })?);
            }
        }
        let evaluation = Evaluation { step, loss: (sum / held_out.counted() as f64) as f32 };
        let is_best = self.evaluations.add(evaluation);
        self.progress.history.set_evaluations(self.evaluations.done());
        if is_best && self.evaluations.keeps_best() && step < self.options.steps {
            // Before the state that counts on it is saved anywhere.
            self.keeper.best = Some(self.keeper.writer.keep(&self.snapshot()?)?);
        }
        if self.is_first() {
            self.member.host.log(format!("held-out loss after step {step}: {:.4}", evaluation.loss));
        }
        self.progress.paused(since.elapsed());
        Ok(())
    }

    /// Which rank computed the first number that is not finite, and where.
    fn not_finite_origin(&self) -> String {
        match self.trainer.health().not_finite {
            Some(NotFinite { rank, origin }) => {
                format!("{} had the first number that is not finite, in {origin}", self.member.name(rank))
            }
            None => "a sum overflowed whose parts are all finite".to_owned(),
        }
    }

    /// Tells of a step that was done.
    fn report(&mut self, report: &StepReport, data_wait: Duration, starved: bool) {
        let (last, commits) = (self.step() == self.options.steps, self.commits.taken());
        let done = DoneStep { trainer: &self.trainer, report, data_wait, starved, commits };
        let (figures, straggler) = self.progress.after_step(&done, last);
        if let Some(mut figures) = figures {
            if self.is_first() {
                self.add_steps(&mut figures);
            }
            self.member.host.progress(figures);
        }
        if let Some(Straggler { rank, to_median, steps }) = straggler.filter(|_| self.is_first()) {
            let name = self.member.name(rank);
            let step = format!("{to_median:.1}x the median step, in {steps} steps one after another");
            self.member.host.log(format!("{name} is a straggler: {step}"));
        }
    }

    /// How far the job is, and what its pipeline waits.
    fn add_steps(&self, figures: &mut Metrics) {
        let left = self.options.steps.saturating_sub(self.step()) as f64;
        figures.extend([
            ("step".to_owned(), Metric::Count(self.step())),
            ("steps".to_owned(), Metric::Count(self.options.steps)),
            ("committed_step".to_owned(), Metric::Count(self.commits.complete())),
            ("eta_seconds".to_owned(), Metric::Number(left * self.progress.expected_step_seconds())),
        ]);
        let evaluation = self.evaluations.done().last();
        let loss = |last: &Evaluation| ("held_out_loss".to_owned(), Metric::Number(last.loss.into()));
        figures.extend(evaluation.map(loss));
        if self.member.layout.stages() > 1 {
            let mean = |of_all: Vec<f64>| of_all.iter().sum::<f64>() / of_all.len().max(1) as f64;
            let times = &self.trainer.health().times;
            let measured = mean(times.iter().map(|time| f64::from(time.bubble)).collect());
            figures.extend([
                ("bubble".to_owned(), Metric::Number(measured)),
                ("scheduled_bubble".to_owned(), Metric::Number(mean(self.trainer.scheduled_bubble()))),
            ]);
        }
    }

    /// The rank's part of the state; the curves are the first rank's to save.
    fn snapshot(&self) -> Result<Snapshot, TrainError> {
        let told = Told {
            losses: &self.losses,
            history: self.is_first().then_some(&self.progress.history),
            evaluations: self.held_out.is_some().then_some(&self.evaluations),
            best: self.keeper.best.as_ref(),
        };
        Snapshot::take(&self.trainer, &self.saved, &told)
    }

    /// The last step is saved by [`Self::finish`].
    fn save_if_due(&mut self, flags: u32) -> Result<(), TrainError> {
        while let Some((step, result)) = self.saver.poll() {
            tolerate(self.member.host, step, result)?;
        }
        let step = self.step();
        if step == self.options.steps {
            return Ok(());
        }
        let commit = self.commits.after_step(step, flags)?;
        let checkpoint = step.is_multiple_of(self.options.checkpoint_every_steps);
        if commit.is_none() && !checkpoint {
            return Ok(());
        }
        let snapshot = self.snapshot()?;
        if let Some(complete) = commit {
            self.commits.offer(snapshot.clone(), complete)?;
        }
        if checkpoint {
            self.saver.submit(snapshot)?;
        }
        Ok(())
    }

    /// Saves the final state, and gathers the names of all ranks' final states on the first rank,
    /// which writes the model.
    fn finish(
        mut self,
        geometry: &Geometry,
        Inputs { tokens, base }: Inputs,
    ) -> Result<TaskOutput, TrainError> {
        let Member { host, plan, rank, .. } = self.member;
        let snapshot = self.snapshot()?;
        self.saver.submit(snapshot)?;
        let last = self.saver.wait();
        let Some((_, saved)) = last else {
            return Err(TrainError::Thread("the checkpoint thread ended".to_owned()));
        };
        let state = saved?.artifact;
        // The links of the steps stay until all ranks have done their last step.
        let mut links = self.member.connect(LinkPurpose::Records)?;
        agree(&plan, rank, &mut links, self.step())?;
        let states = collect(&plan, rank, links, state.0.as_bytes())?;
        let mut output = TaskOutput::default();
        if let Some(states) = states.filter(|_| self.is_first()) {
            let to_id = |bytes: [u8; 32]| ArtifactId(ContentHash::from_bytes(bytes));
            let states: Vec<ArtifactId> = states.into_iter().map(to_id).collect();
            let kept_step = if self.evaluations.keeps_best() { self.best().step } else { self.step() };
            let states = match kept_step == self.step() {
                true => states,
                false => best_of(host, &states, kept_step)
                    .map_err(|error| TrainError::FinalState(error.to_string()))?,
            };
            let trained = Trained {
                geometry,
                options: &self.options,
                tokens,
                base,
                losses: &self.losses,
                evaluations: &self.evaluations,
                kept_step,
            };
            output = model_artifact::publish(host, &trained, &states)?;
        }
        if self.is_first() {
            output.metrics.insert(HISTORY_FIGURE.to_owned(), Metric::Text(self.progress.history_json()));
        }
        let account = self.progress.account(&self.trainer, self.commits.taken());
        output.metrics.insert(ACCOUNT_FIGURE.to_owned(), Metric::Text(json(&account)));
        Ok(output)
    }
}

/// A checkpoint that failed is told and survived: the one before it remains. A task that was
/// placed elsewhere must not go on.
fn tolerate<T>(host: &BlockingHost, step: u64, result: Result<T, TrainError>) -> Result<(), TrainError> {
    match result {
        Ok(_) => Ok(()),
        Err(error @ TrainError::Host(HostError::Superseded)) => Err(error),
        Err(error) => {
            host.log(format!("the checkpoint of step {step} failed, the one before remains: {error}"));
            Ok(())
        }
    }
}
