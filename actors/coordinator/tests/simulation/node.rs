//! A node daemon, as far as the coordinator can tell: does what it is told, reports until it is
//! heard, says Hello when its lease is refused.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;

use sixfold_cluster::protocol::{
    ArtifactSummary, Capabilities, CommandReply, Fenced, Hello, NodeCommand, NodeReply, NodeReport,
    RunningTask,
};
use sixfold_cluster::task::{Metrics, SavedState, TaskError, TaskOutput, TaskSpec};
use sixfold_wire::id::{
    ArtifactId, ClusterId, ContentHash, Epoch, Fence, LeaseId, NodeName, Sequence, TaskId,
};

const HEARTBEAT_MS: u64 = 250;
const RESEND_MS: u64 = 200;

/// What a task does next.
#[derive(Clone, Debug)]
enum Deed {
    Wait(u64),
    Report(NodeReport),
    AwaitGang,
    Serve,
}

/// A task's attempt on a node.
struct Work {
    epoch: Epoch,
    deeds: VecDeque<Deed>,
    /// When the first deed was begun, for a wait; when it was last sent, for a report.
    since_ms: Option<u64>,
    address: Option<SocketAddr>,
    formed: bool,
}

pub(crate) struct Node {
    pub(crate) name: NodeName,
    pub(crate) up: bool,
    pub(crate) frozen: bool,
    pub(crate) incarnation: u64,
    pub(crate) store: BTreeSet<ArtifactId>,
    lease: Option<(Epoch, LeaseId)>,
    /// Newest coordinator that it has seen.
    epoch: Epoch,
    sequence: Sequence,
    work: BTreeMap<TaskId, Work>,
    ended: BTreeMap<TaskId, Epoch>,
    /// Copies that the coordinator asked for: the report, and when it was last sent.
    copies: BTreeMap<ArtifactId, Option<u64>>,
    last_sign_ms: Option<u64>,
}

fn address(name: &NodeName) -> SocketAddr {
    let number: u8 = name.as_str()[1..].parse().expect("n1, n2, ...");
    SocketAddr::from(([10, 0, 0, number], 7000))
}

fn product(spec: &TaskSpec, what: &str, number: u64) -> ArtifactId {
    let text = format!("{}/{}/{}/{:?}/{what}/{number}", spec.role, spec.stage, spec.id.index, spec.inputs);
    ArtifactId(ContentHash::of(text.as_bytes()))
}

fn summary(spec: &TaskSpec, id: ArtifactId) -> ArtifactSummary {
    let (task, stage, parents) = (spec.id, spec.stage.clone(), spec.inputs.clone());
    // As of adapters, which are read beside what they were trained from.
    let needs = if spec.role == "train" { parents.clone() } else { Vec::new() };
    ArtifactSummary { id, kind: spec.role.clone(), task, stage, bytes: 1, parents, needs }
}

impl Node {
    pub(crate) fn new(name: &str) -> Self {
        Self {
            name: NodeName::from(name),
            up: true,
            frozen: false,
            incarnation: 0,
            store: BTreeSet::new(),
            lease: None,
            epoch: Epoch(0),
            sequence: Sequence(0),
            work: BTreeMap::new(),
            ended: BTreeMap::new(),
            copies: BTreeMap::new(),
            last_sign_ms: None,
        }
    }

    /// The process dies; its folder may go with it.
    pub(crate) fn die(&mut self, with_folder: bool) {
        let store = if with_folder { BTreeSet::new() } else { std::mem::take(&mut self.store) };
        let (name, incarnation) = (self.name.clone(), self.incarnation + 1);
        *self = Self { name, incarnation, store, up: false, ..Self::new("n0") };
    }

    /// What it is at, for people.
    pub(crate) fn describe(&self) -> String {
        let at = |(task, work): (&TaskId, &Work)| format!("{task} {} {:?}", work.epoch, work.deeds.front());
        let work: Vec<String> = self.work.iter().map(at).collect();
        format!("{} up {} frozen {} lease {:?}: {work:?}", self.name, self.up, self.frozen, self.lease)
    }

    /// Whether it computes and answers.
    pub(crate) fn runs(&self) -> bool {
        self.up && !self.frozen
    }

    fn fence(&mut self, cluster: &ClusterId) -> Fence {
        self.sequence = self.sequence.next();
        let (epoch, lease) = self.lease.unwrap_or((self.epoch, LeaseId(0)));
        Fence { cluster: cluster.clone(), epoch, lease, sequence: self.sequence }
    }

    /// What it says now; `keeper` also stores what it publishes.
    pub(crate) fn step(
        &mut self,
        now_ms: u64,
        cluster: &ClusterId,
        keeper: Option<&NodeName>,
    ) -> Vec<Fenced<NodeReport>> {
        let mut said = Vec::new();
        let due = self.last_sign_ms.is_none_or(|last| last + HEARTBEAT_MS <= now_ms);
        if due {
            self.last_sign_ms = Some(now_ms);
            said.push(match self.lease {
                Some(_) => NodeReport::Heartbeat,
                None => NodeReport::Hello(self.hello()),
            });
        }
        if self.lease.is_some() {
            let tasks: Vec<TaskId> = self.work.keys().copied().collect();
            said.extend(tasks.into_iter().filter_map(|task| self.work_on(task, now_ms, keeper)));
            said.extend(self.report_copies(now_ms));
        }
        said.into_iter().map(|body| Fenced { fence: self.fence(cluster), body }).collect()
    }

    fn hello(&self) -> Hello {
        let is_over =
            |work: &Work| matches!(work.deeds.front(), Some(Deed::Report(NodeReport::Finished { .. })));
        let running = self.work.iter().filter(|(_, work)| !is_over(work));
        let finished = self.work.values().filter_map(|work| match work.deeds.front() {
            Some(Deed::Report(NodeReport::Finished { task, epoch, result })) => {
                Some((*task, *epoch, result.clone()))
            }
            _ => None,
        });
        Hello {
            address: address(&self.name),
            http: None,
            capabilities: Capabilities { cores: 2, host: "h".into(), ..Capabilities::default() },
            running: running
                .map(|(task, work)| RunningTask { task: *task, epoch: work.epoch, address: work.address })
                .collect(),
            finished: finished.collect(),
            artifacts: self.store.iter().copied().collect(),
        }
    }

    fn work_on(&mut self, task: TaskId, now_ms: u64, keeper: Option<&NodeName>) -> Option<NodeReport> {
        let work = self.work.get_mut(&task)?;
        loop {
            let since_ms = work.since_ms;
            match work.deeds.front()? {
                Deed::Wait(wait_ms) if *work.since_ms.get_or_insert(now_ms) + wait_ms > now_ms => {
                    return None;
                }
                Deed::AwaitGang if !work.formed => return None,
                Deed::Serve => return None,
                Deed::Wait(_) | Deed::AwaitGang => {
                    work.deeds.pop_front();
                    work.since_ms = None;
                }
                Deed::Report(report) => {
                    if since_ms.is_some_and(|sent| sent + RESEND_MS > now_ms) {
                        return None;
                    }
                    work.since_ms = Some(now_ms);
                    let mut report = report.clone();
                    if let NodeReport::Stored { artifact, nodes } = &mut report {
                        self.store.insert(artifact.id);
                        *nodes = std::iter::once(&self.name).chain(keeper).cloned().collect();
                    }
                    return Some(report);
                }
            }
        }
    }

    fn report_copies(&mut self, now_ms: u64) -> Vec<NodeReport> {
        let mut said = Vec::new();
        for (id, sent_ms) in &mut self.copies {
            if sent_ms.is_none_or(|sent| sent + RESEND_MS <= now_ms) {
                *sent_ms = Some(now_ms);
                let task = TaskId { job: sixfold_wire::id::JobId(0), phase: 0, index: 0 };
                let (kind, stage, parents) = (String::new(), String::new(), Vec::new());
                let needs = Vec::new();
                let artifact = ArtifactSummary { id: *id, kind, task, stage, bytes: 1, parents, needs };
                said.push(NodeReport::Stored { artifact, nodes: vec![self.name.clone()] });
            }
        }
        said
    }

    /// Takes the reply to something it said.
    pub(crate) fn hear(&mut self, said: &NodeReport, reply: &NodeReply) {
        match (said, reply) {
            (NodeReport::Hello(_), NodeReply::Welcome { epoch, lease, .. }) if *epoch >= self.epoch => {
                self.lease = Some((*epoch, *lease));
                self.epoch = *epoch;
                self.last_sign_ms = None;
            }
            (_, NodeReply::Stale) => {
                self.lease = None;
                self.last_sign_ms = None;
            }
            (NodeReport::Stored { artifact, .. }, NodeReply::Accepted) => {
                self.copies.remove(&artifact.id);
                self.done(said);
            }
            (NodeReport::Finished { task, epoch, .. }, NodeReply::Accepted | NodeReply::Superseded) => {
                self.drop_work(*task, *epoch);
            }
            (
                NodeReport::Started { task, epoch, .. }
                | NodeReport::Serving { task, epoch, .. }
                | NodeReport::Saved { task, epoch, .. },
                NodeReply::Superseded,
            ) => self.drop_work(*task, *epoch),
            (_, NodeReply::Accepted) => self.done(said),
            _ => {}
        }
    }

    /// A task goes on when what it said was heard.
    fn done(&mut self, said: &NodeReport) {
        let same = |deed: &NodeReport| match (deed, said) {
            // The nodes are filled in when it is sent.
            (NodeReport::Stored { artifact, .. }, NodeReport::Stored { artifact: heard, .. }) => {
                artifact == heard
            }
            (deed, said) => deed == said,
        };
        for work in self.work.values_mut() {
            if matches!(work.deeds.front(), Some(Deed::Report(deed)) if same(deed)) {
                work.deeds.pop_front();
                work.since_ms = None;
            }
        }
    }

    fn drop_work(&mut self, task: TaskId, epoch: Epoch) {
        if self.work.get(&task).is_some_and(|work| work.epoch <= epoch) {
            self.work.remove(&task);
        }
        let ended = self.ended.entry(task).or_default();
        *ended = (*ended).max(epoch);
    }

    /// Obeys. `fails` makes a task that is started now fail; `reachable` is what a probe finds.
    pub(crate) fn obey(
        &mut self,
        command: &Fenced<NodeCommand>,
        fails: bool,
        reachable: bool,
    ) -> CommandReply {
        if command.fence.epoch < self.epoch {
            return CommandReply::Stale;
        }
        match &command.body {
            NodeCommand::Start { spec, epoch } => self.start(spec, *epoch, fails),
            NodeCommand::GangFormed { task, gang } => {
                if let Some(work) = self.work.get_mut(task).filter(|work| work.epoch == gang.epoch) {
                    work.formed = true;
                }
            }
            NodeCommand::Stop { task, epoch, .. } => self.drop_work(*task, *epoch),
            NodeCommand::Replicate { artifact, from } => {
                if !from.is_empty() {
                    self.store.insert(*artifact);
                    self.copies.insert(*artifact, None);
                }
            }
            NodeCommand::Discard { artifacts } => {
                artifacts.iter().for_each(|id| _ = self.store.remove(id));
            }
            NodeCommand::View(_) => {}
            NodeCommand::Probe(_) => return CommandReply::Reachable(reachable),
        }
        CommandReply::Accepted
    }

    fn start(&mut self, spec: &TaskSpec, epoch: Epoch, fails: bool) {
        let known = self.work.get(&spec.id).map(|work| work.epoch);
        let ended = self.ended.get(&spec.id).copied();
        if known.max(ended).is_some_and(|newest| newest >= epoch) {
            return;
        }
        check_options(spec);
        let steps: Vec<&[SavedState]> = spec.resume.chunk_by(|a, b| a.step == b.step).collect();
        assert!(steps.len() <= 2, "a step and the one before: {:?}", spec.resume);
        assert!(spec.resume.is_sorted_by(|a, b| a.step >= b.step), "the newest first: {:?}", spec.resume);
        for of_step in &steps {
            for (rank, state) in (0..).zip(*of_step) {
                let of_rank = TaskSpec { id: TaskId { index: rank, ..spec.id }, ..spec.clone() };
                assert_eq!(
                    state.artifact,
                    product(&of_rank, "step", state.step),
                    "a state of that rank and step"
                );
            }
        }
        let newest = spec.resume.first().map(|state| state.step);
        let deeds = plan(spec, epoch, &self.name, newest, fails);
        let listens = matches!(deeds.front(), Some(Deed::Report(NodeReport::Started { .. })));
        let address = listens.then(|| address(&self.name));
        let work = Work { epoch, deeds, since_ms: None, address, formed: false };
        self.work.insert(spec.id, work);
    }
}

/// A rank is one of those of the plan in its options.
fn check_options(spec: &TaskSpec) {
    if spec.role == "train" {
        let options: serde_json::Value = serde_json::from_str(&spec.options_json).expect("options are JSON");
        let degree = |name: &str| options[name].as_u64().expect("a degree");
        let ranks = ["data_parallel", "tensor_parallel", "pipeline_parallel"].map(degree);
        assert_eq!(ranks.iter().product::<u64>(), u64::from(spec.count), "a gang has the ranks of its plan");
        assert!(spec.id.index < spec.count);
    }
}

/// What a task of that role does from start to end.
fn plan(spec: &TaskSpec, epoch: Epoch, node: &NodeName, step: Option<u64>, fails: bool) -> VecDeque<Deed> {
    let (task, mut deeds) = (spec.id, VecDeque::new());
    let listens = address(node);
    if spec.role == "infer" {
        let serving = NodeReport::Serving { task, epoch, address: listens, about: Metrics::new() };
        deeds.extend([Deed::Wait(300), Deed::Report(serving), Deed::Serve]);
        return deeds;
    }
    if spec.role == "train" {
        let started = NodeReport::Started { task, epoch, address: listens };
        deeds.extend([Deed::Report(started), Deed::AwaitGang]);
        let options: serde_json::Value = serde_json::from_str(&spec.options_json).expect("options are JSON");
        let steps = options["steps"].as_u64().expect("a number of steps");
        for step in step.map_or(1, |step| step + 1)..=steps {
            deeds.push_back(Deed::Wait(400));
            let state = product(spec, "step", step);
            deeds.push_back(store(spec, state));
            let state = SavedState { artifact: state, step };
            deeds.push_back(Deed::Report(NodeReport::Saved { task, epoch, state }));
        }
    }
    deeds.push_back(Deed::Wait(300));
    let result = if fails {
        Err(TaskError::restart("it crashed"))
    } else {
        let count = match spec.role.as_str() {
            "crawl" => 5,
            // The first rank writes the model.
            "train" if task.index > 0 => 0,
            _ => 1,
        };
        let artifacts: Vec<ArtifactId> = (0..count).map(|number| product(spec, "output", number)).collect();
        deeds.extend(artifacts.iter().map(|id| store(spec, *id)));
        Ok(TaskOutput { artifacts, metrics: Metrics::new() })
    };
    deeds.push_back(Deed::Report(NodeReport::Finished { task, epoch, result }));
    deeds
}

fn store(spec: &TaskSpec, id: ArtifactId) -> Deed {
    Deed::Report(NodeReport::Stored { artifact: summary(spec, id), nodes: Vec::new() })
}
