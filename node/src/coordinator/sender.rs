//! From the coordinator to the nodes, over the connections that their daemons keep.

use std::time::Duration;

use async_trait::async_trait;
use dashmap::DashMap;
use sixfold_cluster::protocol::{COMMANDS_ACTOR, CommandReply, Fenced, NodeAddress, NodeCommand};
use sixfold_coordinator::actor::NodeSender;
use sixfold_transport::identity::Peer;
use sixfold_transport::{ChannelOptions, Connection, Endpoint, RemoteRef};
use sixfold_wire::id::NodeName;

/// How long a daemon may take to answer; the coordinator's own deadline ends a send earlier.
const COMMAND_DEADLINE: Duration = Duration::from_secs(10);

type Commands = RemoteRef<Fenced<NodeCommand>>;

/// The nodes that are connected, and the channel to each.
pub(super) struct ConnectedNodes {
    endpoint: Endpoint,
    channels: DashMap<NodeName, (Connection, Commands)>,
}

impl ConnectedNodes {
    pub(super) fn new(endpoint: Endpoint) -> Self {
        Self { endpoint, channels: DashMap::new() }
    }

    /// The channel on the node's newest connection.
    async fn channel(&self, node: &NodeName) -> Option<Commands> {
        let connection = self.endpoint.connection_to(&Peer::node(node.as_str()).ok()?)?;
        let held = self.channels.get(node).map(|held| held.value().clone());
        if let Some((_, channel)) = held.filter(|(of, _)| of.same(&connection)) {
            return Some(channel);
        }
        let channel: Commands = connection.actor(COMMANDS_ACTOR, ChannelOptions::URGENT).await.ok()?;
        self.channels.insert(node.clone(), (connection, channel.clone()));
        Some(channel)
    }
}

#[async_trait]
impl NodeSender for ConnectedNodes {
    async fn send(&self, node: NodeAddress, command: Fenced<NodeCommand>) -> Option<CommandReply> {
        let channel = self.channel(&node.node).await?;
        match channel.call(command, COMMAND_DEADLINE).await {
            Ok(reply) => Some(reply),
            Err(error) => {
                tracing::debug!(node = %node.node, %error, "a command was not answered");
                self.channels.remove(&node.node);
                None
            }
        }
    }
}
