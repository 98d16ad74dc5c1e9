//! From finished phases to the next ones, and to the end of the job.

use sixfold_cluster::protocol::NodeCommand;
use sixfold_wire::id::{ArtifactId, JobId};

use super::Coordinator;
use super::outbox::Key;
use crate::event::{ArtifactEvent, JobEvent, UnitId};
use crate::job::TASKS_PER_PHASE_MAX;
use crate::message::JobState;
use crate::state::job::{Job, Phase, PhaseState};
use crate::state::unit::{SavedStep, Standing, Unit};

/// What a job does next.
enum Step {
    Start { phase: u32, inputs: Vec<ArtifactId> },
    Serve { phase: u32 },
    Finish { phase: u32, outputs: Vec<ArtifactId> },
    Become(JobState),
}

/// A step that follows from how the job stands, if one does.
fn next_step(job: &Job) -> Option<Step> {
    for (index, phase) in (0..).zip(&job.phases) {
        match phase.state {
            PhaseState::Blocked => {
                if let Some(inputs) = inputs_of(job, index as usize) {
                    return Some(Step::Start { phase: index, inputs });
                }
            }
            PhaseState::Running if is_ready_service(phase) => return Some(Step::Serve { phase: index }),
            PhaseState::Running if is_done(phase) => {
                return Some(Step::Finish { phase: index, outputs: outputs_of(phase) });
            }
            PhaseState::Running | PhaseState::Serving | PhaseState::Done => {}
        }
    }
    let state = if job.phases.iter().all(|phase| phase.state == PhaseState::Done) {
        JobState::Succeeded
    } else if job.phases.iter().all(|phase| matches!(phase.state, PhaseState::Done | PhaseState::Serving)) {
        JobState::Serving
    } else {
        JobState::Running
    };
    (state != job.state).then_some(Step::Become(state))
}

/// A phase's inputs, once they are all there.
fn inputs_of(job: &Job, index: usize) -> Option<Vec<ArtifactId>> {
    let phase = job.phases.get(index)?;
    let available = |phase: &Phase| match phase.state {
        PhaseState::Done | PhaseState::Serving => Some(phase.outputs.clone()),
        PhaseState::Blocked | PhaseState::Running => None,
    };
    let previous = index.checked_sub(1).and_then(|previous| job.phases.get(previous));
    if let Some(previous) = previous.filter(|previous| previous.stage == phase.stage) {
        return available(previous);
    }
    let stage = job.spec.stages.get(phase.stage)?;
    let inputs: Option<Vec<_>> =
        stage.inputs.iter().map(|&input| available(job.last_phase_of(input)?)).collect();
    Some(inputs?.concat())
}

fn is_done(phase: &Phase) -> bool {
    phase.waiting.is_empty() && phase.active.is_empty()
}

fn is_ready_service(phase: &Phase) -> bool {
    let serves = |unit: &Unit| unit.members.iter().all(|member| member.service.is_some());
    phase.is_service() && phase.units.iter().all(serves)
}

fn outputs_of(phase: &Phase) -> Vec<ArtifactId> {
    let members = phase.units.iter().flat_map(|unit| &unit.members);
    members.filter_map(|member| member.result.as_ref()).flat_map(|result| result.artifacts.clone()).collect()
}

impl Coordinator {
    /// Takes every job as far as it goes by itself.
    pub(super) fn advance_jobs(&mut self) {
        let open: Vec<JobId> = self.state.open_jobs().map(|(id, _)| id).collect();
        for job in open {
            self.advance_job(job);
        }
    }

    fn advance_job(&mut self, id: JobId) {
        while let Some(job) = self.state.jobs.get(&id).filter(|job| !job.state.has_ended()) {
            match next_step(job) {
                None => return,
                Some(Step::Start { phase, inputs }) => self.start_phase(id, phase, inputs),
                Some(Step::Serve { phase }) => self.record_job(id, JobEvent::PhaseServing { phase }),
                Some(Step::Finish { phase, outputs }) => {
                    self.record_job(id, JobEvent::PhaseDone { phase, outputs });
                }
                Some(Step::Become(JobState::Succeeded)) => self.end_job(id, JobState::Succeeded, None),
                Some(Step::Become(state)) => self.become_state(id, state, None),
            }
        }
    }

    fn start_phase(&mut self, id: JobId, phase: u32, inputs: Vec<ArtifactId>) {
        if inputs.len() > TASKS_PER_PHASE_MAX {
            let stage = self.state.jobs.get(&id).map_or("", |job| job.stage_name(phase));
            let count = inputs.len();
            let message =
                format!("stage `{stage}`: {count} inputs; a phase takes {TASKS_PER_PHASE_MAX} at most");
            return self.end_job(id, JobState::Failed, Some(message));
        }
        self.record_job(id, JobEvent::PhaseStarted { phase, inputs });
    }

    /// Stops what still runs of a job. A service is given time for the requests that it has begun.
    pub(super) fn end_job(&mut self, id: JobId, state: JobState, message: Option<String>) {
        let Some(job) = self.state.jobs.get(&id).filter(|job| !job.state.has_ended()) else { return };
        let active: Vec<(UnitId, bool)> =
            job.active_units(id).map(|(unit, phase, _)| (unit, phase.is_service())).collect();
        let stops: Vec<_> =
            active.into_iter().map(|(unit, drain)| (self.stops_of(unit, |_| true), drain)).collect();
        self.become_state(id, state, message);
        for (stops, drain) in stops {
            self.send_stops(stops, drain);
        }
        self.gangs.forget_job(id);
        self.waits.retain(|unit, _| unit.job != id);
        self.inputs_lost.retain(|unit, _| unit.job != id);
        self.live.drop_job_figures(id);
        if state == JobState::Succeeded {
            self.discard_states_of(id);
        }
    }

    /// Drops saved states that a later attempt would no longer go on from.
    pub(super) fn discard_old_states(&mut self, id: UnitId) {
        let Some(unit) = self.state.unit(id) else { return };
        let old = unit.states.len().saturating_sub(self.options.states_kept.max(1));
        let artifacts = artifacts_of(&unit.states[..old]);
        self.discard(artifacts);
    }

    fn discard_states_of(&mut self, id: JobId) {
        let Some(job) = self.state.jobs.get(&id) else { return };
        let units = job.phases.iter().flat_map(|phase| &phase.units);
        let artifacts = units.flat_map(|unit| artifacts_of(&unit.states)).collect();
        self.discard(artifacts);
    }

    fn discard(&mut self, mut artifacts: Vec<ArtifactId>) {
        artifacts.sort_unstable();
        artifacts.dedup();
        artifacts.retain(|id| self.state.catalogue.get(*id).is_some() && !self.is_needed(*id));
        if artifacts.is_empty() {
            return;
        }
        for &id in &artifacts {
            let holders: Vec<_> = self.state.catalogue.holders(id).cloned().collect();
            for node in holders {
                let discard = NodeCommand::Discard { artifacts: vec![id] };
                self.send(&node, Key::Discard(id), discard);
            }
        }
        self.record_artifact(ArtifactEvent::Discarded(artifacts));
    }

    /// Whether an artefact is an input or output of any job, or a state that an open job may go on
    /// from, or what another artefact cannot be read without. Equal jobs save equal states, so one job's rubbish may be
    /// another's hope.
    fn is_needed(&self, id: ArtifactId) -> bool {
        if self.state.catalogue.is_needed(id) {
            return true;
        }
        let kept = self.options.states_kept.max(1);
        self.state.jobs.values().any(|job| {
            job.phases.iter().any(|phase| {
                let in_flow = phase.inputs.contains(&id) || phase.outputs.contains(&id);
                in_flow
                    || phase.units.iter().any(|unit| {
                        let results = unit.members.iter().filter_map(|member| member.result.as_ref());
                        let newest = unit.states.len().saturating_sub(kept);
                        let may_resume = !job.state.has_ended() && unit.standing != Standing::Done;
                        results.into_iter().any(|result| result.artifacts.contains(&id))
                            || may_resume && artifacts_of(&unit.states[newest..]).contains(&id)
                    })
            })
        })
    }
}

fn artifacts_of(states: &[SavedStep]) -> Vec<ArtifactId> {
    states.iter().flat_map(|state| state.artifacts.iter().copied()).collect()
}
