//! What happened while a job trained, by step where that is known: [`Event`].

use serde::Serialize;
use sixfold_coordinator::message::{JobState, JobView, PlanChange, Recovery};
use sixfold_train::{History, NamedStraggler};

/// Events that are listed at most, the last ones.
pub(super) const EVENTS_MAX: usize = 100;

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Event {
    /// Steps that were done by then and remained; none where nobody said.
    pub(super) step: Option<u64>,
    pub(super) what: &'static str,
    pub(super) text: String,
}

impl Event {
    fn recovery(recovery: &Recovery) -> Self {
        let Recovery { node, cause, detected_ms, resumed_ms, step, redone, .. } = recovery;
        let mut text = format!("{node}: {cause}");
        if let Some(resumed) = resumed_ms {
            text +=
                &format!("; at work again after {:.1} s", resumed.saturating_sub(*detected_ms) as f64 / 1e3);
        }
        if let Some(redone) = redone {
            text += &format!(", {redone} step(s) done again");
        }
        Self { step: *step, what: "fault", text }
    }

    fn plan_change(change: &PlanChange) -> Self {
        let PlanChange { from, to, why, at_ms, resumed_ms, step, redone, .. } = change;
        let mut text = format!("{from} → {to}: {why}");
        if let Some(resumed) = resumed_ms {
            text += &format!("; at work again after {:.1} s", resumed.saturating_sub(*at_ms) as f64 / 1e3);
        }
        if let Some(redone) = redone {
            text += &format!(", {redone} step(s) done again");
        }
        Self { step: *step, what: "plan", text }
    }

    fn straggler(straggler: &NamedStraggler) -> Self {
        let NamedStraggler { step, rank, to_median } = straggler;
        let text =
            format!("rank {rank} took {to_median:.1} times as long as the median rank, step after step");
        Self { step: Some(*step), what: "straggler", text }
    }
}

/// Faults, changes of the plan, stragglers and the end, by step.
pub(super) fn of(view: &JobView, stage: &str, history: &History) -> Vec<Event> {
    let recoveries = view.recoveries.iter().filter(|recovery| recovery.stage == stage);
    let changes = view.plan_changes.iter().filter(|change| change.stage == stage);
    let mut events: Vec<Event> = recoveries.map(Event::recovery).collect();
    events.extend(changes.map(Event::plan_change));
    events.extend(history.stragglers.iter().map(Event::straggler));
    events.sort_by_key(|event| event.step.unwrap_or(0));
    if view.state == JobState::Failed {
        let text = view.message.clone().unwrap_or_default();
        events.push(Event { step: Some(history.steps), what: "failed", text });
    }
    let surplus = events.len().saturating_sub(EVENTS_MAX);
    events.drain(..surplus);
    events
}
