//! From the network to the coordinator's mailbox.
//!
//! The handlers run on the endpoint's thread and only cast; the senders' credits bound how much
//! waits in the mailbox, since each is kept until its message has been answered.

use ractor::{ActorRef, RpcReplyPort};
use sixfold_cluster::protocol::{Fenced, NodeReport, REPORTS_ACTOR};
use sixfold_coordinator::actor::CoordinatorMessage;
use sixfold_coordinator::message::{CLIENTS_ACTOR, ClientRequest};
use sixfold_transport::identity::{Peer, Role};
use sixfold_transport::{ActorGone, Connection, Delivery, Endpoint, Registration};
use sixfold_wire::id::NodeName;
use sixfold_wire::message::Message;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// What peers may use of the coordinator, until dropped.
pub(super) struct Bridge {
    _registrations: [Registration; 3],
    watcher: JoinHandle<()>,
}

impl Drop for Bridge {
    fn drop(&mut self) {
        self.watcher.abort();
    }
}

impl Bridge {
    /// Lets nodes report and users ask.
    pub(super) fn open(
        endpoint: &Endpoint,
        actor: &ActorRef<CoordinatorMessage>,
        renewals: Registration,
    ) -> Self {
        let reports = forward::<Fenced<NodeReport>>(actor, |from, report, reply| {
            CoordinatorMessage::Report { node: NodeName(from.name().to_owned()), report, reply }
        });
        let requests = forward::<ClientRequest>(actor, |_, request, reply| CoordinatorMessage::Request {
            request,
            reply,
        });
        Self {
            _registrations: [
                endpoint.register(REPORTS_ACTOR, Role::Node, reports),
                endpoint.register(CLIENTS_ACTOR, Role::User, requests),
                renewals,
            ],
            watcher: tokio::spawn(watch_connections(endpoint.clone(), actor.clone())),
        }
    }
}

/// A handler that casts each call to the actor and brings the reply back.
fn forward<M: Message>(
    actor: &ActorRef<CoordinatorMessage>,
    wrap: fn(&Peer, M, RpcReplyPort<M::Reply>) -> CoordinatorMessage,
) -> impl Fn(Delivery<M>) -> Result<(), ActorGone> + use<M>
where
    M::Reply: Send + Sync,
{
    let (actor, runtime) = (actor.clone(), Handle::current());
    move |delivery| {
        // A message that is not a call has nobody to answer; the coordinator takes none.
        let Delivery { from, message, reply: Some(port), .. } = delivery else { return Ok(()) };
        let (sender, receiver) = oneshot::channel();
        actor.cast(wrap(&from, message, sender.into())).map_err(|_| ActorGone)?;
        runtime.spawn(async move {
            if let Ok(reply) = receiver.await {
                port.send(&reply);
            }
        });
        Ok(())
    }
}

/// Tells the actor when a node's last connection breaks.
async fn watch_connections(endpoint: Endpoint, actor: ActorRef<CoordinatorMessage>) {
    while let Some(connection) = endpoint.accept().await {
        if connection.peer().role() == Role::Node {
            tokio::spawn(report_loss(endpoint.clone(), connection, actor.clone()));
        }
    }
}

async fn report_loss(endpoint: Endpoint, connection: Connection, actor: ActorRef<CoordinatorMessage>) {
    let reason = connection.closed().await;
    let peer = connection.peer();
    if endpoint.connection_to(peer).is_none() {
        tracing::info!(%peer, %reason, "a node's connection ended");
        // An actor that is gone needs no word.
        let _ = actor.cast(CoordinatorMessage::ConnectionLost(NodeName(peer.name().to_owned())));
    }
}
