//! Tests of `place`: inputs that cannot be read without an artefact of which every copy is lost.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use sixfold_cluster::protocol::{ArtifactSummary, Capabilities, Fenced, Hello, NodeReply, NodeReport};
use sixfold_cluster::task::{Metrics, TaskOutput};
use sixfold_wire::id::{ClusterId, ContentHash, Epoch, Fence, LeaseId, Sequence};

use super::*;
use crate::coordinator::{Answer, Command, Effects, Ticket};
use crate::job::{JobSpec, PhaseSpec, StageSpec};
use crate::message::{ClientReply, ClientRequest, RequestId};
use crate::options::Options;
use crate::state::State;

const STEP_MS: u64 = 500;

fn id(name: &str) -> ArtifactId {
    ArtifactId(ContentHash::of(name.as_bytes()))
}

struct Rig {
    coordinator: Coordinator,
    now_ms: u64,
    leases: BTreeMap<&'static str, (Epoch, LeaseId)>,
    sequence: Sequence,
}

impl Rig {
    /// A job that trains a task model on `near`, beside a base that `far` alone has, and evaluates it.
    fn trained() -> Self {
        let options = Options { copies: 1, lost_artifact_ms: 20_000, ..Options::default() };
        let (coordinator, _) = Coordinator::start(ClusterId::from("c1"), options, State::default(), 0);
        let mut rig = Self { coordinator, now_ms: 0, leases: BTreeMap::new(), sequence: Sequence(0) };
        let _ = rig.hello("near", &[]);
        let stage = |name: &str, inputs: &[usize]| StageSpec {
            name: name.into(),
            kind: name.into(),
            inputs: inputs.to_vec(),
            options_json: "{}".into(),
            phases: vec![PhaseSpec {
                role: name.into(),
                fan: Fan::Single,
                resources: Resources::default(),
                rules: None,
            }],
        };
        let stages = vec![stage("train", &[]), stage("evaluate", &[0])];
        let spec = JobSpec { name: "job".into(), source_toml: String::new(), stages };
        let (started, _) = rig.ask(ClientRequest::Submit { request: RequestId("r".into()), spec });
        let (node, task, epoch) = starts(&started).pop().unwrap_or_else(|| panic!("{started:?}"));
        assert_eq!(node, "near");
        let _ = rig.hello("far", &[]);
        for (name, node, needs) in [("base", "far", vec![]), ("task", "near", vec![id("base")])] {
            let (kind, stage, parents) = ("model".to_owned(), "train".to_owned(), Vec::new());
            let artifact = ArtifactSummary { id: id(name), kind, task, stage, bytes: 1, parents, needs };
            let _ = rig.say("near", NodeReport::Stored { artifact, nodes: vec![node.into()] });
        }
        for _ in 0..20 {
            let _ = rig.wait();
        }
        let output = TaskOutput { artifacts: vec![id("task")], metrics: Metrics::new() };
        let finished = rig.say("near", NodeReport::Finished { task, epoch, result: Ok(output) });
        assert!(starts(&finished).is_empty(), "`far` is dead by now");
        rig
    }

    fn say(&mut self, node: &'static str, body: NodeReport) -> Effects {
        self.sequence = self.sequence.next();
        let (epoch, lease) = self.leases.get(node).copied().unwrap_or((Epoch(0), LeaseId(0)));
        let fence = Fence { cluster: ClusterId::from("c1"), epoch, lease, sequence: self.sequence };
        let report = Fenced { fence, body };
        let effects = self
            .coordinator
            .apply(Command::Report { node: node.into(), report, ticket: Ticket(0) }, self.now_ms);
        if let [(_, Answer::Node(NodeReply::Welcome { epoch, lease, .. }))] = effects.replies[..] {
            self.leases.insert(node, (epoch, lease));
        }
        effects
    }

    fn hello(&mut self, node: &'static str, artifacts: &[ArtifactId]) -> Effects {
        self.say(
            node,
            NodeReport::Hello(Hello {
                address: SocketAddr::from(([127, 0, 0, 1], 7)),
                http: None,
                capabilities: Capabilities { cores: 2, ..Capabilities::default() },
                running: Vec::new(),
                finished: Vec::new(),
                artifacts: artifacts.to_vec(),
            }),
        )
    }

    fn ask(&mut self, request: ClientRequest) -> (Effects, ClientReply) {
        let mut effects =
            self.coordinator.apply(Command::Request { request, ticket: Ticket(0) }, self.now_ms);
        match effects.replies.pop() {
            Some((_, Answer::Client(reply))) => (effects, reply),
            other => panic!("{other:?}"),
        }
    }

    /// Time passes, in which `near` alone gives signs of life.
    fn wait(&mut self) -> Effects {
        self.now_ms += STEP_MS;
        let _ = self.say("near", NodeReport::Heartbeat);
        self.coordinator.apply(Command::Tick, self.now_ms)
    }

    /// Why the evaluation is where it is, or is not yet.
    fn why(&mut self) -> String {
        match self.ask(ClientRequest::Why(JobId(1))).1 {
            ClientReply::Why(placements) => placements[1].why.clone(),
            other => panic!("{other:?}"),
        }
    }
}

/// Tasks that are started, and where.
fn starts(effects: &Effects) -> Vec<(String, TaskId, Epoch)> {
    let start = |send: &crate::coordinator::Send| match &send.command.body {
        NodeCommand::Start { spec, epoch } => Some((send.node.node.to_string(), spec.id, *epoch)),
        _ => None,
    };
    effects.sends.iter().filter_map(start).collect()
}

#[test]
fn a_task_whose_input_lacks_what_it_needs_waits_until_that_is_back() {
    let mut rig = Rig::trained();
    let why = rig.why();
    assert!(why.contains(&format!("{}, which one of its inputs needs", id("base"))), "{why}");
    let started = rig.hello("far", &[id("base")]);
    assert!(matches!(starts(&started)[..], [(_, TaskId { phase: 1, .. }, _)]), "{started:?}");
    let why = rig.why();
    assert!(why.contains("1 of 2 input(s) there"), "{why}");
}

#[test]
fn a_job_fails_once_every_copy_of_what_an_input_needs_is_lost_for_long() {
    let mut rig = Rig::trained();
    for _ in 0..50 {
        let _ = rig.wait();
    }
    let ClientReply::Job(job) = rig.ask(ClientRequest::Job(JobId(1))).1 else { panic!("no job") };
    assert_eq!(job.state, JobState::Failed);
    let message = job.message.unwrap_or_default();
    assert!(
        message.contains(&id("base").to_string()) && message.contains("every copy was lost"),
        "{message}"
    );
}
