//! Where units go: single tasks where there is room, near their inputs; services apart from each
//! other; gangs all at once, by [`sixfold_topology::place`].

mod offer;
#[cfg(test)]
mod tests;

use sixfold_cluster::protocol::NodeCommand;
use sixfold_cluster::task::{SavedState, TaskSpec};
use sixfold_topology::{NodeResources, ParallelPlan, RankNeeds, place};
use sixfold_wire::id::{ArtifactId, JobId, NodeName, TaskId};

use super::Coordinator;
use super::outbox::Key;
use super::replan::options_under;
use crate::event::{UnitEvent, UnitId};
use crate::job::{Fan, Resources};
use crate::message::JobState;
use crate::state::job::{Job, Phase};
use crate::state::unit::{SavedStep, Standing, Unit};

pub(super) use offer::{Offer, domain_of};

/// Ranks of a gang whose placement is explained.
const RANKS_EXPLAINED: usize = 64;
/// Saved steps that a task is told: the newest, and one for the case that it is damaged.
const RESUME_POINTS: usize = 2;

/// Nodes for a unit's members, and why.
struct Choice {
    nodes: Vec<NodeName>,
    why: String,
}

/// Why a unit is not placed now.
enum Wait {
    /// There is no room; nor is there for others of the phase.
    NoRoom(String),
    /// An input, or what it needs, is on no node.
    Lost(ArtifactId),
}

impl Coordinator {
    /// Places whatever can be placed.
    pub(super) fn place_waiting(&mut self) {
        let mut offers = None;
        for (job, phase) in self.phases_with_waiting() {
            let offers = offers.get_or_insert_with(|| self.offers());
            for unit in self.due_units(job, phase) {
                let id = UnitId { job, phase, unit };
                if !self.place_unit(id, offers) {
                    break;
                }
            }
        }
    }

    fn phases_with_waiting(&self) -> Vec<(JobId, u32)> {
        let phases = self.state.open_jobs().flat_map(|(id, job)| {
            let waiting = (0..).zip(&job.phases).filter(|(_, phase)| !phase.waiting.is_empty());
            waiting.map(move |(index, _)| (id, index))
        });
        phases.collect()
    }

    fn due_units(&self, job: JobId, phase: u32) -> Vec<u32> {
        let Some(phase) = self.state.phase(job, phase) else { return Vec::new() };
        let is_due = |unit: &&u32| {
            let standing = phase.units.get(**unit as usize).map(|unit| unit.standing);
            matches!(standing, Some(Standing::Waiting { not_before_ms }) if not_before_ms <= self.now_ms)
        };
        phase.waiting.iter().filter(is_due).copied().collect()
    }

    /// Returns whether it makes sense to try other units of the phase.
    fn place_unit(&mut self, id: UnitId, offers: &mut [Offer]) -> bool {
        if let Some(why) = self.refit(id, offers) {
            self.waits.insert(id, why);
            return false;
        }
        match self.choose(id, offers) {
            Some(Ok(choice)) => {
                self.inputs_lost.remove(&id);
                self.waits.remove(&id);
                self.start_unit(id, choice, offers);
                true
            }
            Some(Err(Wait::NoRoom(why))) => {
                self.waits.insert(id, why);
                self.state.unit(id).is_some_and(|unit| unit.failures.last.is_some())
            }
            Some(Err(Wait::Lost(artifact))) => {
                self.wait_for_input(id, artifact);
                self.state.job_state(id.job).is_some_and(|state| !state.has_ended())
            }
            None => false,
        }
    }

    fn choose(&self, id: UnitId, offers: &[Offer]) -> Option<Result<Choice, Wait>> {
        let phase = self.state.phase(id.job, id.phase)?;
        let unit = phase.units.get(id.unit as usize)?;
        let able = self.able(unit, offers);
        let choice = match &phase.spec.fan {
            Fan::Gang(plan) => choose_for_gang(plan, phase.spec.resources, &able),
            Fan::Single | Fan::PerInput | Fan::Replicas(_) => self.choose_for_task(phase, id.unit, &able),
        };
        let read = self.state.catalogue.with_needs(phase.inputs_of(id.unit));
        let lost = read.into_iter().find(|artifact| !self.is_available(*artifact));
        Some(match (choice, lost) {
            (Err(why), _) => Err(Wait::NoRoom(why)),
            (Ok(_), Some(artifact)) => Err(Wait::Lost(artifact)),
            (Ok(choice), None) => Ok(choice),
        })
    }

    /// Nodes that may get the unit: those that did not say that they cannot do it, and of these,
    /// where there are such, those on which it has restarts left.
    pub(super) fn able<'a>(&self, unit: &Unit, offers: &'a [Offer]) -> Vec<&'a Offer> {
        let failures = &unit.failures;
        let able: Vec<&Offer> =
            offers.iter().filter(|offer| !failures.refused_by.contains(&offer.name)).collect();
        let budget = self.options.restarts_per_node;
        let fresh = |offer: &&&Offer| failures.by_node.get(&offer.name).copied().unwrap_or(0) < budget;
        let fresh: Vec<&Offer> = able.iter().filter(fresh).copied().collect();
        if fresh.is_empty() { able } else { fresh }
    }

    fn choose_for_task(&self, phase: &Phase, unit: u32, able: &[&Offer]) -> Result<Choice, String> {
        let needs = phase.spec.resources;
        let inputs = self.state.catalogue.with_needs(phase.inputs_of(unit));
        let has_room = |offer: &&&Offer| offer.fits(needs) && (phase.is_service() || offer.has_room(needs));
        let here = |offer: &Offer| inputs.iter().filter(|input| self.is_held(**input, &offer.name)).count();
        let siblings = |offer: &Offer| if phase.is_service() { count_siblings(phase, offer) } else { 0 };
        let best = able.iter().filter(has_room).min_by_key(|offer| {
            (offer.flapping, siblings(offer), inputs.len() - here(offer), offer.load(needs), &offer.name)
        });
        let Some(best) = best else { return Err(offer::explain_no_room(able, needs)) };
        let why = format!(
            "{}: {} of {} core(s) busy, {} of {} input(s) there; chosen of {} node(s)",
            best.name,
            best.busy_threads,
            best.cores,
            here(best),
            inputs.len(),
            able.len(),
        );
        Ok(Choice { nodes: vec![best.name.clone()], why })
    }

    fn is_held(&self, id: ArtifactId, node: &NodeName) -> bool {
        self.state.catalogue.get(id).is_some_and(|record| record.holders.contains(node))
    }

    /// Whether some node of the cluster has it.
    fn is_available(&self, id: ArtifactId) -> bool {
        self.state.catalogue.holders(id).any(|node| self.state.is_member(node))
    }

    /// A node that was lost may come back with the artefact; if none does, the job cannot go on.
    fn wait_for_input(&mut self, id: UnitId, artifact: ArtifactId) {
        let since = *self.inputs_lost.entry(id).or_insert(self.now_ms);
        let phase = self.state.phase(id.job, id.phase);
        let why = match phase.is_some_and(|phase| phase.inputs_of(id.unit).contains(&artifact)) {
            true => format!("its input {artifact} is on no node that is up"),
            false => format!("{artifact}, which one of its inputs needs, is on no node that is up"),
        };
        if self.now_ms.saturating_sub(since) >= self.options.lost_artifact_ms {
            let stage = self.state.jobs.get(&id.job).map_or("", |job| job.stage_name(id.phase));
            let message = format!("stage `{stage}`: {why}; every copy was lost");
            return self.end_job(id.job, JobState::Failed, Some(message));
        }
        self.waits.insert(id, why);
    }

    fn start_unit(&mut self, id: UnitId, choice: Choice, offers: &mut [Offer]) {
        let Some(phase) = self.state.phase(id.job, id.phase) else { return };
        let Some(unit) = phase.units.get(id.unit as usize) else { return };
        let fits = self.has_slots(id, offers);
        for node in &choice.nodes {
            if let Some(offer) = offers.iter_mut().find(|offer| &offer.name == node) {
                offer.take(phase.spec.resources, phase.is_service());
            }
        }
        let saved: Vec<SavedStep> = self.resume_points(unit).cloned().collect();
        let epoch = self.state.attempts.next();
        let Choice { nodes, why } = choice;
        let step = saved.first().map(|saved| saved.step);
        self.record_unit(id, UnitEvent::Placed { epoch, nodes: nodes.clone(), step, why, fits });
        for (member, node) in (0..).zip(nodes) {
            if let Some(spec) = self.task_spec(id, member, &saved) {
                let key = Key::Start(spec.id);
                self.send(&node, key, NodeCommand::Start { spec, epoch });
            }
        }
    }

    /// The newest steps of which every member's state is on some node, the newest first.
    fn resume_points<'a>(&'a self, unit: &'a Unit) -> impl Iterator<Item = &'a SavedStep> {
        let complete = |saved: &&SavedStep| saved.artifacts.iter().all(|id| self.is_available(*id));
        unit.states.iter().rev().filter(complete).take(RESUME_POINTS)
    }

    fn task_spec(&self, id: UnitId, member: u32, saved: &[SavedStep]) -> Option<TaskSpec> {
        let job: &Job = self.state.jobs.get(&id.job)?;
        let phase = job.phases.get(id.phase as usize)?;
        let stage = job.spec.stages.get(phase.stage)?;
        let states_of = |saved: &SavedStep| {
            let step = saved.step;
            saved.artifacts.iter().map(move |&artifact| SavedState { artifact, step }).collect::<Vec<_>>()
        };
        Some(TaskSpec {
            id: TaskId { job: id.job, phase: id.phase, index: phase.task_index(id.unit, member) },
            role: phase.spec.role.clone(),
            stage: stage.name.clone(),
            count: u32::try_from(phase.tasks()).unwrap_or(u32::MAX),
            options_json: options_under(&stage.options_json, &phase.spec),
            inputs: phase.inputs_of(id.unit).to_vec(),
            resume: saved.iter().flat_map(states_of).collect(),
        })
    }
}

/// Replicas of the phase that would fail together with one there.
fn count_siblings(phase: &Phase, offer: &Offer) -> usize {
    let placed = phase.active.iter().filter_map(|unit| phase.units.get(*unit as usize)?.node_of(0));
    placed.filter(|node| offer.domain_nodes.contains(*node)).count()
}

/// Those that have room and do not come and go, where there are such.
pub(super) fn steady<'a>(needs: Resources, able: &[&'a Offer]) -> Vec<&'a Offer> {
    let any: Vec<&Offer> = able.iter().copied().filter(|offer| offer.fits(needs)).collect();
    let steady: Vec<&Offer> = any.iter().copied().filter(|offer| !offer.flapping).collect();
    if steady.is_empty() { any } else { steady }
}

fn choose_for_gang(plan: &ParallelPlan, needs: Resources, able: &[&Offer]) -> Result<Choice, String> {
    let chosen = steady(needs, able);
    let nodes: Vec<NodeResources> = chosen.iter().map(|offer| offer.resources()).collect();
    let needs = RankNeeds { memory_bytes: needs.memory_bytes, threads: needs.threads };
    let placement = place(plan, needs, &nodes).map_err(|error| error.to_string())?;
    let names = placement.nodes.iter().filter_map(|&index| chosen.get(index));
    let reasons: Vec<String> = placement.reasons.into_iter().take(RANKS_EXPLAINED).collect();
    Ok(Choice { nodes: names.map(|offer| offer.name.clone()).collect(), why: reasons.join("\n") })
}
