//! What a rank tells of its steps while it does them: [`Progress`].
//!
//! Everything is counted on the rank's own thread. What is long to say, the account and the history, is written out
//! a few times a second at most.

use std::time::{Duration, Instant};

use sixfold_cluster::task::{ACCOUNT_FIGURE, HISTORY_FIGURE, Metric, Metrics};
use sixfold_parallel::{StepProfile, StepReport, Trainer};
use sixfold_telemetry::usage;
use sixfold_topology::Rank;

use crate::account::{RankAccount, RankTimes};
use crate::history::{History, HistoryPoint, NamedStraggler};
use crate::options::TrainOptions;
use crate::straggler::{Slowest, Straggler, Stragglers};

/// Time between two accounts.
const ACCOUNT_INTERVAL: Duration = Duration::from_millis(250);
/// Time between two histories.
const HISTORY_INTERVAL: Duration = Duration::from_secs(1);
/// The time of a step that is expected is a mean over about so many.
const EXPECTED_OVER_STEPS: f64 = 16.0;

/// Counts what a rank's steps take.
pub(crate) struct Progress {
    rank: Rank,
    /// Floating-point operations that the model needs for a step, of all ranks together.
    model_flop: f64,
    tokens: f64,
    peak_gflops: f64,
    pub(crate) history: History,
    stragglers: Stragglers,
    /// Steps of this attempt.
    steps: u64,
    /// When the last step was done, or the attempt began.
    done: Instant,
    /// From the attempt's beginning to the end of its last step.
    all: Duration,
    profile: StepProfile,
    data_wait: Duration,
    save: Duration,
    /// What saving took since the last step was done.
    save_since: Duration,
    starved_steps: u64,
    /// The sum of this rank's bubbles.
    bubble: f64,
    /// Seconds that a step is expected to take.
    expected_seconds: Option<f64>,
    resident_bytes: u64,
    account_told: Option<Instant>,
    history_told: Option<Instant>,
}

/// A step that was done.
pub(crate) struct DoneStep<'a> {
    pub(crate) trainer: &'a Trainer,
    pub(crate) report: &'a StepReport,
    pub(crate) data_wait: Duration,
    pub(crate) starved: bool,
    /// States that were taken so far.
    pub(crate) commits: u64,
}

impl Progress {
    /// Before the first step of an attempt that goes on with `history`.
    pub(crate) fn new(
        rank: Rank,
        options: &TrainOptions,
        model_flop: f64,
        peak_gflops: f64,
        history: History,
    ) -> Self {
        Self {
            rank,
            model_flop,
            tokens: options.batch_tokens() as f64,
            peak_gflops,
            history,
            stragglers: Stragglers::default(),
            steps: 0,
            done: Instant::now(),
            all: Duration::ZERO,
            profile: StepProfile::default(),
            data_wait: Duration::ZERO,
            save: Duration::ZERO,
            save_since: Duration::ZERO,
            starved_steps: 0,
            bubble: 0.0,
            expected_seconds: None,
            resident_bytes: 0,
            account_told: None,
            history_told: None,
        }
    }

    /// Counts a step. Returns what is to be told of it, if anything, and a straggler that is to be named.
    ///
    /// The first rank tells of every step, others of some.
    pub(crate) fn after_step(
        &mut self,
        step: &DoneStep<'_>,
        last: bool,
    ) -> (Option<Metrics>, Option<Straggler>) {
        let took = self.done.elapsed();
        (self.done, self.all) = (Instant::now(), self.all + took);
        let times = &step.trainer.health().times;
        let own = times.get(self.rank.index()).copied().unwrap_or_default();
        self.starved_steps += u64::from(step.starved && self.steps > 0);
        self.steps += 1;
        self.profile.add(step.trainer.profile());
        self.data_wait += step.data_wait;
        self.save += std::mem::take(&mut self.save_since);
        self.bubble += f64::from(own.bubble);
        let seconds = took.as_secs_f64().max(f64::EPSILON);
        let weight = (1.0 / EXPECTED_OVER_STEPS).max(1.0 / self.steps as f64);
        let expected = self.expected_seconds.map_or(seconds, |before| before + (seconds - before) * weight);
        self.expected_seconds = Some(expected);
        let account_due = last || is_due(&mut self.account_told, ACCOUNT_INTERVAL);
        if account_due {
            self.resident_bytes = usage::resident_bytes("self").unwrap_or(0);
        }
        let peak: f64 = times.iter().map(|time| f64::from(time.peak_gflops) * 1e9).sum();
        let mfu = if peak > 0.0 { self.model_flop / seconds / peak } else { 0.0 };
        let bubble = times.iter().map(|time| f64::from(time.bubble)).sum::<f64>() / times.len().max(1) as f64;
        self.history.push(HistoryPoint {
            loss: step.report.loss,
            gradient_norm: step.report.gradient_norm,
            learning_rate: step.report.learning_rate,
            seconds: seconds as f32,
            mfu: mfu as f32,
            data_wait_seconds: step.data_wait.as_secs_f32(),
            bubble: bubble as f32,
            resident_bytes: self.resident_bytes as f32,
        });
        let (slowest, straggler) = self.stragglers.after_step(times);
        if let Some(Straggler { rank, to_median, .. }) = straggler {
            self.history.name_straggler(NamedStraggler { step: self.history.steps, rank: rank.0, to_median });
        }
        let mut metrics = Metrics::new();
        if self.rank == Rank(0) {
            metrics = self.of_job(step, seconds, slowest);
            if peak > 0.0 {
                metrics.insert("mfu".to_owned(), Metric::Number(mfu));
            }
            if last || is_due(&mut self.history_told, HISTORY_INTERVAL) {
                metrics.insert(HISTORY_FIGURE.to_owned(), Metric::Text(self.history_json()));
            }
        }
        if account_due {
            let account = json(&self.account(step.trainer, step.commits));
            metrics.insert(ACCOUNT_FIGURE.to_owned(), Metric::Text(account));
        }
        ((!metrics.is_empty()).then_some(metrics), straggler)
    }

    /// What the first rank tells of a step that took `seconds`.
    fn of_job(&self, step: &DoneStep<'_>, seconds: f64, slowest: Option<Slowest>) -> Metrics {
        let mut metrics: Metrics = [
            ("loss".to_owned(), Metric::Number(step.report.loss.into())),
            ("learning_rate".to_owned(), Metric::Number(step.report.learning_rate.into())),
            ("gradient_norm".to_owned(), Metric::Number(step.report.gradient_norm.into())),
            ("tokens_per_second".to_owned(), Metric::Number(self.tokens / seconds)),
            ("data_wait_ms".to_owned(), Metric::Number(step.data_wait.as_secs_f64() * 1e3)),
            ("starved_steps".to_owned(), Metric::Count(self.starved_steps)),
        ]
        .into();
        if let Some(slowest) = slowest {
            metrics.extend([
                ("slowest_rank".to_owned(), Metric::Count(slowest.rank.0.into())),
                ("slowest_rank_compute_ms".to_owned(), Metric::Number(slowest.compute_ms.into())),
                ("slowest_rank_to_median".to_owned(), Metric::Number(slowest.to_median().into())),
            ]);
        }
        metrics
    }

    /// Counts the time that copying the state has taken.
    pub(crate) fn saved(&mut self, took: Duration) {
        self.save_since += took;
    }

    /// What was done since the last step is no part of the next one.
    pub(crate) fn paused(&mut self, took: Duration) {
        self.done += took;
    }

    /// How long a step is expected to take, in seconds.
    pub(crate) fn expected_step_seconds(&self) -> f64 {
        self.expected_seconds.unwrap_or(0.0)
    }

    /// The curves so far, as JSON.
    pub(crate) fn history_json(&self) -> String {
        json(&self.history)
    }

    /// What the rank held and did so far.
    pub(crate) fn account(&self, trainer: &Trainer, commits: u64) -> RankAccount {
        let (work, parameters, memory) = (trainer.work(), trainer.parameter_share(), trainer.memory_use());
        let (seconds, steps) = (self.all.as_secs_f64(), self.steps.max(1) as f64);
        let possible = self.peak_gflops * 1e9 * seconds;
        RankAccount {
            rank: self.rank.0,
            parameter_bytes: parameters.total_bytes(),
            moment_bytes: trainer.moment_bytes(),
            flops: work.flops(),
            bytes_sent: trainer.bytes_sent(),
            steps: self.steps,
            commits,
            bubble: self.bubble / steps,
            scheduled_bubble: trainer.own_scheduled_bubble(),
            step_seconds: seconds / steps,
            time: RankTimes::new(self.all, &self.profile, self.data_wait, self.save),
            starved_steps: self.starved_steps,
            peak_gflops: self.peak_gflops,
            hfu: if possible > 0.0 { work.flops() as f64 / possible } else { 0.0 },
            resident_bytes: self.resident_bytes,
            resident_bytes_max: usage::peak_resident_bytes("self").unwrap_or(0),
            device_bytes: memory.used_bytes as u64,
            device_bytes_max: memory.used_bytes_max as u64,
            parameters,
            work,
        }
    }
}

/// Whether `interval` has passed since `told`, which is now if so.
fn is_due(told: &mut Option<Instant>, interval: Duration) -> bool {
    let due = told.is_none_or(|at| at.elapsed() >= interval);
    if due {
        *told = Some(Instant::now());
    }
    due
}

pub(crate) fn json(value: &impl serde::Serialize) -> String {
    // Numbers, texts and lists of them have a form in JSON.
    serde_json::to_string(value).unwrap_or_default()
}
