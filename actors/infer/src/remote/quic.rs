//! Requests over the cluster's transport.

use std::net::SocketAddr;
use std::time::Duration;

use async_trait::async_trait;
use sixfold_transport::identity::Expected;
use sixfold_transport::{ByteStream, Connection, Endpoint, IncomingStream, OpenError};
use sixfold_wire::stream::Refusal;
use tokio::sync::Mutex;
use tokio::time::timeout;

use super::{STREAM_KIND, StreamError, ask, serve};
use crate::message::{GenerateRequest, ReplicaError};
use crate::replica::{EventStream, Replica, ReplicaClient};

/// How long a replica may take to accept a request: a dead one must not keep it.
const ACCEPT_DEADLINE: Duration = Duration::from_secs(1);

/// A replica at an address. Connects with the first request, and again after a loss.
pub struct RemoteReplica {
    endpoint: Endpoint,
    node: String,
    address: SocketAddr,
    connection: Mutex<Option<Connection>>,
}

impl RemoteReplica {
    /// The replica that a process of `node` hosts at `address`; anybody else there is refused.
    pub fn new(endpoint: Endpoint, node: &str, address: SocketAddr) -> Self {
        Self { endpoint, node: node.to_owned(), address, connection: Mutex::new(None) }
    }

    async fn open(&self) -> Result<ByteStream, ReplicaError> {
        let lost = |error: &dyn std::fmt::Display| ReplicaError::Lost(error.to_string());
        let connection = self.connect().await?;
        connection.open_stream(STREAM_KIND, &()).await.map_err(|error| match error {
            OpenError::Refused { refusal: Refusal::Other(reason), .. } => ReplicaError::Busy(reason),
            error => lost(&error),
        })
    }

    async fn connect(&self) -> Result<Connection, ReplicaError> {
        let mut kept = self.connection.lock().await;
        if let Some(live) = kept.as_ref().filter(|connection| connection.close_reason().is_none()) {
            return Ok(live.clone());
        }
        let expected = Expected::Host(self.node.clone());
        let connected = self.endpoint.connect(self.address, expected).await;
        let connection = connected.map_err(|error| ReplicaError::Lost(error.to_string()))?;
        *kept = Some(connection.clone());
        Ok(connection)
    }
}

#[async_trait]
impl ReplicaClient for RemoteReplica {
    async fn generate(&self, request: GenerateRequest) -> Result<EventStream, ReplicaError> {
        let late = |_| ReplicaError::Lost(format!("no answer within {} ms", ACCEPT_DEADLINE.as_millis()));
        let stream = timeout(ACCEPT_DEADLINE, self.open()).await.map_err(late)??;
        ask(&request, stream.recv, stream.send).await
    }
}

/// Answers the request on a stream that a gateway opened.
///
/// # Errors
/// As [`serve`].
pub async fn answer(replica: &Replica, incoming: IncomingStream) -> Result<(), StreamError> {
    let stream = incoming.accept().await?;
    serve(replica, stream.recv, stream.send).await
}
