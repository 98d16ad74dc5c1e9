//! The coordinator as an actor: mailbox, state machine, log, effects, in that order.
//!
//! The handler only runs the state machine. Its effects go, in order and through a bounded queue,
//! to a thread that appends their events to the log (those of many messages in one transaction)
//! and then lets the replies and commands out. So a node or a client never hears of a decision
//! that a restarted coordinator would not know of. If the log fails, nothing more is let out and
//! the actor ends.

mod clock;
mod dispatch;
mod writer;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};
use sixfold_cluster::protocol::{CommandReply, Fenced, NodeAddress, NodeCommand, NodeReply, NodeReport};
use sixfold_wire::id::{ClusterId, NodeName};
use tokio::task::JoinHandle;

use crate::coordinator::{Answer, Command, Coordinator, Effects, SendId, Ticket};
use crate::log::{EventLog, LogError};
use crate::message::{ClientReply, ClientRequest};
use crate::options::Options;
use crate::state::State;

use clock::Clock;
use writer::{Batch, Writer};

/// How commands reach nodes.
#[async_trait]
pub trait NodeSender: Send + Sync + 'static {
    /// Calls the node's daemon. `None` where there was no answer: no connection, or it broke.
    /// Dropped when the deadline of a command passes.
    async fn send(&self, node: NodeAddress, command: Fenced<NodeCommand>) -> Option<CommandReply>;
}

/// What the coordinator's actor takes. Whoever sends Report and Request has checked who is on the
/// other side: `node` is the name in a node's certificate, and a request comes from a user.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "the mailbox holds as many as nodes have credits for")]
pub enum CoordinatorMessage {
    /// A node says something.
    Report {
        /// Who.
        node: NodeName,
        /// What.
        report: Fenced<NodeReport>,
        /// Where the reply goes.
        reply: RpcReplyPort<NodeReply>,
    },
    /// A client asks for something.
    Request {
        /// What.
        request: ClientRequest,
        /// Where the reply goes.
        reply: RpcReplyPort<ClientReply>,
    },
    /// A node's connection broke.
    ConnectionLost(NodeName),
    /// A node answered a command, or did not. Sent by the actor's own tasks.
    Answered(SendId, Option<CommandReply>),
    /// Time has passed. Sent by the actor's own clock.
    Tick,
    /// The coordinator cannot go on. Sent by the actor's own log.
    Failed(String),
}

/// What the coordinator starts with.
pub struct CoordinatorArguments {
    /// The cluster that it coordinates.
    pub cluster: ClusterId,
    /// Its options.
    pub options: Options,
    /// The file of its log.
    pub log: PathBuf,
    /// How commands reach nodes.
    pub sender: Arc<dyn NodeSender>,
}

/// The coordinator as an actor.
pub struct CoordinatorActor;

/// What the running actor holds.
pub struct CoordinatorState {
    coordinator: Coordinator,
    clock: Clock,
    writer: Writer,
    replies: HashMap<Ticket, ReplyPort>,
    last_ticket: Ticket,
    ticker: JoinHandle<()>,
    tick_pending: Arc<AtomicBool>,
}

#[derive(Debug)]
enum ReplyPort {
    Node(RpcReplyPort<NodeReply>),
    Client(RpcReplyPort<ClientReply>),
}

impl ReplyPort {
    fn send(self, answer: Answer) {
        // Who no longer waits for the answer has asked again, or will.
        match (self, answer) {
            (Self::Node(port), Answer::Node(reply)) => _ = port.send(reply),
            (Self::Client(port), Answer::Client(reply)) => _ = port.send(reply),
            (Self::Node(_), Answer::Client(_)) | (Self::Client(_), Answer::Node(_)) => {
                tracing::error!("an answer of the wrong kind was dropped");
            }
        }
    }
}

impl CoordinatorState {
    fn ticket(&mut self, port: ReplyPort) -> Ticket {
        self.last_ticket = Ticket(self.last_ticket.0 + 1);
        self.replies.insert(self.last_ticket, port);
        self.last_ticket
    }

    async fn perform(&mut self, effects: Effects) -> Result<(), ActorProcessingErr> {
        let Effects { events, replies, sends, abdicate } = effects;
        for entry in &events {
            tracing::debug!(event = ?entry.event, "decided");
        }
        let replies = replies
            .into_iter()
            .filter_map(|(ticket, answer)| Some((self.replies.remove(&ticket)?, answer)))
            .collect();
        let batch = Batch { events, replies, sends };
        if !batch.is_empty() {
            self.writer.write(batch).await?;
        }
        abdicate.map_or(Ok(()), |reason| Err(reason.into()))
    }
}

/// Opens the log, and starts a new epoch in it.
fn recover(arguments: &CoordinatorArguments) -> Result<(Coordinator, EventLog, Clock), LogError> {
    let (mut log, entries) = EventLog::open(&arguments.log, &arguments.cluster)?;
    let clock = Clock::starting_after(entries.last().map_or(0, |entry| entry.at_ms));
    let (count, state) = (entries.len(), State::replay(entries));
    let (cluster, options) = (arguments.cluster.clone(), arguments.options.clone());
    let (coordinator, effects) = Coordinator::start(cluster, options, state, clock.now_ms());
    log.append(&effects.events)?;
    tracing::info!(entries = count, "log replayed");
    Ok((coordinator, log, clock))
}

impl Actor for CoordinatorActor {
    type Msg = CoordinatorMessage;
    type State = CoordinatorState;
    type Arguments = CoordinatorArguments;

    async fn pre_start(
        &self,
        myself: ActorRef<Self::Msg>,
        arguments: CoordinatorArguments,
    ) -> Result<CoordinatorState, ActorProcessingErr> {
        let sender = Arc::clone(&arguments.sender);
        let tick = Duration::from_millis(arguments.options.tick_ms.max(1));
        let (coordinator, log, clock) = tokio::task::spawn_blocking(move || recover(&arguments)).await??;
        let writer = Writer::start(log, sender, myself.clone())?;
        let tick_pending = Arc::new(AtomicBool::new(false));
        let ticker = tokio::spawn(send_ticks(myself, tick, Arc::clone(&tick_pending)));
        let (replies, last_ticket) = (HashMap::new(), Ticket(0));
        Ok(CoordinatorState { coordinator, clock, writer, replies, last_ticket, ticker, tick_pending })
    }

    async fn handle(
        &self,
        _myself: ActorRef<Self::Msg>,
        message: CoordinatorMessage,
        state: &mut CoordinatorState,
    ) -> Result<(), ActorProcessingErr> {
        let command = match message {
            CoordinatorMessage::Report { node, report, reply } => {
                Command::Report { node, report, ticket: state.ticket(ReplyPort::Node(reply)) }
            }
            CoordinatorMessage::Request { request, reply } => {
                Command::Request { request, ticket: state.ticket(ReplyPort::Client(reply)) }
            }
            CoordinatorMessage::ConnectionLost(node) => Command::ConnectionLost(node),
            CoordinatorMessage::Answered(send, reply) => Command::Answered { send, reply },
            CoordinatorMessage::Tick => {
                state.tick_pending.store(false, Ordering::Release);
                Command::Tick
            }
            CoordinatorMessage::Failed(reason) => return Err(reason.into()),
        };
        let effects = state.coordinator.apply(command, state.clock.now_ms());
        state.perform(effects).await
    }

    async fn post_stop(
        &self,
        _myself: ActorRef<Self::Msg>,
        state: &mut CoordinatorState,
    ) -> Result<(), ActorProcessingErr> {
        state.ticker.abort();
        state.writer.finish().await;
        Ok(())
    }
}

/// At most one tick waits in the mailbox, however slow the handler is.
async fn send_ticks(actor: ActorRef<CoordinatorMessage>, every: Duration, pending: Arc<AtomicBool>) {
    let mut interval = tokio::time::interval(every);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        if !pending.swap(true, Ordering::AcqRel) && actor.cast(CoordinatorMessage::Tick).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests;
