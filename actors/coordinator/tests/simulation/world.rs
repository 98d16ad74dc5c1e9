//! Virtual time, the network between the coordinator and its nodes, and what goes wrong there.

use std::collections::{BTreeMap, VecDeque};

use sixfold_cluster::protocol::{CommandReply, Fenced, NodeCommand, NodeReply, NodeReport};
use sixfold_coordinator::coordinator::SendId;
use sixfold_coordinator::event::{Entry, Event, JobEvent, NodeEvent, UnitEvent};
use sixfold_coordinator::job::{Fan, JobSpec};
use sixfold_coordinator::message::{ClientReply, ClientRequest, JobState, Refusal, Replan, RequestId};
use sixfold_coordinator::{Answer, Command, Coordinator, Effects, Options, State, Ticket};
use sixfold_topology::ParallelPlan;
use sixfold_wire::id::{ClusterId, Epoch, JobId, LeaseId, NodeName};

use super::jobs;
use super::node::Node;
use super::random::Random;

pub(crate) const NODES: u64 = 5;
const STEP_MS: u64 = 25;
/// No fault begins later; then everything must come to its end.
const FAULTS_END_MS: u64 = 15_000;
const GIVE_UP_MS: u64 = 240_000;

/// What goes wrong, and how often.
#[derive(Clone, Default)]
pub(crate) struct Faults {
    lost_per_mille: u64,
    doubled_per_mille: u64,
    replayed_per_mille: u64,
    failing_tasks_per_mille: u64,
    delay_max_ms: u64,
    /// A node is killed, restarted or frozen about so often; 0 for never.
    node_fault_every_ms: u64,
    /// The coordinator is killed at one decision in so many; 0 for never.
    coordinator_kill_every: u64,
    /// The coordinator is killed at this decision, before or after its events are in the log.
    coordinator_kill_at: Option<(u64, bool)>,
    /// One node is frozen once, for so long.
    freeze_once_ms: Option<u64>,
    /// The last node dies once, while the training runs, and is back after so long; or all nodes do, which come back
    /// one by one.
    kill_once: Option<(u64, bool)>,
    /// A person asks for another plan about so often; 0 for never.
    replan_every_ms: u64,
    /// The last node dies about so often for a while, and comes back; 0 for never.
    flap_every_ms: u64,
    pub(crate) training: jobs::Training,
}

/// Plans that are asked for, in turn.
const PLANS: [&str; 6] = ["tp2.pp2", "dp4", "pp5", "dp2.tp2", "tp1", "tp4"];
/// When nodes die that die once, and the time between two that come back.
const KILL_AT_MS: u64 = 7000;
const COME_BACK_MS: u64 = 50;
/// How long a node flaps.
const FLAPS_END_MS: u64 = 200_000;

impl Faults {
    pub(crate) fn none() -> Self {
        Self { delay_max_ms: 5, ..Self::default() }
    }

    pub(crate) fn random() -> Self {
        Self {
            lost_per_mille: 30,
            doubled_per_mille: 30,
            replayed_per_mille: 20,
            failing_tasks_per_mille: 60,
            delay_max_ms: 60,
            node_fault_every_ms: 2500,
            coordinator_kill_every: 60,
            ..Self::default()
        }
    }

    /// A rank on each node, and no fault but that plans are asked for.
    pub(crate) fn replans() -> Self {
        Self { replan_every_ms: 900, training: jobs::Training::on_all_nodes(), ..Self::none() }
    }

    /// Plans follow nodes that are lost and come back amid random faults; some are asked for, about so often.
    pub(crate) fn random_with_replans(replan_every_ms: u64) -> Self {
        let training = jobs::Training { steps: 20, ..jobs::Training::on_all_nodes() };
        Self { replan_every_ms, training, ..Self::random() }
    }

    /// A node, or all of them, are lost once under a training that has a rank on each.
    pub(crate) fn kill_once(away_ms: u64, all: bool) -> Self {
        let training = jobs::Training { steps: 20, ..jobs::Training::on_all_nodes() };
        Self { kill_once: Some((away_ms, all)), training, ..Self::none() }
    }

    /// A node comes and goes under a long training.
    pub(crate) fn flapping(every_ms: u64) -> Self {
        let training =
            jobs::Training { steps: 400, widen_after_ms: 60_000, ..jobs::Training::on_all_nodes() };
        Self { flap_every_ms: every_ms, training, ..Self::none() }
    }

    pub(crate) fn killing_coordinator_at(self, decision: u64, appended: bool) -> Self {
        Self { coordinator_kill_at: Some((decision, appended)), ..self }
    }

    pub(crate) fn freeze_once(frozen_ms: u64) -> Self {
        Self { freeze_once_ms: Some(frozen_ms), ..Self::none() }
    }
}

/// How often what happened, so that a test can say that it happened at all.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) decisions: u64,
    pub(crate) stale_refused: u64,
    pub(crate) replayed: u64,
    pub(crate) coordinator_kills: u64,
    pub(crate) node_kills: u64,
    pub(crate) freezes: u64,
    pub(crate) task_failures: u64,
    pub(crate) adopted: u64,
    pub(crate) resumed_from_a_step: u64,
    pub(crate) told_the_step_before: u64,
    pub(crate) replans: u64,
    pub(crate) replans_refused: u64,
    pub(crate) shrunk: u64,
    pub(crate) widened: u64,
}

impl Seen {
    pub(crate) fn add(&mut self, other: &Self) {
        self.decisions += other.decisions;
        self.stale_refused += other.stale_refused;
        self.replayed += other.replayed;
        self.coordinator_kills += other.coordinator_kills;
        self.node_kills += other.node_kills;
        self.freezes += other.freezes;
        self.task_failures += other.task_failures;
        self.adopted += other.adopted;
        self.resumed_from_a_step += other.resumed_from_a_step;
        self.told_the_step_before += other.told_the_step_before;
        self.replans += other.replans;
        self.replans_refused += other.replans_refused;
        self.shrunk += other.shrunk;
        self.widened += other.widened;
    }
}

/// What happens at some time.
#[derive(Clone)]
enum Happening {
    Report { node: NodeName, incarnation: u64, report: Fenced<NodeReport> },
    Reply { node: NodeName, incarnation: u64, said: NodeReport, reply: NodeReply },
    Order { node: NodeName, coordinator: u64, id: SendId, command: Fenced<NodeCommand> },
    Answer { coordinator: u64, id: SendId, reply: Option<CommandReply> },
    Thaw(NodeName),
    Revive(NodeName),
    StartCoordinator,
}

pub(crate) struct World {
    pub(crate) log: Vec<Entry>,
    pub(crate) seen: Seen,
    seed: u64,
    faults: Faults,
    random: Random,
    now_ms: u64,
    happenings: BTreeMap<(u64, u64), Happening>,
    happened: u64,
    cluster: ClusterId,
    coordinator: Option<Coordinator>,
    coordinator_incarnation: u64,
    nodes: BTreeMap<NodeName, Node>,
    /// Leases that the running coordinator granted and has not revoked.
    leases: BTreeMap<NodeName, (Epoch, LeaseId)>,
    tickets: BTreeMap<Ticket, Asker>,
    last_ticket: u64,
    /// Reports that were delivered, for replaying.
    past: VecDeque<(NodeName, Fenced<NodeReport>)>,
    submitted: [Option<JobId>; 2],
    next_node_fault_ms: u64,
    /// Ranks of the training, as the log has it.
    ranks: usize,
}

enum Asker {
    Node {
        node: NodeName,
        incarnation: u64,
        said: NodeReport,
    },
    Client(usize),
    /// A person who wants another plan.
    Planner,
}

impl World {
    pub(crate) fn new(seed: u64, faults: Faults, nodes: u64) -> Self {
        let names = (1..=nodes).map(|number| format!("n{number}"));
        let mut world = Self {
            log: Vec::new(),
            seen: Seen::default(),
            seed,
            random: Random::new(seed),
            now_ms: 1_000_000,
            happenings: BTreeMap::new(),
            happened: 0,
            cluster: ClusterId::from("c1"),
            coordinator: None,
            coordinator_incarnation: 0,
            nodes: names.map(|name| (NodeName(name.clone()), Node::new(&name))).collect(),
            leases: BTreeMap::new(),
            tickets: BTreeMap::new(),
            last_ticket: 0,
            past: VecDeque::new(),
            submitted: [None; 2],
            next_node_fault_ms: 1_000_000 + 2000,
            ranks: faults.training.plan.world_size(),
            faults,
        };
        world.start_coordinator();
        world
    }

    fn passed_ms(&self) -> u64 {
        self.now_ms - 1_000_000
    }

    fn faulty(&self) -> bool {
        self.passed_ms() < FAULTS_END_MS
    }

    pub(crate) fn run(&mut self) {
        while !self.is_over() {
            assert!(self.passed_ms() < GIVE_UP_MS, "jobs did not end: {}", self.report());
            self.now_ms += STEP_MS;
            while let Some(entry) = self.happenings.first_entry() {
                if entry.key().0 > self.now_ms {
                    break;
                }
                let happening = entry.remove();
                self.happen(happening);
            }
            self.disturb();
            self.flap();
            self.submit();
            self.ask_for_a_plan();
            self.step_nodes();
            self.apply(Command::Tick);
        }
        self.check_fold();
    }

    fn report(&self) -> String {
        let tail =
            self.log.iter().rev().filter(|entry| matches!(entry.event, Event::Unit(..) | Event::Started(_)));
        let tail = tail.take(20).map(|entry| format!("{entry:?}"));
        let nodes = self.nodes.values().map(Node::describe);
        format!("seed {}\n{}", self.seed, nodes.chain(tail).collect::<Vec<_>>().join("\n"))
    }

    /// The first job ends up serving, the second done, and nothing is left to go wrong.
    fn is_over(&self) -> bool {
        let became = |job: JobId, wanted: JobState| {
            self.log.iter().rev().any(|entry| {
                matches!(&entry.event, Event::Job(id, JobEvent::Became { state, .. })
                    if *id == job && *state == wanted)
            })
        };
        let [Some(first), Some(second)] = self.submitted else { return false };
        let settled = self.faults.node_fault_every_ms == 0 || !self.faulty();
        settled
            && self.coordinator.is_some()
            && became(first, JobState::Serving)
            && became(second, JobState::Succeeded)
            && self.faults.freeze_once_ms.is_none_or(|frozen_ms| self.passed_ms() > frozen_ms + 5000)
    }

    fn later(&mut self, happening: Happening) {
        let delay_ms = self.random.between(1, self.faults.delay_max_ms.max(1));
        self.at(self.now_ms + delay_ms, happening);
    }

    fn at(&mut self, at_ms: u64, happening: Happening) {
        self.happened += 1;
        self.happenings.insert((at_ms, self.happened), happening);
    }

    /// Over the network: perhaps not at all, perhaps twice.
    fn over_the_network(&mut self, happening: Happening) {
        if self.faulty() && self.random.chance(self.faults.lost_per_mille) {
            return;
        }
        if self.faulty() && self.random.chance(self.faults.doubled_per_mille) {
            self.later(happening.clone());
        }
        self.later(happening);
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Report { node, incarnation, report } => {
                if self.faults.replayed_per_mille > 0 {
                    self.past.push_back((node.clone(), report.clone()));
                    self.past.truncate(2000);
                }
                self.deliver(node, incarnation, report);
            }
            Happening::Reply { node, incarnation, said, reply } => {
                self.reach_node(&node.clone(), Happening::Reply { node, incarnation, said, reply });
            }
            Happening::Order { node, coordinator, id, command } => {
                self.reach_node(&node.clone(), Happening::Order { node, coordinator, id, command });
            }
            Happening::Answer { coordinator, id, reply } => {
                if coordinator == self.coordinator_incarnation {
                    self.apply(Command::Answered { send: id, reply });
                }
            }
            Happening::Thaw(name) => self.node(&name).frozen = false,
            Happening::Revive(name) => self.node(&name).up = true,
            Happening::StartCoordinator => self.start_coordinator(),
        }
    }

    fn node(&mut self, name: &NodeName) -> &mut Node {
        self.nodes.get_mut(name).expect("a node of this world")
    }

    /// A frozen node reads it later, a dead one never.
    fn reach_node(&mut self, name: &NodeName, happening: Happening) {
        if self.node(name).frozen {
            return self.at(self.now_ms + STEP_MS, happening);
        }
        match happening {
            Happening::Reply { incarnation, said, reply, .. } => {
                let node = self.node(name);
                if node.up && node.incarnation == incarnation {
                    node.hear(&said, &reply);
                }
            }
            Happening::Order { coordinator, id, command, .. } if self.node(name).up => {
                self.obey(name, coordinator, id, &command);
            }
            _ => {}
        }
    }

    fn obey(&mut self, name: &NodeName, coordinator: u64, id: SendId, command: &Fenced<NodeCommand>) {
        let fails = self.faulty() && self.random.chance(self.faults.failing_tasks_per_mille);
        let reachable = match &command.body {
            NodeCommand::Probe(at) => self.nodes[&at.node].runs(),
            _ => true,
        };
        if let NodeCommand::Start { spec, .. } = &command.body {
            let steps = spec.resume.iter().map(|state| state.step);
            self.seen.told_the_step_before += u64::from(steps.clone().min() < steps.max());
        }
        let reply = self.node(name).obey(command, fails, reachable);
        self.over_the_network(Happening::Answer { coordinator, id, reply: Some(reply) });
    }

    fn step_nodes(&mut self) {
        let names: Vec<NodeName> = self.nodes.keys().cloned().collect();
        for name in &names {
            if !self.nodes[name].runs() {
                continue;
            }
            let others: Vec<&NodeName> =
                names.iter().filter(|other| *other != name && self.nodes[*other].runs()).collect();
            let keeper = if others.is_empty() {
                None
            } else {
                Some(others[self.random.below(others.len() as u64) as usize].clone())
            };
            let (now_ms, cluster) = (self.now_ms, self.cluster.clone());
            let node = self.node(name);
            let incarnation = node.incarnation;
            for report in node.step(now_ms, &cluster, keeper.as_ref()) {
                if let (NodeReport::Stored { artifact, nodes }, Some(keeper)) = (&report.body, &keeper)
                    && nodes.contains(keeper)
                {
                    let id = artifact.id;
                    self.node(keeper).store.insert(id);
                }
                self.over_the_network(Happening::Report { node: name.clone(), incarnation, report });
            }
        }
    }

    fn deliver(&mut self, node: NodeName, incarnation: u64, report: Fenced<NodeReport>) {
        if self.coordinator.is_none() {
            return;
        }
        let said = report.body.clone();
        let lease = (report.fence.epoch, report.fence.lease);
        let stale = !matches!(said, NodeReport::Hello(_)) && self.leases.get(&node) != Some(&lease);
        let ticket = self.ticket(Asker::Node { node: node.clone(), incarnation, said });
        let before = self.log.len();
        let Some(replies) = self.apply(Command::Report { node, report, ticket }) else { return };
        if stale {
            assert_eq!(replies, [(ticket, Answer::Node(NodeReply::Stale))]);
            assert_eq!(self.log.len(), before, "a stale report changed something");
            self.seen.stale_refused += 1;
        }
    }

    fn ticket(&mut self, asker: Asker) -> Ticket {
        self.last_ticket += 1;
        self.tickets.insert(Ticket(self.last_ticket), asker);
        Ticket(self.last_ticket)
    }

    /// Applies a command, appends, performs; or dies at one of these. Returns the replies.
    fn apply(&mut self, command: Command) -> Option<Vec<(Ticket, Answer)>> {
        let now_ms = self.now_ms;
        let effects = self.coordinator.as_mut()?.apply(command, now_ms);
        let Effects { events, replies, sends, abdicate } = effects;
        assert_eq!(abdicate, None);
        if !events.is_empty() {
            self.seen.decisions += 1;
            if let Some(appended) = self.dies_now() {
                if appended {
                    self.append(events);
                }
                self.kill_coordinator(appended);
                return None;
            }
        }
        self.append(events);
        for (ticket, answer) in replies.clone() {
            self.answer(ticket, answer);
        }
        for send in sends {
            let (node, coordinator) = (send.node.node.clone(), self.coordinator_incarnation);
            let (id, command) = (send.id, send.command);
            self.over_the_network(Happening::Order { node, coordinator, id, command });
            // What the caller of a node concludes when there is no answer.
            self.at(now_ms + 1000, Happening::Answer { coordinator, id, reply: None });
        }
        Some(replies)
    }

    fn answer(&mut self, ticket: Ticket, answer: Answer) {
        match (self.tickets.remove(&ticket), answer) {
            (Some(Asker::Node { node, incarnation, said }), Answer::Node(reply)) => {
                if let NodeReply::Welcome { epoch, lease, .. } = reply {
                    self.leases.insert(node.clone(), (epoch, lease));
                }
                self.over_the_network(Happening::Reply { node, incarnation, said, reply });
            }
            (Some(Asker::Client(number)), Answer::Client(ClientReply::Submitted(job))) => {
                let known = self.submitted[number].get_or_insert(job);
                assert_eq!(*known, job, "a repeated request is the same job");
            }
            (Some(Asker::Planner), Answer::Client(_)) => {}
            (asker, answer) => panic!("{answer:?} to {}", asker.is_some()),
        }
    }

    fn append(&mut self, events: Vec<Entry>) {
        for entry in events {
            match &entry.event {
                Event::Node(node, NodeEvent::Evicted { .. } | NodeEvent::Left) => {
                    self.leases.remove(node);
                }
                Event::Unit(_, UnitEvent::Failed { .. }) => self.seen.task_failures += 1,
                Event::Unit(_, UnitEvent::Adopted) => self.seen.adopted += 1,
                Event::Unit(_, UnitEvent::Placed { step: Some(_), .. }) => self.seen.resumed_from_a_step += 1,
                Event::Job(_, JobEvent::Replanned { plan, wanted, .. }) => {
                    let before = std::mem::replace(&mut self.ranks, plan.world_size());
                    let count = match wanted {
                        Some(_) => &mut self.seen.replans,
                        None if self.ranks > before => &mut self.seen.widened,
                        None => &mut self.seen.shrunk,
                    };
                    *count += 1;
                }
                _ => {}
            }
            self.log.push(entry);
        }
    }

    fn submit(&mut self) {
        if self.passed_ms() < 1000 || !self.passed_ms().is_multiple_of(500) {
            return;
        }
        let whole_way = jobs::whole_way(&self.faults.training);
        for (number, spec) in [whole_way, jobs::map_reduce()].into_iter().enumerate() {
            if self.submitted[number].is_none() {
                let request = RequestId(format!("request {number}"));
                let ticket = self.ticket(Asker::Client(number));
                self.apply(Command::Request { request: ClientRequest::Submit { request, spec }, ticket });
            }
        }
    }

    fn ask(&mut self, request: ClientRequest) -> Option<ClientReply> {
        let ticket = self.ticket(Asker::Planner);
        let replies = self.apply(Command::Request { request, ticket })?;
        replies.into_iter().find_map(|(to, answer)| match answer {
            Answer::Client(reply) if to == ticket => Some(reply),
            _ => None,
        })
    }

    /// A person asks for the next plan, sometimes twice, and sometimes after having looked too early.
    fn ask_for_a_plan(&mut self) {
        let every_ms = self.faults.replan_every_ms;
        let (Some(job), passed_ms) = (self.submitted[0], self.passed_ms()) else { return };
        if every_ms == 0 || !self.faulty() || !passed_ms.is_multiple_of(every_ms) {
            return;
        }
        let Some(ClientReply::Spec(spec)) = self.ask(ClientRequest::Spec(job)) else { return };
        let turn = (passed_ms / every_ms + self.seed) as usize;
        let plan: ParallelPlan = PLANS[turn % PLANS.len()].parse().expect("a plan");
        let replan = replan(job, &spec, plan, self.faults.training.steps);
        let request = || ClientRequest::Replan(Box::new(replan.clone()));
        let Some(reply) = self.ask(request()) else { return };
        match reply {
            ClientReply::Replanned { number, interrupts } => {
                let before = self.log.len();
                if let Some(again) = self.ask(request()) {
                    assert_eq!(again, ClientReply::Replanned { number, interrupts }, "asked for once");
                    assert_eq!(self.log.len(), before, "a repeated request changes nothing");
                }
                let other = Replan { options_json: jobs::options_json(&plan, 999), ..replan.clone() };
                let refused = self.ask(ClientRequest::Replan(Box::new(other)));
                assert!(matches!(refused, None | Some(ClientReply::Refused(_))), "{refused:?}");
            }
            ClientReply::Refused(Refusal::NotReplanned(_)) => self.seen.replans_refused += 1,
            other => panic!("{other:?}"),
        }
    }

    /// A node's process dies and comes back.
    fn kill_node(&mut self, number: u64, away_ms: u64) {
        let name = NodeName(format!("n{number}"));
        if self.nodes[&name].up {
            self.seen.node_kills += 1;
            self.node(&name).die(false);
            self.at(self.now_ms + away_ms, Happening::Revive(name));
        }
    }

    fn flap(&mut self) {
        if let Some((away_ms, all)) = self.faults.kill_once.filter(|_| self.passed_ms() == KILL_AT_MS) {
            let first = if all { 1 } else { NODES };
            (first..=NODES).for_each(|number| self.kill_node(number, away_ms + number * COME_BACK_MS));
        }
        let every_ms = self.faults.flap_every_ms;
        if every_ms == 0 || self.passed_ms() > FLAPS_END_MS || !self.passed_ms().is_multiple_of(every_ms) {
            return;
        }
        self.kill_node(NODES, every_ms / 2);
    }

    fn dies_now(&mut self) -> Option<bool> {
        let decision = self.seen.decisions - 1;
        match self.faults.coordinator_kill_at {
            Some((at, appended)) if at == decision => return Some(appended),
            _ => {}
        }
        let every = self.faults.coordinator_kill_every;
        (every > 0 && self.faulty() && self.random.below(every) == 0).then(|| self.random.chance(500))
    }

    fn kill_coordinator(&mut self, appended: bool) {
        self.seen.coordinator_kills += 1;
        if appended {
            self.check_fold();
        }
        self.coordinator = None;
        self.leases.clear();
        self.tickets.clear();
        let away_ms = self.random.between(100, 2500);
        self.at(self.now_ms + away_ms, Happening::StartCoordinator);
    }

    fn check_fold(&self) {
        let folded = State::replay(self.log.iter().cloned());
        assert!(self.coordinator.as_ref().is_some_and(|coordinator| *coordinator.state() == folded));
    }

    fn start_coordinator(&mut self) {
        let state = State::replay(self.log.iter().cloned());
        let options = Options { backoff_max_ms: 1000, ..Options::default() };
        let (coordinator, effects) = Coordinator::start(self.cluster.clone(), options, state, self.now_ms);
        self.append(effects.events);
        self.coordinator_incarnation += 1;
        self.coordinator = Some(coordinator);
    }

    fn disturb(&mut self) {
        self.replay_something();
        if let Some(frozen_ms) = self.faults.freeze_once_ms
            && self.passed_ms() == 3000
        {
            let last = self.nodes.keys().next_back().cloned();
            last.iter().for_each(|name| self.freeze(name, frozen_ms));
        }
        let every_ms = self.faults.node_fault_every_ms;
        if every_ms > 0 && self.faulty() && self.now_ms >= self.next_node_fault_ms {
            self.next_node_fault_ms = self.now_ms + self.random.between(every_ms / 2, every_ms * 2);
            // One at a time: two copies survive no more than that.
            if self.nodes.values().all(Node::runs) {
                self.disturb_a_node();
            }
        }
    }

    fn replay_something(&mut self) {
        if self.past.is_empty() || !self.faulty() || !self.random.chance(self.faults.replayed_per_mille) {
            return;
        }
        let index = self.random.below(self.past.len() as u64) as usize;
        let (node, report) = self.past[index].clone();
        // An old Hello would be heard as a new one; TLS keeps those from being replayed.
        if !matches!(report.body, NodeReport::Hello(_)) {
            self.seen.replayed += 1;
            self.deliver(node, u64::MAX, report);
        }
    }

    fn disturb_a_node(&mut self) {
        let name = NodeName(format!("n{}", self.random.between(1, NODES)));
        let away_ms = self.random.between(100, 6000);
        match self.random.below(3) {
            0 => self.freeze(&name, away_ms),
            kind => {
                self.seen.node_kills += 1;
                self.node(&name).die(kind == 1);
                self.at(self.now_ms + away_ms, Happening::Revive(name));
                // Copies have to be made before another one dies.
                self.next_node_fault_ms += 4000;
            }
        }
    }

    fn freeze(&mut self, name: &NodeName, frozen_ms: u64) {
        self.seen.freezes += 1;
        self.node(name).frozen = true;
        self.at(self.now_ms + frozen_ms, Happening::Thaw(name.clone()));
    }
}

/// What a person sends who has looked at the job's spec.
fn replan(job: JobId, spec: &JobSpec, plan: ParallelPlan, steps: u64) -> Replan {
    let stage = spec.stages.iter().find(|stage| stage.name == jobs::TRAIN).expect("a training");
    let mut phase = stage.phases[0].clone();
    phase.fan = Fan::Gang(plan);
    Replan {
        job,
        stage: stage.name.clone(),
        from_json: stage.options_json.clone(),
        options_json: jobs::options_json(&plan, steps),
        phase,
    }
}
