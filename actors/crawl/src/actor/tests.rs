//! Tests of `actor`.

use std::net::SocketAddr;
use std::sync::Arc;

use async_trait::async_trait;
use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef, SupervisionEvent};
use sixfold_artifact::Manifest;
use sixfold_cluster::task::{ErrorClass, Gang, HostError, Metric, Record, TaskHost, TaskResult};
use sixfold_cluster::work::Threaded;
use sixfold_wire::id::ArtifactId;
use tokio::sync::{mpsc, oneshot};

use super::*;
use crate::testing::{Node, Site, links, options, status};

/// Reports the ends of the actors that it supervises, with the message of a failure.
struct Watcher;

impl Actor for Watcher {
    type Msg = ();
    type State = mpsc::Sender<String>;
    type Arguments = mpsc::Sender<String>;

    async fn pre_start(&self, _: ActorRef<()>, ends: Self::State) -> Result<Self::State, ActorProcessingErr> {
        Ok(ends)
    }

    async fn handle_supervisor_evt(
        &self,
        _: ActorRef<()>,
        event: SupervisionEvent,
        ends: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        let end = match event {
            SupervisionEvent::ActorFailed(_, error) => format!("failed: {error}"),
            SupervisionEvent::ActorTerminated(..) => "stopped".to_owned(),
            _ => return Ok(()),
        };
        Ok(ends.send(end).await?)
    }
}

async fn spawn(context: TaskContext) -> (ActorCell, mpsc::Receiver<String>) {
    let (sender, ends) = mpsc::channel(4);
    let (watcher, _) = Actor::spawn(None, Watcher, sender).await.unwrap();
    Actor::spawn_linked(None, Threaded::new(Crawler), context, watcher.get_cell()).await.unwrap();
    (watcher.get_cell(), ends)
}

async fn site() -> Site {
    Site::start(1, |target| match target {
        "/robots.txt" => status(404),
        "/" => links(["/a", "/b"]),
        _ => links([] as [&str; 0]),
    })
    .await
}

fn task(node: &Node, site: &Site) -> (TaskContext, oneshot::Receiver<TaskResult>) {
    let options = serde_json::to_string(&options(&[site], "/")).unwrap();
    node.task(options, Arc::<sixfold_cluster::task::LocalHost>::clone(&node.host))
}

#[tokio::test]
async fn reports_rounds_and_the_result_and_stops() {
    let (node, site) = (Node::new(), site().await);
    let (context, result) = task(&node, &site);
    let (_watcher, mut ends) = spawn(context).await;
    let output = result.await.unwrap().unwrap();
    assert_eq!(output.metrics["pages_fetched"], Metric::Count(3));
    assert_eq!(ends.recv().await.unwrap(), "stopped");
    let reported = node.host.records().into_iter().any(
        |record| matches!(record, Record::Progress(figures) if figures["pages_fetched"] == Metric::Count(3)),
    );
    assert!(reported);
}

#[tokio::test]
async fn options_that_make_no_sense_are_fatal() {
    let node = Node::new();
    for (json, hint) in [
        (r#"{"seeds":[],"page_max":1}"#, "unknown field `page_max`"),
        (r#"{"seeds":["ftp://a/"]}"#, "ftp://a/"),
    ] {
        let host = Arc::<sixfold_cluster::task::LocalHost>::clone(&node.host);
        let (context, result) = node.task(json.to_owned(), host);
        let (_watcher, _ends) = spawn(context).await;
        let error = result.await.unwrap().unwrap_err();
        assert_eq!(error.class, ErrorClass::Fatal);
        assert!(error.message.contains(hint), "{error}");
    }
}

#[tokio::test]
async fn cancelling_ends_the_task() {
    let (node, site) = (Node::new(), site().await);
    let (context, result) = task(&node, &site);
    context.cancel.cancel();
    let (_watcher, _ends) = spawn(context).await;
    assert!(result.await.unwrap().unwrap_err().message.contains("cancelled"));
}

/// A host whose store panics.
struct BrokenHost;

#[async_trait]
impl TaskHost for BrokenHost {
    async fn fetch(&self, id: ArtifactId) -> Result<Manifest, HostError> {
        Err(HostError::Unavailable(id))
    }

    async fn publish(&self, _manifest: Manifest) -> Result<ArtifactId, HostError> {
        panic!("the disk is on fire")
    }

    async fn save_state(&self, _state: ArtifactId, _step: u64) -> Result<(), HostError> {
        Err(HostError::Superseded)
    }

    async fn rendezvous(&self, _address: SocketAddr) -> Result<Gang, HostError> {
        Err(HostError::Superseded)
    }

    async fn serve(&self, _address: SocketAddr, _about: Metrics) -> Result<(), HostError> {
        Err(HostError::Superseded)
    }

    fn progress(&self, _figures: Metrics) {}

    fn log(&self, _line: String) {}
}

#[tokio::test]
async fn a_panic_of_the_thread_is_a_supervision_event_with_its_message() {
    let (node, site) = (Node::new(), site().await);
    let options = serde_json::to_string(&options(&[&site], "/")).unwrap();
    let (context, _result) = node.task(options, Arc::new(BrokenHost));
    let (_watcher, mut ends) = spawn(context).await;
    let end = ends.recv().await.unwrap();
    assert!(end.starts_with("failed") && end.contains("the disk is on fire"), "{end}");
}
