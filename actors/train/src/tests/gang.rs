//! A gang in one process: [`Gang`].

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ractor::Actor;
use serde_json::Value;
use sixfold_artifact::{FileEntry, Manifest, Store};
use sixfold_cluster::task::{
    LinkChoice, LocalHost, Metric, Metrics, Network, Record, SavedState, TaskContext, TaskError, TaskOutput,
    TaskSpec,
};
use sixfold_cluster::work::Threaded;
use sixfold_topology::{ParallelPlan, Rank};
use sixfold_transport::identity::{Authority, Peer};
use sixfold_transport::{Endpoint, EndpointOptions};
use sixfold_wire::id::{ArtifactId, ContentHash, Epoch, JobId, TaskId};
use tempfile::TempDir;

use super::meeting::{Board, MeetingHost, Memory};
use crate::actor::TrainerShard;
use crate::options::TrainOptions;
use crate::testing::{LocalLinks, artifact_of, dialogues_artifact, tokens_artifact};

const TOKENS: usize = 2000;
/// The node that all ranks say they are on.
pub(crate) const NODE: &str = "here";

/// What the ranks saved, by step and rank.
type States = BTreeMap<u64, BTreeMap<Rank, ArtifactId>>;

/// A training job whose ranks are actors of this process and share a store.
pub(crate) struct Gang {
    options: TrainOptions,
    folder: Arc<TempDir>,
    pub(crate) store: Store,
    tokens: ArtifactId,
    /// The model to start from.
    base: Option<ArtifactId>,
    resume: Vec<SavedState>,
    states: Arc<std::sync::Mutex<States>>,
    pub(crate) memory: Memory,
    /// Two ranks that take each other's place in the trees of sums.
    pub(crate) swapped: Option<(Rank, Rank)>,
    /// A rank that takes so much longer for every message that it sends.
    pub(crate) slowed: Option<(Rank, Duration)>,
    /// A rank that is told to stop once the first step is done.
    pub(crate) stopped: Option<Rank>,
    /// A rank that never starts, so that the others are told to stop.
    pub(crate) absent: Option<Rank>,
    /// Links over the network instead of within the process.
    pub(crate) network: Option<LinkChoice>,
}

/// What a run came to.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) model: ArtifactId,
    /// Of the first rank.
    pub(crate) metrics: Metrics,
    /// The accounts of all ranks.
    pub(crate) ranks: Vec<Value>,
    pub(crate) log: Vec<String>,
    /// What the first rank reported, step by step.
    pub(crate) progress: Vec<Metrics>,
}

impl Outcome {
    pub(crate) fn hashes(&self) -> [&Metric; 2] {
        [&self.metrics["weights_blake3"], &self.metrics["loss_bits_blake3"]]
    }

    pub(crate) fn number(&self, name: &str) -> f64 {
        match &self.metrics[name] {
            Metric::Number(number) => *number,
            other => panic!("{name} is {other:?}"),
        }
    }
}

/// What may happen to a file.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Damage {
    Bit,
    Cut,
    Gone,
}

impl Gang {
    pub(crate) fn new(options: TrainOptions) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path().join("store")).unwrap();
        let tokens = tokens_artifact(&store, TOKENS);
        Self::on(options, folder, store, tokens)
    }

    /// Of dialogues.
    pub(crate) fn of_dialogues(options: TrainOptions) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path().join("store")).unwrap();
        let tokens = dialogues_artifact(&store);
        Self::on(options, folder, store, tokens)
    }

    /// Of text of which nothing is held out.
    pub(crate) fn without_held_out(options: TrainOptions) -> Self {
        let gang = Self::new(options);
        let text = gang.store.manifest(gang.tokens).unwrap();
        let nothing = artifact_of(&gang.store, &[], false);
        let nothing = gang.store.manifest(nothing).unwrap();
        let of = |manifest: &Manifest, held_out: bool| -> Vec<FileEntry> {
            let files = manifest.files.iter().filter(|file| file.name.starts_with("held-out") == held_out);
            files.cloned().collect()
        };
        let manifest = Manifest { files: [of(&text, false), of(&nothing, true)].concat(), ..text };
        Self { tokens: gang.store.publish(&manifest).unwrap(), ..gang }
    }

    fn on(options: TrainOptions, folder: TempDir, store: Store, tokens: ArtifactId) -> Self {
        Self {
            options,
            base: None,
            folder: Arc::new(folder),
            store,
            tokens,
            resume: Vec::new(),
            states: Arc::default(),
            memory: Memory::default(),
            swapped: None,
            slowed: None,
            stopped: None,
            absent: None,
            network: None,
        }
    }

    /// The next attempt, with other options, which finds what this one had held.
    pub(crate) fn next_attempt(&self, options: TrainOptions) -> Self {
        Self { memory: self.memory.clone(), ..self.again(options) }
    }

    /// The same job with other options, on the same store.
    pub(crate) fn again(&self, options: TrainOptions) -> Self {
        Self {
            options,
            folder: self.folder.clone(),
            store: self.store.clone(),
            tokens: self.tokens,
            base: self.base,
            resume: Vec::new(),
            states: self.states.clone(),
            memory: Memory::default(),
            swapped: None,
            slowed: None,
            stopped: None,
            absent: None,
            network: None,
        }
    }

    /// Starts from a model.
    pub(crate) fn starting_from(self, base: ArtifactId) -> Self {
        Self { base: Some(base), ..self }
    }

    /// Goes on from what the last run saved after `step`.
    pub(crate) fn resumed_at(mut self, step: u64) -> Self {
        let states = self.states.lock().unwrap();
        self.resume = states[&step].values().map(|&artifact| SavedState { artifact, step }).collect();
        drop(states);
        self
    }

    /// Is told of states of `step` too, which no store has.
    pub(crate) fn told_of_lost(mut self, step: u64) -> Self {
        let lost = |rank| ArtifactId(ContentHash::of(format!("lost {rank}").as_bytes()));
        let states = self.options.plan().ranks().map(|rank| SavedState { artifact: lost(rank), step });
        self.resume.splice(0..0, states);
        self
    }

    /// Damages the units of one of a step's states; the function returned mends them.
    pub(crate) fn damage_one_file(&self, step: u64, damage: Damage) -> impl FnOnce() + use<> {
        let artifact = *self.states.lock().unwrap()[&step].values().next_back().unwrap();
        let path: PathBuf = self.store.file_path(artifact, "units.safetensors").unwrap();
        let whole = fs::read(&path).unwrap();
        let mut damaged = whole.clone();
        match damage {
            Damage::Bit => *damaged.last_mut().unwrap() ^= 1,
            Damage::Cut => damaged.truncate(whole.len() / 2),
            Damage::Gone => {}
        }
        match damage {
            Damage::Gone => fs::remove_file(&path).unwrap(),
            _ => fs::write(&path, damaged).unwrap(),
        }
        move || fs::write(path, whole).unwrap()
    }

    /// Runs all ranks to their ends.
    pub(crate) fn run(&self) -> Result<Outcome, BTreeMap<Rank, TaskError>> {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(self.run_ranks())
    }

    async fn run_ranks(&self) -> Result<Outcome, BTreeMap<Rank, TaskError>> {
        let plan = self.options.plan();
        let mut links = LocalLinks::default();
        (links.swapped, links.slowed) = (self.swapped, self.slowed);
        let board = Board::new(plan.world_size());
        let authority = Authority::create(SystemTime::now()).unwrap();
        let mut running = Vec::new();
        for rank in plan.ranks() {
            let host = Arc::new(LocalHost::new(self.store.clone()));
            let (context, result) = self.context(rank, plan, host.clone(), &board);
            match self.absent {
                Some(absent) if absent == rank => continue,
                Some(_) => context.cancel.cancel(),
                None => {}
            }
            if self.stopped == Some(rank) {
                board.stop_after_first_step(context.cancel.clone());
            }
            let (shard, context) = match self.network {
                Some(links) => {
                    let network = Network { endpoint: endpoint(&authority), links };
                    (TrainerShard::default(), context.with_network(network))
                }
                None => (TrainerShard::with_links(Arc::new(links.clone())), context),
            };
            let (_, actor) = Actor::spawn(None, Threaded::new(shard), context).await.unwrap();
            running.push((rank, host, result, actor));
        }
        let (mut outputs, mut errors) = (HashMap::new(), BTreeMap::new());
        let (mut log, mut progress) = (Vec::new(), Vec::new());
        let mut states = States::new();
        for (rank, host, result, actor) in running {
            match result.await.unwrap() {
                Ok(output) => drop(outputs.insert(rank, output)),
                Err(error) => drop(errors.insert(rank, error)),
            }
            actor.await.unwrap();
            for record in host.records() {
                match record {
                    Record::Log(line) => log.push(line),
                    Record::Progress(figures) if rank == Rank(0) => progress.push(figures),
                    Record::State(SavedState { artifact, step }) => {
                        states.entry(step).or_default().insert(rank, artifact);
                    }
                    _ => {}
                }
            }
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        self.states.lock().unwrap().append(&mut states);
        Ok(Outcome { progress, ..outcome(outputs, log) })
    }

    fn context(
        &self,
        rank: Rank,
        plan: ParallelPlan,
        local: Arc<LocalHost>,
        board: &Board,
    ) -> (TaskContext, tokio::sync::oneshot::Receiver<sixfold_cluster::task::TaskResult>) {
        let spec = TaskSpec {
            id: TaskId { job: JobId(1), phase: 0, index: rank.0 },
            role: "train".into(),
            stage: "train".into(),
            count: plan.world_size() as u32,
            options_json: serde_json::to_string(&self.options).unwrap(),
            inputs: [self.tokens].into_iter().chain(self.base).collect(),
            resume: self.resume.clone(),
        };
        let scratch = self.folder.path().to_owned();
        let host =
            Arc::new(MeetingHost { local, board: board.clone(), task: spec.id, memory: self.memory.clone() });
        TaskContext::new(spec, Epoch(1), NODE.into(), self.store.clone(), scratch, host)
    }
}

fn endpoint(authority: &Authority) -> Endpoint {
    let peer = Peer::node(NODE).unwrap();
    let identity = authority.issue_identity(&peer, SystemTime::now(), Duration::from_hours(1)).unwrap();
    Endpoint::bind(identity, &EndpointOptions::new((Ipv4Addr::LOCALHOST, 0).into())).unwrap()
}

fn outcome(mut outputs: HashMap<Rank, TaskOutput>, log: Vec<String>) -> Outcome {
    let mut ranks: Vec<(Rank, Value)> = outputs
        .iter()
        .map(|(rank, output)| match &output.metrics["rank"] {
            Metric::Text(text) => (*rank, serde_json::from_str(text).unwrap()),
            other => panic!("rank is {other:?}"),
        })
        .collect();
    ranks.sort_by_key(|(rank, _)| *rank);
    let first = outputs.remove(&Rank(0)).unwrap();
    assert!(outputs.values().all(|output| output.artifacts.is_empty()), "only the first rank publishes");
    let model = *first.artifacts.first().unwrap();
    assert_ne!(model, ArtifactId(ContentHash::of(b"")));
    let ranks = ranks.into_iter().map(|(_, rank)| rank).collect();
    Outcome { model, metrics: first.metrics, ranks, log, progress: Vec::new() }
}
