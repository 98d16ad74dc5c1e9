//! Questions over QUIC: `sixfold query` asks any node, which finds a replica as its gateway does.

use std::sync::Arc;

use sixfold_infer::remote;
use sixfold_transport::identity::Role;
use sixfold_transport::{Endpoint, IncomingStream, Registration};
use tokio::sync::Semaphore;

use crate::gateway::Gateway;

/// Kind of the byte streams on which users ask a node.
pub(crate) const STREAM_KIND: &str = "ask";
/// Questions that are answered at a time; more are refused.
const QUESTIONS_MAX: usize = 64;

/// Answers users for as long as the registration lives.
pub(super) fn serve(endpoint: &Endpoint, gateway: Arc<Gateway>) -> Registration {
    let places = Arc::new(Semaphore::new(QUESTIONS_MAX));
    let runtime = tokio::runtime::Handle::current();
    endpoint.register_streams(STREAM_KIND, Role::User, move |incoming| {
        let (gateway, place) = (Arc::clone(&gateway), Arc::clone(&places).try_acquire_owned());
        runtime.spawn(async move {
            let from = incoming.from.clone();
            let answered = match place {
                Err(_) => incoming.refuse("busy").await.map_err(remote::StreamError::from),
                Ok(_place) => answer(&gateway, incoming).await,
            };
            if let Err(error) = answered {
                tracing::debug!(%from, %error, "a question's stream broke");
            }
        });
    })
}

async fn answer(gateway: &Gateway, incoming: IncomingStream) -> Result<(), remote::StreamError> {
    let stream = incoming.accept().await?;
    remote::serve(&gateway.replicas(), stream.recv, stream.send).await
}
