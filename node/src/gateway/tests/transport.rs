//! The gateway before replicas that it reaches over the cluster's transport.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use serde_json::json;
use sixfold_infer::remote::{STREAM_KIND, serve};
use sixfold_transport::identity::{Authority, Identity, Peer, Role};
use sixfold_transport::{Endpoint, EndpointOptions, Registration};
use tokio::io::AsyncReadExt;
use tokio::time::timeout;

use super::fake::{Fake, Fate, Replicas, sse};
use super::wire::{exchange, post, send};
use crate::gateway::{Gateway, GatewayOptions, GatewayParts, QuicDial};

const LIFETIME: Duration = Duration::from_secs(3600);

fn node(authority: &Authority, name: &str) -> Identity {
    authority.issue_identity(&Peer::node(name).unwrap(), SystemTime::now(), LIFETIME).unwrap()
}

fn endpoint(identity: Identity) -> Endpoint {
    Endpoint::bind(identity, &EndpointOptions::new(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))).unwrap()
}

/// A worker process of `node-2` that hosts a fake replica.
struct Worker {
    endpoint: Endpoint,
    _streams: Registration,
}

impl Worker {
    fn new(authority: &Authority, name: &str, fake: &Arc<Fake>) -> Self {
        let identity = node(authority, "node-2").worker_authority().unwrap();
        let endpoint = endpoint(identity.issue_identity(name, SystemTime::now(), LIFETIME).unwrap());
        let (fake, runtime) = (Arc::clone(fake), tokio::runtime::Handle::current());
        let streams = endpoint.register_streams(STREAM_KIND, Role::Node, move |incoming| {
            let fake = Arc::clone(&fake);
            runtime.spawn(async move {
                let stream = incoming.accept().await.unwrap();
                // A gateway that has gone, or this worker's own death, breaks the stream.
                let _ = serve(fake.as_ref(), stream.recv, stream.send).await;
            });
        });
        Self { endpoint, _streams: streams }
    }

    fn address(&self) -> SocketAddr {
        self.endpoint.local_address().unwrap()
    }
}

async fn start(authority: &Authority, workers: &[&Worker]) -> (Gateway, Replicas) {
    let replicas = Replicas::new(&[]);
    replicas.announce(workers.iter().map(|worker| worker.address()));
    let dial = Arc::new(QuicDial { endpoint: endpoint(node(authority, "node-1")) });
    let parts = GatewayParts { dial, ..replicas.parts() };
    (super::start(GatewayOptions::default(), parts).await.unwrap(), replicas)
}

fn asked() -> String {
    post(
        "/v1/completions",
        &json!({"model": "toy", "prompt": [4, 5], "max_tokens": 20, "stream": true}).to_string(),
    )
}

#[tokio::test]
async fn a_worker_that_dies_in_the_middle_is_not_seen() {
    let authority = Authority::create(SystemTime::now()).unwrap();
    let fakes = [Fake::new(Fate::HangsAfter(5)), Fake::new(Fate::Lives)];
    let workers = [Worker::new(&authority, "a", &fakes[0]), Worker::new(&authority, "b", &fakes[1])];
    let (gateway, _replicas) = start(&authority, &[&workers[0], &workers[1]]).await;
    let mut stream = send(gateway.address().unwrap(), &asked()).await;
    let mut seen = Vec::new();
    while !String::from_utf8_lossy(&seen).contains(" w5") {
        assert_ne!(timeout(Duration::from_secs(10), stream.read_buf(&mut seen)).await.unwrap().unwrap(), 0);
    }
    workers[0].endpoint.shutdown("killed").await;
    timeout(Duration::from_secs(10), stream.read_to_end(&mut seen)).await.unwrap().unwrap();
    let words: Vec<_> = (1..=12).map(|word| format!("\"text\":\" w{word}\"")).collect();
    let seen = String::from_utf8(seen).unwrap();
    for word in words {
        assert_eq!(seen.matches(&word).count(), 1, "{word} in {seen}");
    }
    assert!(seen.contains("data: [DONE]"));
    assert_eq!(fakes.map(|fake| fake.asked.load(Ordering::SeqCst)), [1, 1]);
    assert_eq!(gateway.take_asked()["toy"], [(4, 1), (5, 1)], "a prompt is counted once");
}

#[tokio::test]
async fn a_worker_that_was_never_there_is_passed_over() {
    let authority = Authority::create(SystemTime::now()).unwrap();
    let fakes = [Fake::new(Fate::Lives), Fake::new(Fate::Lives)];
    let workers = [Worker::new(&authority, "a", &fakes[0]), Worker::new(&authority, "b", &fakes[1])];
    workers[0].endpoint.shutdown("gone").await;
    let (gateway, _replicas) = start(&authority, &[&workers[0], &workers[1]]).await;
    let answer = exchange(gateway.address().unwrap(), &asked()).await;
    let text: String =
        sse(&answer.body).iter().filter_map(|chunk| chunk["choices"][0]["text"].as_str()).collect();
    assert_eq!(text, " w1 w2 w3 w4 w5 w6 w7 w8 w9 w10 w11 w12!");
}
