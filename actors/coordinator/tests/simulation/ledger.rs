//! Reads a log as an auditor would: knows the rules, not the state machine.

use std::collections::{BTreeMap, BTreeSet};

use sixfold_coordinator::event::{Entry, Event, JobEvent, UnitEvent, UnitId};
use sixfold_coordinator::message::JobState;
use sixfold_wire::id::{Epoch, JobId};

#[derive(Default)]
struct Account {
    epoch: Option<Epoch>,
    active: bool,
    results: BTreeSet<u32>,
}

pub(crate) fn is_failure(event: &Event) -> bool {
    matches!(event, Event::Unit(_, UnitEvent::Failed { .. }))
}

/// Panics where the log breaks a rule.
pub(crate) fn check(log: &[Entry]) {
    let mut units: BTreeMap<UnitId, Account> = BTreeMap::new();
    let mut jobs: BTreeMap<JobId, JobState> = BTreeMap::new();
    let mut coordinator = Epoch(0);
    let mut newest_attempt = Epoch(0);
    for entry in log {
        match &entry.event {
            Event::Started(epoch) => {
                assert!(*epoch > coordinator, "a coordinator's epoch grows");
                coordinator = *epoch;
            }
            Event::Job(job, JobEvent::Submitted { .. }) => {
                assert_eq!(jobs.insert(*job, JobState::Running), None, "a job is submitted once");
            }
            Event::Job(job, JobEvent::Became { state, .. }) => {
                let before = jobs.insert(*job, *state).expect("a known job");
                assert!(!before.has_ended(), "a job ends once");
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
