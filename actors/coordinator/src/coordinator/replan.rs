//! Another plan for a gang, because a person asks for it.

use serde_json::{Map, Value};
use sixfold_topology::ParallelPlan;

use super::Coordinator;
use super::elastic::total;
use crate::event::{UnitId, Wanted};
use crate::job::{GangRules, PhaseSpec, StageSpec};
use crate::message::{ClientReply, Refusal, Replan};
use crate::state::job::{Job, Phase, PhaseState};

/// A gang that may get another plan.
struct Found<'a> {
    id: UnitId,
    job: &'a Job,
    phase: &'a Phase,
    stage: &'a StageSpec,
    rules: &'a GangRules,
}

fn refuse<T>(reason: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal::NotReplanned(reason.into()))
}

fn object(json: &str) -> Option<Map<String, Value>> {
    match serde_json::from_str(json) {
        Ok(Value::Object(object)) => Some(object),
        _ => None,
    }
}

/// A stage's options with the degrees of the plan that its gang has now, under the names that the plan's own form has.
pub(super) fn options_under(options_json: &str, phase: &PhaseSpec) -> String {
    let (Some(plan), Some(_)) = (phase.plan(), &phase.rules) else { return options_json.to_owned() };
    let (Some(mut options), Some(degrees)) = (object(options_json), degrees(&plan)) else {
        return options_json.to_owned();
    };
    options.extend(degrees);
    Value::Object(options).to_string()
}

fn degrees(plan: &ParallelPlan) -> Option<Map<String, Value>> {
    serde_json::to_value(plan).ok()?.as_object().cloned()
}

impl Coordinator {
    pub(super) fn replan(&mut self, request: &Replan) -> Result<ClientReply, Refusal> {
        let found = self.find_gang(request)?;
        let (id, interrupts) = (found.id, !found.phase.units.is_empty());
        if !same(&found.stage.options_json, &request.options_json) {
            let plan = check(&found, request)?;
            self.check_slots(&found, plan, &request.phase)?;
            let (options_json, phase) = (request.options_json.clone(), request.phase.clone());
            self.change_plan(id, plan, Some(Wanted { options_json, phase }), "asked for".to_owned());
        }
        let last = self.state.jobs.get(&id.job).and_then(|job| job.plan_changes.last());
        Ok(ClientReply::Replanned { number: last.map_or(0, |change| change.number), interrupts })
    }

    fn find_gang(&self, request: &Replan) -> Result<Found<'_>, Refusal> {
        let job = self.state.jobs.get(&request.job).ok_or(Refusal::NoSuchJob(request.job))?;
        if job.state.has_ended() {
            return refuse(format!("job {} has {}", request.job, job.state));
        }
        let name = &request.stage;
        let Some(index) = job.spec.stages.iter().position(|stage| stage.name == *name) else {
            let names: Vec<&str> = job.spec.stages.iter().map(|stage| stage.name.as_str()).collect();
            return refuse(format!("the job has no stage `{name}`; it has {}", names.join(", ")));
        };
        let stage = &job.spec.stages[index];
        let mut phases = (0..).zip(&job.phases);
        let Some((phase_index, phase)) = phases.find(|(_, phase)| phase.stage == index && phase.is_gang())
        else {
            return refuse(format!("stage `{name}` is of kind `{}`, which has no plan", stage.kind));
        };
        let Some(rules) = phase.spec.rules.as_ref() else {
            return refuse(format!("stage `{name}` does not say which of its options may change"));
        };
        let mut members = phase.units.iter().flat_map(|unit| &unit.members);
        if phase.state == PhaseState::Done || members.any(|member| member.result.is_some()) {
            return refuse(format!("stage `{name}` is done"));
        }
        Ok(Found { id: UnitId { job: request.job, phase: phase_index, unit: 0 }, job, phase, stage, rules })
    }

    /// Whether there is a slot for each rank. What asks for no more than the gang has is not held to that.
    fn check_slots(&self, found: &Found<'_>, plan: ParallelPlan, spec: &PhaseSpec) -> Result<(), Refusal> {
        let (now, threads) = (found.phase.spec.plan(), spec.resources.threads);
        let ranks = plan.world_size();
        let no_more =
            now.is_some_and(|now| ranks <= now.world_size()) && threads <= found.phase.spec.resources.threads;
        if no_more {
            return Ok(());
        }
        let offers = self.offers();
        let able = match found.phase.units.first() {
            Some(unit) => self.able(unit, &offers),
            None => offers.iter().collect(),
        };
        let slots = self.slots_for(found.id, spec, &able);
        let total = total(&slots);
        if ranks <= total {
            return Ok(());
        }
        let each: Vec<String> = slots.iter().map(|(node, slots)| format!("{node} {}", slots.ranks)).collect();
        refuse(format!(
            "{plan} has {ranks} ranks of {threads} thread(s); the nodes that are up have cores for {total}: {}",
            if each.is_empty() { "there is none".to_owned() } else { each.join(", ") }
        ))
    }
}

fn same(one: &str, other: &str) -> bool {
    object(one).is_some_and(|one| object(other) == Some(one))
}

/// Checks all but the nodes; the plan that is asked for.
fn check(found: &Found<'_>, request: &Replan) -> Result<ParallelPlan, Refusal> {
    let Replan { stage: name, from_json, options_json, phase: spec, .. } = request;
    if !same(&found.stage.options_json, from_json) {
        return refuse(format!(
            "the options of stage `{name}` have changed meanwhile; look at them and ask again"
        ));
    }
    let (Some(old), Some(new)) = (object(from_json), object(options_json)) else {
        return refuse("the options are no JSON object");
    };
    let free = &found.rules.free_options;
    let differs = |key: &&String| old.get(*key) != new.get(*key) && !free.contains(key);
    if let Some(key) = old.keys().chain(new.keys()).find(differs) {
        return refuse(format!(
            "`{name}.{key}` decides what comes out of the stage, so it cannot change while the job runs; these change \
             no bit and can: {}",
            free.join(", ")
        ));
    }
    let Some(plan) = spec.plan() else { return refuse("a gang's phase needs a plan") };
    let rules = spec.rules.as_ref();
    let like = rules.is_some_and(|rules| {
        rules.shape == found.rules.shape && rules.free_options == found.rules.free_options
    });
    if spec.role != found.phase.spec.role || !like || !same(&options_under(options_json, spec), options_json)
    {
        return refuse(
            "the phase is not what the options say; are client and coordinator of the same version?",
        );
    }
    check_spec(found, request)?;
    Ok(plan)
}

/// Checks what is checked when a job is submitted.
fn check_spec(found: &Found<'_>, request: &Replan) -> Result<(), Refusal> {
    let mut stage = found.stage.clone();
    stage.options_json.clone_from(&request.options_json);
    let first = found.job.phases.iter().position(|phase| phase.stage == found.phase.stage).unwrap_or(0);
    if let Some(phase) = stage.phases.get_mut(found.id.phase as usize - first) {
        *phase = request.phase.clone();
    }
    stage.validate().map_err(|error| Refusal::NotReplanned(error.to_string()))
}
