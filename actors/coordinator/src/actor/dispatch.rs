//! Commands on their way to nodes: one queue and one task a node, so that a slow node delays no
//! other and a node gets its commands in order. A full queue drops the newest, which the state
//! machine sends again.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use ractor::ActorRef;
use sixfold_cluster::protocol::NodeCommand;
use sixfold_wire::id::NodeName;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::{CoordinatorMessage, NodeSender};
use crate::coordinator::Send;

/// Commands that wait for one node.
const QUEUE: usize = 256;
/// A daemon answers at once or is as good as gone.
const COMMAND_DEADLINE: Duration = Duration::from_secs(1);
/// A queue that was not used for so long ends; most likely its node is gone.
const IDLE: Duration = Duration::from_secs(60);

pub(super) struct Dispatcher {
    runtime: Handle,
    sender: Arc<dyn NodeSender>,
    actor: ActorRef<CoordinatorMessage>,
    queues: HashMap<NodeName, mpsc::Sender<Send>>,
}

impl Dispatcher {
    pub(super) fn new(
        runtime: Handle,
        sender: Arc<dyn NodeSender>,
        actor: ActorRef<CoordinatorMessage>,
    ) -> Self {
        Self { runtime, sender, actor, queues: HashMap::new() }
    }

    pub(super) fn dispatch(&mut self, send: Send) {
        // A probe takes as long as the suspect is silent; nothing shall wait behind it.
        if matches!(send.command.body, NodeCommand::Probe(_)) {
            let (sender, actor) = (Arc::clone(&self.sender), self.actor.clone());
            self.runtime.spawn(async move { call(&*sender, &actor, send).await });
            return;
        }
        let queue = self.queues.get(&send.node.node).filter(|queue| !queue.is_closed());
        let queue = match queue {
            Some(queue) => queue.clone(),
            None => self.open(send.node.node.clone()),
        };
        if let Err(refused) = queue.try_send(send) {
            let id = refused.into_inner().id;
            // The actor's end is the only reason why nobody hears this.
            let _ = self.actor.cast(CoordinatorMessage::Answered(id, None));
        }
    }

    fn open(&mut self, node: NodeName) -> mpsc::Sender<Send> {
        self.queues.retain(|_, queue| !queue.is_closed());
        let (queue, mut commands) = mpsc::channel(QUEUE);
        let (sender, actor) = (Arc::clone(&self.sender), self.actor.clone());
        self.runtime.spawn(async move {
            while let Ok(Some(send)) = timeout(IDLE, commands.recv()).await {
                call(&*sender, &actor, send).await;
            }
            // Whatever slipped in while this ended is answered too.
            commands.close();
            while let Some(send) = commands.recv().await {
                call(&*sender, &actor, send).await;
            }
        });
        self.queues.insert(node, queue.clone());
        queue
    }
}

async fn call(sender: &dyn NodeSender, actor: &ActorRef<CoordinatorMessage>, send: Send) {
    let Send { id, node, command } = send;
    let reply = timeout(COMMAND_DEADLINE, sender.send(node, command)).await.unwrap_or(None);
    let _ = actor.cast(CoordinatorMessage::Answered(id, reply));
}
