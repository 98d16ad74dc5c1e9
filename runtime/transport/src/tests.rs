//! Endpoints on loopback against each other.

mod access;
mod bytes;
mod channels;
mod joining;

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use sixfold_wire::message::Message;

use crate::identity::{Authority, Clock, Identity, Peer};
use crate::{Connection, Endpoint, EndpointOptions};

const HOUR: Duration = Duration::from_hours(1);

/// A cluster of one test.
struct Cluster(Authority);

impl Cluster {
    fn new() -> Self {
        Self(Authority::create(SystemTime::now()).unwrap())
    }

    fn identity(&self, peer: Peer) -> Identity {
        self.0.issue_identity(&peer, SystemTime::now(), HOUR).unwrap()
    }

    fn endpoint(&self, peer: Peer) -> Endpoint {
        endpoint(self.identity(peer), Clock::system())
    }

    fn coordinator(&self) -> Endpoint {
        self.endpoint(Peer::coordinator("main").unwrap())
    }

    fn node(&self, name: &str) -> Endpoint {
        self.endpoint(Peer::node(name).unwrap())
    }
}

fn endpoint(identity: Identity, clock: Clock) -> Endpoint {
    let options = EndpointOptions { clock, ..EndpointOptions::new(loopback()) };
    Endpoint::bind(identity, &options).unwrap()
}

fn loopback() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 0).into()
}

fn clock_ahead(by: Duration) -> Clock {
    Clock::new(move || SystemTime::now() + by)
}

/// A connection from a node to a coordinator, seen from both ends.
struct Pair {
    coordinator: Endpoint,
    node: Endpoint,
    at_node: Connection,
    at_coordinator: Connection,
}

impl Pair {
    async fn connect() -> Self {
        let cluster = Cluster::new();
        let (coordinator, node) = (cluster.coordinator(), cluster.node("a"));
        let address = coordinator.local_address().unwrap();
        let at_node = node.connect(address, coordinator.identity().peer().clone()).await.unwrap();
        let at_coordinator = coordinator.accept().await.unwrap();
        Self { coordinator, node, at_node, at_coordinator }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Arithmetic {
    Double(u64),
    Ignore,
    Bulk(Vec<u8>),
}

impl Message for Arithmetic {
    type Reply = u64;
    const PROTOCOL: &'static str = "arithmetic";
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Other;

impl Message for Other {
    type Reply = ();
    const PROTOCOL: &'static str = "other";
}
