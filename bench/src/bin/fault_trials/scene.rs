//! A cluster that trains while things are done to it: [`Scene`].

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sixfold_bench::dice::Dice;
use sixfold_tests::{Process, Running, kill, stage};

use crate::disk::{self, SmallDisks};
use crate::fault::Fault;
use crate::shape::Shape;

/// How long X-F3's nodes stand still.
const SHORT_FREEZE: Duration = Duration::from_millis(500);
const LONG_FREEZE: Duration = Duration::from_secs(5);
/// A second fault comes this long after the first at most, while the job recovers.
const RECOVERY_MS: u64 = 1500;
/// Pause between two looks at a cluster.
const PAUSE: Duration = Duration::from_millis(20);
/// How long workers are looked for, while they are placed anew.
const WORKERS_TIMEOUT: Duration = Duration::from_secs(10);
/// Steps with a full disk: some checkpoints.
const FULL_STEPS: u64 = 25;

/// Something that was done to the cluster.
pub(crate) struct Injection {
    pub(crate) what: String,
    /// In milliseconds since 1970, by the clock of the coordinator's events.
    pub(crate) at_ms: u64,
}

/// A running cluster, and what was done to it.
pub(crate) struct Scene<'a> {
    /// Unmounted before the cluster's folder is removed.
    pub(crate) _disks: Option<SmallDisks>,
    pub(crate) run: Running,
    pub(crate) dice: Dice,
    pub(crate) shape: Shape,
    pub(crate) injections: &'a mut Vec<Injection>,
    /// The training's step when the first was decided.
    pub(crate) step: Option<u64>,
    /// What else is worth a record.
    pub(crate) facts: Vec<(&'static str, Value)>,
}

impl Scene<'_> {
    /// Lets the training come to a random step, and does to it what the fault says.
    ///
    /// # Errors
    /// If something could not be done. A training that ends before is no error.
    pub(crate) fn play(&mut self, fault: Fault) -> Result<()> {
        let moment = match fault {
            // There must be a checkpoint to damage, and one before it.
            Fault::DamagedCheckpoint => 25 + self.dice.below(40),
            _ => 1 + self.dice.below(fault.steps() / 3),
        };
        self.step = self.reach(moment);
        std::thread::sleep(Duration::from_millis(self.dice.below(60)));
        match fault {
            Fault::Worker => self.kill_worker(),
            Fault::Node => self.destroy_node(),
            Fault::Coordinator => self.kill_coordinator(),
            Fault::Replan => (0..1 + self.dice.below(2)).try_for_each(|_| self.replan()),
            Fault::ShortFreeze => self.freeze(SHORT_FREEZE),
            Fault::LongFreeze => self.freeze(LONG_FREEZE),
            Fault::TwoAtOnce => self.two_at_once(),
            Fault::InRecovery => self.twice(),
            Fault::Elastic => self.lose_and_join(),
            Fault::FullDisk => self.fill_disk(),
            Fault::DamagedCheckpoint => self.damage_checkpoint(),
        }
    }

    fn inject(&mut self, what: String) {
        self.injections.push(Injection { what, at_ms: now_ms() });
    }

    /// Waits until the job is as wanted; nothing if it ends before.
    fn until<T>(&mut self, wanted: impl Fn(&Value) -> Option<T>) -> Option<T> {
        while !self.run.has_finished() {
            if let Some(found) = self.run.job().as_ref().and_then(&wanted) {
                return Some(found);
            }
            std::thread::sleep(PAUSE);
        }
        None
    }

    fn reach(&mut self, least: u64) -> Option<u64> {
        self.until(|job| step_of(job).filter(|&step| step >= least))
    }

    /// A node with workers, and these.
    fn busy_node(&mut self) -> Result<(String, Vec<Process>)> {
        let since = Instant::now();
        loop {
            let busy = self.run.busy_nodes();
            if !busy.is_empty() {
                return Ok(self.dice.pick(&busy).clone());
            }
            ensure!(since.elapsed() < WORKERS_TIMEOUT, "no node has a worker");
            std::thread::sleep(PAUSE);
        }
    }

    fn kill_worker(&mut self) -> Result<()> {
        let (name, workers) = self.busy_node()?;
        self.inject(format!("kill -9 of a worker on {name}"));
        kill(self.dice.pick(&workers));
        Ok(())
    }

    fn destroy_node(&mut self) -> Result<()> {
        let (name, _) = self.busy_node()?;
        self.inject(format!("kill -9 of {name}, its folder deleted"));
        self.run.destroy_node(&name);
        Ok(())
    }

    fn kill_coordinator(&mut self) -> Result<()> {
        self.inject("kill -9 of the coordinator".to_owned());
        let since = Instant::now();
        kill(&self.run.coordinator());
        self.until(|_| Some(()));
        self.facts.push(("coordinator_answers_again_ms", json!(since.elapsed().as_millis() as u64)));
        Ok(())
    }

    fn replan(&mut self) -> Result<()> {
        let next = self.shape.draw_other(&mut self.dice);
        let mut settings = next.plan();
        settings.push(format!("train.verify_plan={}", self.dice.heads()));
        self.inject(format!("replan to {}", next.name()));
        let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
        let said = self.run.replan(&settings);
        ensure!(
            said.status.success() || self.run.has_finished(),
            "replan: {}",
            String::from_utf8_lossy(&said.stderr)
        );
        self.shape = next;
        Ok(())
    }

    fn freeze(&mut self, time: Duration) -> Result<()> {
        let (name, _) = self.busy_node()?;
        self.inject(format!("{name} frozen for {} ms", time.as_millis()));
        let frozen = self.run.freeze_node(&name);
        std::thread::sleep(time);
        drop(frozen);
        let step = self.run.job().as_ref().and_then(step_of);
        self.facts.push(("step_when_thawed", json!(step)));
        Ok(())
    }

    fn any(&mut self) -> Result<()> {
        match self.dice.below(4) {
            0 => self.destroy_node(),
            1 => self.kill_coordinator(),
            _ => self.kill_worker(),
        }
    }

    fn two_at_once(&mut self) -> Result<()> {
        match self.dice.below(4) {
            0 => {
                self.destroy_node()?;
                self.destroy_node()
            }
            1 => {
                self.destroy_node()?;
                self.kill_coordinator()
            }
            2 => {
                // `replan` waits until the new plan works; what dies meanwhile is its second fault.
                let next = self.shape.draw_other(&mut self.dice);
                self.inject(format!("replan to {}", next.name()));
                let settings = [next.plan(), vec!["train.verify_plan=false".to_owned()]].concat();
                let delay = Duration::from_millis(self.dice.below(RECOVERY_MS / 3));
                std::thread::scope(|scope| {
                    let run = &self.run;
                    let replanning =
                        scope.spawn(|| run.replan(&settings.iter().map(String::as_str).collect::<Vec<_>>()));
                    std::thread::sleep(delay);
                    let busy = run.busy_nodes();
                    let killed = busy.first().and_then(|(name, workers)| Some((name, workers.first()?)));
                    if let Some((name, worker)) = killed {
                        let what = format!("kill -9 of a worker on {name}");
                        self.injections.push(Injection { what, at_ms: now_ms() });
                        kill(worker);
                    }
                    let said = replanning.join().ok().context("replan panicked")?;
                    let text = String::from_utf8_lossy(&said.stderr).into_owned();
                    self.facts.push(("replan", json!(if said.status.success() { "done" } else { &text })));
                    anyhow::Ok(())
                })
            }
            _ => {
                self.kill_worker()?;
                self.any()
            }
        }
    }

    fn twice(&mut self) -> Result<()> {
        if self.dice.heads() {
            self.kill_worker()?
        } else {
            self.destroy_node()?
        }
        std::thread::sleep(Duration::from_millis(self.dice.below(RECOVERY_MS)));
        self.any()
    }

    fn lose_and_join(&mut self) -> Result<()> {
        self.destroy_node()?;
        let changed = |count: usize| {
            move |job: &Value| {
                let last = job["plan_changes"].as_array()?.get(count - 1)?;
                last["redone_steps"].is_u64().then_some(())
            }
        };
        if self.until(changed(1)).is_none() {
            return Ok(());
        }
        let step = self.run.job().as_ref().and_then(step_of).unwrap_or(0);
        self.reach(step + 10);
        self.inject("a node joins".to_owned());
        let joined = self.run.join_node("node-joined");
        self.until(changed(2));
        // It belongs to the cluster until the job is done.
        while !self.run.has_finished() {
            std::thread::sleep(PAUSE);
        }
        drop(joined);
        Ok(())
    }

    fn fill_disk(&mut self) -> Result<()> {
        let (name, _) = self.busy_node()?;
        let folder = self.run.dir().join(&name);
        self.inject(format!("the disk of {name} full"));
        let bytes = disk::fill(&folder)?;
        let step = self.step.unwrap_or(0);
        if self.dice.heads() {
            self.reach(step + FULL_STEPS / 2);
            self.kill_worker()?;
        }
        let passed = self.reach(step + FULL_STEPS);
        let told = if self.run.has_finished() { String::new() } else { self.run.said() };
        disk::empty(&folder)?;
        let lines = |words: &str| told.lines().filter(|line| line.contains(words)).count();
        self.facts.extend([
            ("filler_mib", json!(bytes >> 20)),
            ("step_with_full_disk", json!(passed)),
            ("checkpoints_failed_aloud", json!(lines("the one before remains"))),
            ("commits_failed_aloud", json!(lines("is not held in memory"))),
        ]);
        Ok(())
    }

    fn damage_checkpoint(&mut self) -> Result<()> {
        let (step, what) = disk::damage(self.run.dir(), &mut self.dice)?;
        self.inject(format!("checkpoint of step {step}: {what}"));
        self.facts.push(("damaged_step", json!(step)));
        self.kill_worker()
    }
}

/// The step of the job's training, while it trains.
pub(crate) fn step_of(job: &Value) -> Option<u64> {
    let train = stage(job, "train");
    train["metrics"]["step"].as_u64().filter(|_| train["state"] == "running")
}

pub(crate) fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
