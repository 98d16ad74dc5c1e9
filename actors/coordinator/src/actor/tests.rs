//! Tests of `actor`.

use std::net::SocketAddr;
use std::sync::Mutex;

use ractor::rpc::CallResult;
use sixfold_cluster::protocol::{Capabilities, Hello};
use sixfold_wire::id::{Epoch, Fence, JobId, LeaseId, Sequence, TaskId};
use tokio::sync::mpsc;

use super::*;
use crate::job::{Fan, JobSpec, PhaseSpec, Resources, StageSpec};
use crate::message::RequestId;

/// Nodes that take every command, and say which.
struct Willing(Mutex<mpsc::UnboundedSender<Fenced<NodeCommand>>>);

#[async_trait]
impl NodeSender for Willing {
    async fn send(&self, _node: NodeAddress, command: Fenced<NodeCommand>) -> Option<CommandReply> {
        self.0.lock().unwrap().send(command).unwrap();
        Some(CommandReply::Accepted)
    }
}

struct Rig {
    actor: ActorRef<CoordinatorMessage>,
    ended: JoinHandle<()>,
    commands: mpsc::UnboundedReceiver<Fenced<NodeCommand>>,
}

async fn start(log: PathBuf) -> Rig {
    let (sender, commands) = mpsc::unbounded_channel();
    let arguments = CoordinatorArguments {
        cluster: ClusterId::from("c1"),
        options: Options::default(),
        log,
        sender: Arc::new(Willing(Mutex::new(sender))),
    };
    let (actor, ended) = Actor::spawn(None, CoordinatorActor, arguments).await.unwrap();
    Rig { actor, ended, commands }
}

impl Rig {
    async fn request(&self, request: ClientRequest) -> ClientReply {
        let call = self.actor.call(|reply| CoordinatorMessage::Request { request, reply }, None).await;
        let CallResult::Success(reply) = call.unwrap() else { panic!("no reply") };
        reply
    }

    async fn hello(&self) -> NodeReply {
        let hello = Hello {
            address: SocketAddr::from(([127, 0, 0, 1], 7)),
            http: None,
            capabilities: Capabilities { cores: 2, ..Capabilities::default() },
            running: Vec::new(),
            finished: Vec::new(),
            artifacts: Vec::new(),
        };
        let fence = Fence {
            cluster: ClusterId::from("c1"),
            epoch: Epoch(0),
            lease: LeaseId(0),
            sequence: Sequence(0),
        };
        let report = Fenced { fence, body: NodeReport::Hello(hello) };
        let node = NodeName::from("n1");
        let call = self.actor.call(|reply| CoordinatorMessage::Report { node, report, reply }, None).await;
        let CallResult::Success(reply) = call.unwrap() else { panic!("no reply") };
        reply
    }

    async fn stop(self) {
        self.actor.stop(None);
        self.ended.await.unwrap();
    }
}

fn submission() -> ClientRequest {
    let phase =
        PhaseSpec { role: "crawl".into(), fan: Fan::Single, resources: Resources::default(), rules: None };
    let stage = StageSpec {
        name: "crawl".into(),
        kind: "crawl".into(),
        inputs: Vec::new(),
        options_json: "{}".into(),
        phases: vec![phase],
    };
    let spec = JobSpec { name: "job".into(), source_toml: String::new(), stages: vec![stage] };
    ClientRequest::Submit { request: RequestId("r1".into()), spec }
}

#[tokio::test]
async fn places_a_job_and_knows_it_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log.sqlite");
    let mut rig = start(log.clone()).await;
    assert!(matches!(rig.hello().await, NodeReply::Welcome { epoch: Epoch(1), .. }));
    assert_eq!(rig.request(submission()).await, ClientReply::Submitted(JobId(1)));
    let task = TaskId { job: JobId(1), phase: 0, index: 0 };
    let started = loop {
        let command = rig.commands.recv().await.unwrap();
        if let NodeCommand::Start { spec, .. } = command.body {
            break spec.id;
        }
    };
    assert_eq!(started, task);
    rig.stop().await;

    let again = start(log).await;
    assert_eq!(again.request(submission()).await, ClientReply::Submitted(JobId(1)), "the same request");
    assert!(matches!(again.hello().await, NodeReply::Welcome { epoch: Epoch(2), .. }));
    again.stop().await;
}

#[tokio::test]
async fn a_second_coordinator_on_the_same_log_does_not_start() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log.sqlite");
    let first = start(log.clone()).await;
    let (sender, _commands) = mpsc::unbounded_channel();
    let arguments = CoordinatorArguments {
        cluster: ClusterId::from("c1"),
        options: Options::default(),
        log,
        sender: Arc::new(Willing(Mutex::new(sender))),
    };
    let second = Actor::spawn(None, CoordinatorActor, arguments).await;
    assert!(second.unwrap_err().to_string().contains("another coordinator"));
    first.stop().await;
}
