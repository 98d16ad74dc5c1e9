//! A job, its phases and its recoveries as the log knows them.

use std::collections::BTreeSet;
use std::sync::Arc;

use sixfold_topology::ParallelPlan;
use sixfold_wire::id::{ArtifactId, JobId, TaskId};

use super::unit::{Standing, Unit};
use crate::event::{Blame, JobEvent, UnitEvent, UnitId, Wanted};
use crate::job::{Fan, JobSpec, PhaseSpec};
use crate::message::{JobState, PlanChange, Recovery, RequestId};

/// Recoveries of a job that are kept, the newest.
const RECOVERIES_MAX: usize = 1000;
/// Changes of plans of a job that are kept, the newest.
const PLAN_CHANGES_MAX: usize = 1000;

/// A job as the log knows it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Job {
    /// What was submitted, with what was asked for since.
    pub(crate) spec: Arc<JobSpec>,
    pub(crate) state: JobState,
    pub(crate) message: Option<String>,
    pub(crate) submitted_ms: u64,
    pub(crate) ended_ms: Option<u64>,
    pub(crate) phases: Vec<Phase>,
    pub(crate) recoveries: Vec<Recovery>,
    pub(crate) plan_changes: Vec<PlanChange>,
}

/// A phase of a job.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Phase {
    /// Index of its stage.
    pub(crate) stage: usize,
    /// As it is now; a gang's plan may be a smaller one than the job's spec says.
    pub(crate) spec: PhaseSpec,
    /// Whether a gang has had a slot for each rank of the plan that is wanted.
    pub(crate) fitted: bool,
    /// When a gang's plan last followed the nodes that there are.
    pub(crate) resized_ms: Option<u64>,
    pub(crate) state: PhaseState,
    pub(crate) inputs: Vec<ArtifactId>,
    pub(crate) outputs: Vec<ArtifactId>,
    pub(crate) units: Vec<Unit>,
    /// Units that wait for a place.
    pub(crate) waiting: BTreeSet<u32>,
    /// Units that are placed.
    pub(crate) active: BTreeSet<u32>,
    pub(crate) started_ms: Option<u64>,
    pub(crate) ended_ms: Option<u64>,
}

/// How a phase stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PhaseState {
    /// Its inputs are not there yet.
    Blocked,
    Running,
    /// All replicas have been ready once; dead ones are replaced.
    Serving,
    Done,
}

impl Phase {
    fn new(stage: usize, spec: &PhaseSpec) -> Self {
        Self {
            stage,
            spec: spec.clone(),
            fitted: false,
            resized_ms: None,
            state: PhaseState::Blocked,
            inputs: Vec::new(),
            outputs: Vec::new(),
            units: Vec::new(),
            waiting: BTreeSet::new(),
            active: BTreeSet::new(),
            started_ms: None,
            ended_ms: None,
        }
    }

    fn start(&mut self, at_ms: u64, inputs: &[ArtifactId]) {
        let tasks = self.spec.fan.tasks(inputs.len());
        self.units = match self.spec.fan {
            Fan::Gang(_) => vec![Unit::new(tasks)],
            Fan::Single | Fan::PerInput | Fan::Replicas(_) => vec![Unit::new(1); tasks],
        };
        self.waiting = (0..).take(self.units.len()).collect();
        self.inputs = inputs.to_vec();
        self.state = PhaseState::Running;
        self.started_ms = Some(at_ms);
    }

    fn replan(&mut self, at_ms: u64, plan: ParallelPlan, wanted: Option<&Wanted>) {
        match wanted {
            Some(wanted) => {
                self.spec = wanted.phase.clone();
                self.fitted = false;
                self.units.iter_mut().for_each(|unit| unit.failures.forget());
            }
            None => self.resized_ms = Some(at_ms),
        }
        self.spec.fan = Fan::Gang(plan);
        self.units.iter_mut().for_each(|unit| unit.reshape(at_ms, plan.world_size()));
        self.waiting = (0..).take(self.units.len()).collect();
        self.active.clear();
    }

    pub(crate) fn is_gang(&self) -> bool {
        matches!(self.spec.fan, Fan::Gang(_))
    }

    pub(crate) fn is_service(&self) -> bool {
        matches!(self.spec.fan, Fan::Replicas(_))
    }

    /// Tasks of the phase.
    pub(crate) fn tasks(&self) -> usize {
        self.units.iter().map(|unit| unit.members.len()).sum()
    }

    /// Index in the phase of a unit's member.
    pub(crate) fn task_index(&self, unit: u32, member: u32) -> u32 {
        if self.is_gang() { member } else { unit }
    }

    /// The unit and member that the phase's task of that index is.
    pub(crate) fn locate(&self, index: u32) -> Option<(u32, u32)> {
        let (unit, member) = if self.is_gang() { (0, index) } else { (index, 0) };
        let members = self.units.get(unit as usize)?.members.len();
        ((member as usize) < members).then_some((unit, member))
    }

    /// What a unit's tasks read.
    pub(crate) fn inputs_of(&self, unit: u32) -> &[ArtifactId] {
        match self.spec.fan {
            Fan::PerInput => self.inputs.get(unit as usize..=unit as usize).unwrap_or_default(),
            Fan::Single | Fan::Gang(_) | Fan::Replicas(_) => &self.inputs,
        }
    }

    fn apply_unit(&mut self, at_ms: u64, index: u32, event: &UnitEvent) {
        let Some(unit) = self.units.get_mut(index as usize) else { return };
        self.fitted |= matches!(event, UnitEvent::Placed { fits: true, .. });
        unit.apply(at_ms, event);
        self.waiting.remove(&index);
        self.active.remove(&index);
        match unit.standing {
            Standing::Waiting { .. } => _ = self.waiting.insert(index),
            Standing::Active => _ = self.active.insert(index),
            Standing::Done => {}
        }
    }
}

impl Job {
    /// The job that an event submits.
    pub(super) fn submitted(at_ms: u64, event: &JobEvent) -> Option<(RequestId, Self)> {
        let JobEvent::Submitted { request, spec } = event else { return None };
        let job = Self {
            phases: spec.phases().map(|(stage, phase)| Phase::new(stage, phase)).collect(),
            spec: Arc::new(spec.clone()),
            state: JobState::Running,
            message: None,
            submitted_ms: at_ms,
            ended_ms: None,
            recoveries: Vec::new(),
            plan_changes: Vec::new(),
        };
        Some((request.clone(), job))
    }

    pub(super) fn apply(&mut self, at_ms: u64, event: &JobEvent) {
        match event {
            JobEvent::Submitted { .. } => {}
            JobEvent::PhaseStarted { phase, inputs } => {
                self.with_phase(*phase, |phase| phase.start(at_ms, inputs));
            }
            JobEvent::PhaseServing { phase } => self.with_phase(*phase, |phase| {
                phase.state = PhaseState::Serving;
                phase.outputs = phase.inputs.clone();
            }),
            JobEvent::PhaseDone { phase, outputs } => self.with_phase(*phase, |phase| {
                phase.state = PhaseState::Done;
                phase.outputs = outputs.clone();
                phase.ended_ms = Some(at_ms);
            }),
            JobEvent::Became { state, message } => {
                self.state = *state;
                self.message = message.clone();
                self.ended_ms = state.has_ended().then_some(at_ms);
            }
            JobEvent::Replanned { phase, plan, wanted, why } => {
                self.note_plan_change(at_ms, *phase, *plan, wanted.is_none(), why);
                if let Some(wanted) = wanted {
                    self.want(*phase, wanted);
                }
                self.with_phase(*phase, |phase| phase.replan(at_ms, *plan, wanted.as_ref()));
            }
        }
    }

    fn note_plan_change(&mut self, at_ms: u64, phase: u32, to: ParallelPlan, by_itself: bool, why: &str) {
        let Some(from) = self.phases.get(phase as usize).and_then(|phase| phase.spec.plan()) else { return };
        self.plan_changes.push(PlanChange {
            number: self.plan_changes.last().map_or(1, |last| last.number + 1),
            stage: self.stage_name(phase).to_owned(),
            from,
            to,
            by_itself,
            why: why.to_owned(),
            at_ms,
            placed_ms: None,
            resumed_ms: None,
            step: None,
            redone: None,
        });
        if self.plan_changes.len() > PLAN_CHANGES_MAX {
            self.plan_changes.remove(0);
        }
    }

    fn want(&mut self, phase: u32, wanted: &Wanted) {
        let Some((stage, place)) = self.place_of(phase) else { return };
        let Some(stage) = Arc::make_mut(&mut self.spec).stages.get_mut(stage) else { return };
        stage.options_json.clone_from(&wanted.options_json);
        if let Some(spec) = stage.phases.get_mut(place) {
            *spec = wanted.phase.clone();
        }
    }

    /// The stage of a phase, and its place among the phases of that.
    fn place_of(&self, phase: u32) -> Option<(usize, usize)> {
        let stage = self.phases.get(phase as usize)?.stage;
        let first = self.phases.iter().position(|other| other.stage == stage)?;
        Some((stage, phase as usize - first))
    }

    /// A phase as the job's spec wants it.
    pub(crate) fn wanted(&self, phase: u32) -> Option<&PhaseSpec> {
        let (stage, place) = self.place_of(phase)?;
        self.spec.stages.get(stage)?.phases.get(place)
    }

    fn with_phase(&mut self, phase: u32, change: impl FnOnce(&mut Phase)) {
        if let Some(phase) = self.phases.get_mut(phase as usize) {
            change(phase);
        }
    }

    pub(super) fn apply_unit(&mut self, at_ms: u64, id: UnitId, event: &UnitEvent) {
        self.track_recovery(at_ms, id, event);
        self.track_plan_change(at_ms, id, event);
        self.with_phase(id.phase, |phase| phase.apply_unit(at_ms, id.unit, event));
    }

    fn track_recovery(&mut self, at_ms: u64, id: UnitId, event: &UnitEvent) {
        let Some(phase) = self.phases.get(id.phase as usize) else { return };
        let task = TaskId { job: id.job, phase: id.phase, index: phase.task_index(id.unit, 0) };
        match event {
            UnitEvent::Failed { blame: Blame::Nobody, .. } => {}
            UnitEvent::Failed { node, message, silent_ms, .. } => {
                let stage = self.spec.stages.get(phase.stage).map(|stage| stage.name.clone());
                self.recoveries.push(Recovery {
                    task,
                    stage: stage.unwrap_or_default(),
                    node: node.clone(),
                    cause: message.clone(),
                    last_sign_ms: at_ms.saturating_sub(*silent_ms),
                    detected_ms: at_ms,
                    placed_ms: None,
                    resumed_ms: None,
                    step: None,
                    redone: None,
                });
                if self.recoveries.len() > RECOVERIES_MAX {
                    self.recoveries.remove(0);
                }
            }
            UnitEvent::Placed { step, .. } => {
                for recovery in self.open_recoveries(task) {
                    recovery.placed_ms.get_or_insert(at_ms);
                    recovery.step = *step;
                }
            }
            UnitEvent::Resumed { .. } | UnitEvent::Adopted => {
                self.open_recoveries(task).for_each(|recovery| recovery.resumed_ms = Some(at_ms));
            }
            UnitEvent::WentOn { step, redone } => {
                let waiting =
                    self.recoveries.iter_mut().filter(|one| one.task == task && one.redone.is_none());
                waiting.for_each(|recovery| {
                    recovery.resumed_ms = Some(at_ms);
                    recovery.step = Some(*step);
                    recovery.redone = Some(*redone);
                });
            }
            UnitEvent::Serving { .. } | UnitEvent::Saved { .. } | UnitEvent::Succeeded { .. } => {}
        }
    }

    fn track_plan_change(&mut self, at_ms: u64, id: UnitId, event: &UnitEvent) {
        let Some(phase) = self.phases.get(id.phase as usize).filter(|phase| phase.is_gang()) else { return };
        let stage = self.spec.stages.get(phase.stage).map_or("", |stage| &stage.name);
        let attempt = phase.units.get(id.unit as usize).and_then(|unit| unit.attempt.as_ref());
        let placed_ms = attempt.map(|attempt| attempt.placed_ms);
        // A change before the gang was started interrupted nothing.
        let started_ms = phase.started_ms.unwrap_or(at_ms);
        let of_gang = |change: &&mut PlanChange| change.stage == stage && change.at_ms >= started_ms;
        for change in self.plan_changes.iter_mut().filter(of_gang) {
            match event {
                UnitEvent::Placed { .. } if change.resumed_ms.is_none() => change.placed_ms = Some(at_ms),
                UnitEvent::Resumed { .. } if change.resumed_ms.is_none() => change.resumed_ms = Some(at_ms),
                // Of the attempt that the change led to, and of no later one.
                UnitEvent::WentOn { step, redone } if change.placed_ms == placed_ms => {
                    change.resumed_ms = Some(at_ms);
                    (change.step, change.redone) = (Some(*step), Some(*redone));
                }
                _ => {}
            }
        }
    }

    fn open_recoveries(&mut self, task: TaskId) -> impl Iterator<Item = &mut Recovery> {
        let of_task = move |recovery: &&mut Recovery| recovery.task == task && recovery.resumed_ms.is_none();
        self.recoveries.iter_mut().filter(of_task)
    }

    /// Index of the last phase of a stage.
    pub(crate) fn last_phase_of(&self, stage: usize) -> Option<&Phase> {
        self.phases.iter().rev().find(|phase| phase.stage == stage)
    }

    /// Units whose newest attempt is placed.
    pub(crate) fn active_units(&self, job: JobId) -> impl Iterator<Item = (UnitId, &Phase, &Unit)> {
        (0..).zip(&self.phases).flat_map(move |(index, phase)| {
            phase.active.iter().filter_map(move |&unit| {
                let id = UnitId { job, phase: index, unit };
                Some((id, phase, phase.units.get(unit as usize)?))
            })
        })
    }

    /// Name of a phase's stage.
    pub(crate) fn stage_name(&self, phase: u32) -> &str {
        let stage = self.phases.get(phase as usize).and_then(|phase| self.spec.stages.get(phase.stage));
        stage.map_or("", |stage| &stage.name)
    }
}
