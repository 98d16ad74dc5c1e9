//! Requests over the cluster's transport.

use std::net::SocketAddr;
use std::time::Duration;

use async_trait::async_trait;
use sixfold_transport::identity::Expected;
use sixfold_transport::{ByteStream, Connection, Endpoint, IncomingStream, OpenError};
use sixfold_wire::stream::Refusal;
use tokio::io::AsyncWriteExt;
use tokio::sync::Mutex;
use tokio::time::timeout;

use super::{LOAD_STREAM_KIND, STREAM_KIND, StreamError, ask, receive, send, serve};
use crate::engine::Load;
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

    async fn open(&self, kind: &str) -> Result<ByteStream, ReplicaError> {
        let lost = |error: &dyn std::fmt::Display| ReplicaError::Lost(error.to_string());
        let connection = self.connect().await?;
        connection.open_stream(kind, &()).await.map_err(|error| match error {
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
        let stream = timeout(ACCEPT_DEADLINE, self.open(STREAM_KIND)).await.map_err(|_| late())??;
        ask(&request, stream.recv, stream.send).await
    }

    async fn load(&self) -> Result<Load, ReplicaError> {
        let told = async {
            let mut stream = self.open(LOAD_STREAM_KIND).await?;
            receive(&mut stream.recv).await.map_err(|error| ReplicaError::Lost(error.to_string()))
        };
        timeout(ACCEPT_DEADLINE, told).await.map_err(|_| late())?
    }
}

fn late() -> ReplicaError {
    ReplicaError::Lost(format!("no answer within {} ms", ACCEPT_DEADLINE.as_millis()))
}

/// Answers the request on a stream that a gateway opened.
///
/// # Errors
/// As [`serve`].
pub async fn answer(replica: &Replica, incoming: IncomingStream) -> Result<(), StreamError> {
    let stream = incoming.accept().await?;
    serve(replica, stream.recv, stream.send).await
}

/// Says how full the replica is on a stream that a gateway opened.
///
/// # Errors
/// [`StreamError`] where the stream broke.
pub async fn tell_load(replica: &Replica, incoming: IncomingStream) -> Result<(), StreamError> {
    let mut stream = incoming.accept().await?;
    send(&mut stream.send, &replica.engine().load()).await?;
    Ok(stream.send.shutdown().await?)
}
