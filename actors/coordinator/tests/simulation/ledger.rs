//! Reads a log as an auditor would: knows the rules, not the state machine.

use std::collections::{BTreeMap, BTreeSet};

use sixfold_coordinator::event::{Entry, Event, JobEvent, UnitEvent, UnitId};
use sixfold_coordinator::message::JobState;
use sixfold_topology::ParallelPlan;
use sixfold_wire::id::{Epoch, JobId};

#[derive(Default)]
struct Account {
    epoch: Option<Epoch>,
    active: bool,
    results: BTreeSet<u32>,
}

/// A plan and when it last followed the nodes that there are.
#[derive(Default)]
struct PlanAccount {
    ranks: usize,
    resized_ms: Option<u64>,
}

/// When plans followed the nodes that there were.
pub(crate) fn resizes_ms(log: &[Entry]) -> Vec<u64> {
    let of_itself =
        |entry: &&Entry| matches!(&entry.event, Event::Job(_, JobEvent::Replanned { wanted: None, .. }));
    log.iter().filter(of_itself).map(|entry| entry.at_ms).collect()
}

impl PlanAccount {
    fn change(&mut self, at_ms: u64, plan: &ParallelPlan, by_itself: bool, widen_after_ms: u64) {
        let ranks = plan.world_size();
        if by_itself {
            let wider = ranks > self.ranks;
            let early = self.resized_ms.is_some_and(|before| at_ms < before + widen_after_ms);
            assert!(!(wider && early), "a plan is not widened soon after a change");
            assert_ne!(ranks, self.ranks, "a change by itself changes something");
            self.resized_ms = Some(at_ms);
        }
        self.ranks = ranks;
    }
}

pub(crate) fn is_failure(event: &Event) -> bool {
    matches!(event, Event::Unit(_, UnitEvent::Failed { .. }))
}

/// Panics where the log breaks a rule.
pub(crate) fn check(log: &[Entry], widen_after_ms: u64) {
    let mut units: BTreeMap<UnitId, Account> = BTreeMap::new();
    let mut jobs: BTreeMap<JobId, JobState> = BTreeMap::new();
    let mut plans: BTreeMap<(JobId, u32), PlanAccount> = BTreeMap::new();
    let mut coordinator = Epoch(0);
    let mut newest_attempt = Epoch(0);
    for entry in log {
        match &entry.event {
            Event::Started(epoch) => {
                assert!(*epoch > coordinator, "a coordinator's epoch grows");
                coordinator = *epoch;
            }
            Event::Job(job, JobEvent::Submitted { spec, .. }) => {
                for (phase, (_, spec)) in (0..).zip(spec.phases()) {
                    let ranks = spec.plan().map_or(0, |plan| plan.world_size());
                    plans.insert((*job, phase), PlanAccount { ranks, resized_ms: None });
                }
                assert_eq!(jobs.insert(*job, JobState::Running), None, "a job is submitted once");
            }
            Event::Job(job, JobEvent::Became { state, .. }) => {
                let before = jobs.insert(*job, *state).expect("a known job");
                assert!(!before.has_ended(), "a job ends once");
            }
            Event::Job(job, JobEvent::Replanned { phase, plan, wanted, .. }) => {
                assert!(!jobs.get(job).expect("a known job").has_ended(), "an ended job keeps its plan");
                let account = plans.get_mut(&(*job, *phase)).expect("a known phase");
                account.change(entry.at_ms, plan, wanted.is_none(), widen_after_ms);
                let unit = units.entry(UnitId { job: *job, phase: *phase, unit: 0 }).or_default();
                assert!(unit.results.is_empty() || !unit.active, "a gang that is done keeps its plan");
                (unit.active, unit.epoch) = (false, None);
            }
            Event::Unit(unit, event) => {
                let job = jobs.get(&unit.job).expect("a known job");
                assert!(!job.has_ended(), "nothing happens to an ended job: {event:?}");
                check_unit(units.entry(*unit).or_default(), event, &mut newest_attempt);
            }
            Event::Job(..) | Event::Node(..) | Event::Artifact(_) | Event::Access(_) => {}
        }
    }
}

fn check_unit(account: &mut Account, event: &UnitEvent, newest_attempt: &mut Epoch) {
    match event {
        UnitEvent::Placed { epoch, .. } => {
            assert!(!account.active, "one attempt at a time");
            assert!(*epoch > *newest_attempt, "attempts have epochs of their own");
            *newest_attempt = *epoch;
            *account = Account { epoch: Some(*epoch), active: true, results: BTreeSet::new() };
        }
        UnitEvent::Adopted => {
            assert!(!account.active && account.epoch.is_some(), "only a lost attempt is taken back");
            account.active = true;
        }
        UnitEvent::Failed { .. } => {
            assert!(account.active, "only a placed attempt fails");
            account.active = false;
        }
        UnitEvent::Succeeded { member, .. } => {
            assert!(account.active, "only the newest attempt's result counts");
            assert!(account.results.insert(*member), "a result counts once");
        }
        UnitEvent::Resumed { .. }
        | UnitEvent::Serving { .. }
        | UnitEvent::Saved { .. }
        | UnitEvent::WentOn { .. } => {
            assert!(account.active, "only a placed attempt works");
        }
    }
}
