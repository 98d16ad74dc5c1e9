//! The state machine: commands in, effects out. No clock, no IO, no random numbers; the time is an
//! argument, and the effects are performed by the [`actor`](crate::actor).
//!
//! The durable part is a [`State`], changed only by recording an event; the rest is learnt again
//! from the nodes after a restart. Whoever performs [`Effects`] appends their events to the log
//! before anything else in them leaves the process.

mod elastic;
mod failure;
mod gang;
mod lease;
mod live;
mod membership;
mod outbox;
mod place;
mod replan;
mod replicate;
mod reports;
mod requests;
mod schedule;
mod views;

use std::collections::BTreeMap;

use sixfold_cluster::protocol::{
    ClusterView, CommandReply, Fenced, NodeAddress, NodeCommand, NodeReply, NodeReport,
};
use sixfold_wire::id::{ClusterId, JobId, NodeName};

use crate::event::{ArtifactEvent, Entry, Event, JobEvent, NodeEvent, UnitEvent, UnitId};
use crate::message::{ClientReply, ClientRequest, JobState};
use crate::options::Options;
use crate::state::State;

use gang::GangProgress;
use lease::Links;
use live::LiveJobs;
use outbox::Outbox;
pub use outbox::SendId;
use replicate::Copying;
use views::Watcher;

/// Whom a reply is for; given by the caller with the command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket(pub u64);

/// What comes in.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "one is alive at a time")]
pub enum Command {
    /// A node says something; `node` is whom its certificate names.
    Report {
        /// Who.
        node: NodeName,
        /// What.
        report: Fenced<NodeReport>,
        /// Whom the reply is for.
        ticket: Ticket,
    },
    /// A client asks for something.
    Request {
        /// What.
        request: ClientRequest,
        /// Whom the reply is for.
        ticket: Ticket,
    },
    /// A node answered a command, or did not within the deadline.
    Answered {
        /// Which command.
        send: SendId,
        /// The answer.
        reply: Option<CommandReply>,
    },
    /// A node's connection broke.
    ConnectionLost(NodeName),
    /// Time has passed.
    Tick,
}

/// What is to be done, in this order: append the events, then send and reply.
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct Effects {
    /// To the log, all or none of them.
    pub events: Vec<Entry>,
    /// To clients and nodes that asked.
    pub replies: Vec<(Ticket, Answer)>,
    /// To nodes; each is answered with [`Command::Answered`].
    pub sends: Vec<Send>,
    /// A newer coordinator exists: this one must end, for that reason.
    pub abdicate: Option<String>,
}

/// A reply.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// To a node.
    Node(NodeReply),
    /// To a client.
    Client(ClientReply),
}

/// A command to a node.
#[derive(Clone, Debug, PartialEq)]
pub struct Send {
    /// Names it in [`Command::Answered`].
    pub id: SendId,
    /// To whom.
    pub node: NodeAddress,
    /// The command.
    pub command: Fenced<NodeCommand>,
}

/// The coordinator's state machine.
pub struct Coordinator {
    cluster: ClusterId,
    options: Options,
    state: State,
    links: Links,
    outbox: Outbox,
    live: LiveJobs,
    gangs: GangProgress,
    copying: Copying,
    watchers: Vec<Watcher>,
    /// The view that nodes were last told.
    view: ClusterView,
    /// What each waiting unit waits for, for people.
    waits: BTreeMap<UnitId, String>,
    /// Since when inputs of a unit are on no node.
    inputs_lost: BTreeMap<UnitId, u64>,
    started_ms: u64,
    ticked_ms: u64,
    now_ms: u64,
    changed: bool,
    effects: Effects,
}

impl Coordinator {
    /// A coordinator that goes on from what the log says, under a new epoch. The effects hold the
    /// event that starts the epoch; nothing may be sent before it is in the log.
    pub fn start(cluster: ClusterId, options: Options, state: State, now_ms: u64) -> (Self, Effects) {
        let epoch = state.epoch.next();
        let mut coordinator = Self {
            cluster,
            live: LiveJobs::new(epoch, options.log_lines),
            options,
            links: Links::default(),
            outbox: Outbox::default(),
            gangs: GangProgress::default(),
            copying: Copying::default(),
            watchers: Vec::new(),
            view: ClusterView { version: epoch.0 << 32, ..ClusterView::default() },
            waits: BTreeMap::new(),
            inputs_lost: BTreeMap::new(),
            started_ms: now_ms,
            ticked_ms: now_ms,
            now_ms,
            changed: true,
            effects: Effects::default(),
            state,
        };
        coordinator.record(Event::Started(epoch));
        coordinator.live.watch_jobs(coordinator.state.jobs.keys().copied());
        let effects = std::mem::take(&mut coordinator.effects);
        (coordinator, effects)
    }

    /// What the log says.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Takes one command. `now_ms` is milliseconds since 1970 and never goes back.
    pub fn apply(&mut self, command: Command, now_ms: u64) -> Effects {
        self.now_ms = now_ms.max(self.now_ms);
        match command {
            Command::Report { node, report, ticket } => self.take_report(&node, report, ticket),
            Command::Request { request, ticket } => self.take_request(request, ticket),
            Command::Answered { send, reply } => self.take_answer(send, reply),
            Command::ConnectionLost(node) => self.links.suspect(&node),
            Command::Tick => self.tick(),
        }
        self.settle();
        std::mem::take(&mut self.effects)
    }

    fn tick(&mut self) {
        self.watch_nodes();
        self.resend();
        self.changed = true;
    }

    /// Draws all conclusions from what changed.
    fn settle(&mut self) {
        while std::mem::take(&mut self.changed) {
            self.advance_jobs();
            self.widen_gangs();
            self.place_waiting();
            self.restore_copies();
            self.publish_view();
        }
        self.answer_watchers();
    }

    fn record(&mut self, event: Event) {
        let entry = Entry { at_ms: self.now_ms, event };
        self.state.apply(&entry);
        self.live.note(&self.state, &entry);
        self.effects.events.push(entry);
        self.changed = true;
    }

    fn record_node(&mut self, node: &NodeName, event: NodeEvent) {
        self.record(Event::Node(node.clone(), event));
    }

    fn record_job(&mut self, job: JobId, event: JobEvent) {
        self.record(Event::Job(job, event));
    }

    fn record_unit(&mut self, unit: UnitId, event: UnitEvent) {
        self.record(Event::Unit(unit, event));
    }

    fn record_artifact(&mut self, event: ArtifactEvent) {
        self.record(Event::Artifact(event));
    }

    fn become_state(&mut self, job: JobId, state: JobState, message: Option<String>) {
        self.record_job(job, JobEvent::Became { state, message });
    }

    fn reply_node(&mut self, ticket: Ticket, reply: NodeReply) {
        self.effects.replies.push((ticket, Answer::Node(reply)));
    }

    fn reply_client(&mut self, ticket: Ticket, reply: ClientReply) {
        self.effects.replies.push((ticket, Answer::Client(reply)));
    }
}
