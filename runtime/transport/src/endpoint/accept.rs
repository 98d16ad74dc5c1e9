//! Connections that peers make, and the streams that they open.

use std::sync::{Arc, Weak};

use sixfold_wire::stream::{StreamAnswer, StreamOpening};
use sixfold_wire::version::{ALPN_JOIN, Version};
use tokio::sync::mpsc;

use super::Shared;
use super::registry::Registry;
use crate::byte_stream::IncomingStream;
use crate::channel;
use crate::connection::{Connection, OPENING_TIMEOUT, close_code};
use crate::framed::{self, FramedError};
use crate::identity::Peer;
use crate::{handshake, join};

/// Accepts until the endpoint ends.
pub(super) async fn run(quinn: quinn::Endpoint, shared: Weak<Shared>, accepted: mpsc::Sender<Connection>) {
    while let Some(incoming) = quinn.accept().await {
        let Some(strong) = shared.upgrade() else { return };
        let from = incoming.remote_address();
        let admitting = admit(incoming, Arc::downgrade(&strong), accepted.clone());
        strong.runtime.handle().spawn(async move {
            if let Err(reason) = admitting.await {
                tracing::info!(%from, %reason, "refused a connection");
            }
        });
    }
}

async fn admit(
    incoming: quinn::Incoming,
    shared: Weak<Shared>,
    accepted: mpsc::Sender<Connection>,
) -> Result<(), String> {
    let connecting = incoming.accept().map_err(|error| error.to_string())?;
    let quinn = tokio::time::timeout(OPENING_TIMEOUT, connecting)
        .await
        .map_err(|_| "the handshake took too long".to_owned())?
        .map_err(|error| error.to_string())?;
    let Some(shared) = shared.upgrade() else { return Ok(()) };
    let refuse = |reason: String| {
        quinn.close(close_code::REFUSED.into(), reason.as_bytes());
        reason
    };
    let verified = handshake::verified(&quinn, shared.identity().cluster());
    let verified = verified.map_err(|error| refuse(error.to_string()))?;
    let alpn = handshake::alpn(&quinn);
    // Only here is a connection without a certificate possible, and only to join.
    if alpn == ALPN_JOIN {
        let handler = shared.join_handler().ok_or_else(|| refuse("nobody joins here".to_owned()))?;
        drop(shared);
        return join::serve(&quinn, handler).await.map_err(|error| refuse(error.to_string()));
    }
    let version = Version::from_alpn(&alpn).ok_or_else(|| refuse("unknown wire version".to_owned()))?;
    let verified = verified.ok_or_else(|| refuse("a certificate is required".to_owned()))?;
    let connection =
        Connection::new(quinn.clone(), verified, version, shared.runtime.handle(), &shared.clock);
    serve(&shared, &connection);
    if accepted.try_send(connection).is_err() {
        tracing::debug!("nobody takes accepted connections");
    }
    Ok(())
}

/// Serves what the peer opens on a connection, whoever made it, and keeps it in the table.
pub(super) fn serve(shared: &Arc<Shared>, connection: &Connection) {
    shared.connections.insert(connection.peer().clone(), connection.clone());
    let table = shared.connections.clone();
    let registry = shared.registry.clone();
    let connection = connection.clone();
    shared.runtime.handle().spawn(async move {
        let peer = Arc::new(connection.peer().clone());
        while let Ok((send, recv)) = connection.quinn().accept_bi().await {
            tokio::spawn(open(registry.clone(), peer.clone(), send, recv));
        }
        table.remove_if(&*peer, |_, newest| newest.same(&connection));
    });
}

async fn open(registry: Arc<Registry>, peer: Arc<Peer>, send: quinn::SendStream, recv: quinn::RecvStream) {
    if let Err(error) = answer(registry, &peer, send, recv).await {
        tracing::debug!(%peer, %error, "a stream did not open");
    }
}

async fn answer(
    registry: Arc<Registry>,
    peer: &Arc<Peer>,
    mut send: quinn::SendStream,
    mut recv: quinn::RecvStream,
) -> Result<(), FramedError> {
    let opening = framed::receive(&mut recv);
    let Ok(opening) = tokio::time::timeout(OPENING_TIMEOUT, opening).await else { return Ok(()) };
    let refusal = match opening? {
        StreamOpening::Hello => {
            return framed::send(&mut send, &StreamAnswer::Accepted { window: 0 }).await;
        }
        StreamOpening::Actor { actor, protocol } => match registry.actor(&actor, &protocol, peer) {
            Ok(actor) => {
                framed::send(&mut send, &StreamAnswer::Accepted { window: actor.window() }).await?;
                channel::serve(actor, peer.clone(), send, recv).await;
                return Ok(());
            }
            Err(refusal) => refusal,
        },
        StreamOpening::Bytes { kind, header } => match registry.streams(&kind, peer) {
            Ok(entry) => {
                (entry.handler)(IncomingStream { from: (**peer).clone(), header, send, recv });
                return Ok(());
            }
            Err(refusal) => refusal,
        },
    };
    framed::send(&mut send, &StreamAnswer::Refused(refusal)).await
}
