//! A unit: what is placed, and fails, together. One task, or all ranks of a gang.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use sixfold_cluster::task::{ErrorClass, Metrics};
use sixfold_wire::id::{ArtifactId, Epoch, NodeName};

use crate::event::{Blame, UnitEvent};

/// States that are remembered; more than any option keeps, so that the fold needs no options.
const STATES_MAX: usize = 64;

/// A unit of a phase.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Unit {
    pub(crate) standing: Standing,
    /// The newest attempt; while waiting, the one that was lost.
    pub(crate) attempt: Option<Attempt>,
    pub(crate) members: Vec<Member>,
    /// Steps that all members saved, oldest first.
    pub(crate) states: Vec<SavedStep>,
    pub(crate) failures: Failures,
}

/// How a unit stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// For a place, not before that time.
    Waiting { not_before_ms: u64 },
    /// Its newest attempt is placed.
    Active,
    /// All members succeeded.
    Done,
}

/// A placed attempt.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Attempt {
    pub(crate) epoch: Epoch,
    /// One a member.
    pub(crate) nodes: Vec<NodeName>,
    pub(crate) placed_ms: u64,
    pub(crate) resumed: bool,
    /// Where a gang's members listen, once all do.
    pub(crate) addresses: Vec<SocketAddr>,
    /// Whether it was lost with its node, so that it may be adopted if the node comes back.
    pub(crate) lost: bool,
    pub(crate) why: String,
}

/// A member: the task of a single unit, a rank of a gang.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Member {
    pub(crate) result: Option<MemberResult>,
    pub(crate) service: Option<MemberService>,
}

/// How a member succeeded.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct MemberResult {
    pub(crate) artifacts: Vec<ArtifactId>,
    pub(crate) metrics: Metrics,
}

/// Where a member takes requests.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct MemberService {
    pub(crate) address: SocketAddr,
    pub(crate) about: Metrics,
}

/// A step that all members saved.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct SavedStep {
    pub(crate) step: u64,
    /// One a member.
    pub(crate) artifacts: Vec<ArtifactId>,
}

/// What went wrong since the last progress.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Failures {
    /// In a row, held against the task.
    pub(crate) own: u32,
    /// In a row, with its node.
    pub(crate) node_losses: u32,
    pub(crate) by_node: BTreeMap<NodeName, u32>,
    /// Nodes that cannot do it.
    pub(crate) refused_by: BTreeSet<NodeName>,
    /// The last one, for people.
    pub(crate) last: Option<String>,
    /// Whether it has ever taken requests.
    pub(crate) has_served: bool,
}

impl Unit {
    pub(crate) fn new(members: usize) -> Self {
        Self {
            standing: Standing::Waiting { not_before_ms: 0 },
            attempt: None,
            members: vec![Member::default(); members],
            states: Vec::new(),
            failures: Failures::default(),
        }
    }

    /// The attempt, where it is placed now.
    pub(crate) fn current(&self) -> Option<&Attempt> {
        self.attempt.as_ref().filter(|_| self.standing == Standing::Active)
    }

    /// Another plan: that many members wait for a place, from now on.
    pub(super) fn reshape(&mut self, at_ms: u64, members: usize) {
        self.members = vec![Member::default(); members];
        self.attempt = None;
        self.standing = Standing::Waiting { not_before_ms: at_ms };
    }

    /// Where a member of the newest attempt was placed.
    pub(crate) fn node_of(&self, member: u32) -> Option<&NodeName> {
        self.attempt.as_ref()?.nodes.get(member as usize)
    }

    pub(super) fn apply(&mut self, at_ms: u64, event: &UnitEvent) {
        match event {
            UnitEvent::Placed { epoch, nodes, why, .. } => {
                self.attempt = Some(Attempt {
                    epoch: *epoch,
                    nodes: nodes.clone(),
                    placed_ms: at_ms,
                    resumed: false,
                    addresses: Vec::new(),
                    lost: false,
                    why: why.clone(),
                });
                self.standing = Standing::Active;
                self.members.fill(Member::default());
            }
            UnitEvent::Adopted => {
                self.standing = Standing::Active;
                self.mark(|attempt| attempt.lost = false);
            }
            UnitEvent::Resumed { addresses } => self.mark(|attempt| {
                attempt.resumed = true;
                attempt.addresses = addresses.clone();
            }),
            UnitEvent::Serving { member, address, about } => {
                if let Some(member) = self.members.get_mut(*member as usize) {
                    member.service = Some(MemberService { address: *address, about: about.clone() });
                    self.failures.has_served = true;
                }
            }
            UnitEvent::Saved { step, artifacts } => self.save(*step, artifacts),
            UnitEvent::WentOn { .. } => {}
            UnitEvent::Succeeded { member, artifacts, metrics } => {
                let result = MemberResult { artifacts: artifacts.clone(), metrics: metrics.clone() };
                if let Some(member) = self.members.get_mut(*member as usize) {
                    member.result = Some(result);
                }
                if self.members.iter().all(|member| member.result.is_some()) {
                    self.standing = Standing::Done;
                }
            }
            UnitEvent::Failed { node, blame, message, failures, retry_at_ms, .. } => {
                self.standing = Standing::Waiting { not_before_ms: *retry_at_ms };
                self.mark(|attempt| attempt.lost = *blame == Blame::Node);
                self.members.iter_mut().for_each(|member| member.service = None);
                self.failures.add(node, *blame, message, *failures);
            }
        }
    }

    fn mark(&mut self, change: impl FnOnce(&mut Attempt)) {
        if let Some(attempt) = &mut self.attempt {
            change(attempt);
        }
    }

    fn save(&mut self, step: u64, artifacts: &[ArtifactId]) {
        if self.states.last().is_none_or(|newest| newest.step < step) {
            self.failures.forget();
        }
        self.states.retain(|saved| saved.step != step);
        let place = self.states.partition_point(|saved| saved.step < step);
        self.states.insert(place, SavedStep { step, artifacts: artifacts.to_vec() });
        if self.states.len() > STATES_MAX {
            self.states.remove(0);
        }
    }
}

impl Failures {
    fn add(&mut self, node: &NodeName, blame: Blame, message: &str, failures: u32) {
        self.last = Some(message.to_owned());
        match blame {
            Blame::Nobody => {}
            Blame::Node => self.node_losses = failures,
            Blame::Task(class) => {
                if failures <= 1 {
                    self.by_node.clear();
                }
                self.own = failures;
                *self.by_node.entry(node.clone()).or_default() += 1;
                if class == ErrorClass::Escalate {
                    self.refused_by.insert(node.clone());
                }
            }
        }
    }

    /// After progress; what a node said that it cannot do stays true.
    pub(super) fn forget(&mut self) {
        self.own = 0;
        self.node_losses = 0;
        self.by_node.clear();
    }
}
