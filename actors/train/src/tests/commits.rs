//! Gangs that go on from states in memory.

use super::gang::{Damage, Gang, Outcome};
use super::{STEPS, options, undisturbed};
use crate::options::TrainOptions;

fn without_checkpoints(plan: &str) -> TrainOptions {
    TrainOptions { checkpoint_every_steps: 100, ..options(plan) }
}

/// A gang that ran to its end, with only the states that were there when it had done `step` steps.
fn killed_after(step: u64, options: TrainOptions) -> Gang {
    let gang = Gang::new(options);
    gang.run().unwrap();
    gang.memory.forget(|commit| commit.step > step);
    gang.memory.set_furthest(step);
    gang
}

fn assert_logged(outcome: &Outcome, text: &str) {
    assert!(outcome.log.iter().any(|line| line.contains(text)), "{text}: {:?}", outcome.log);
}

#[test]
fn every_rank_commits_the_same_steps_and_says_which_are_complete() {
    for plan in ["tp1", "tp2.pp2", "dp2.tp2"] {
        let gang = Gang::new(options(plan));
        gang.run().unwrap();
        let writers = gang.memory.commits().iter().filter(|(step, _)| *step == 1).count();
        let plan = options(plan).plan();
        assert_eq!(writers, plan.world_size(), "{plan}");
        let mut commits = gang.memory.commits();
        commits.sort_unstable();
        for steps in commits.chunks(writers) {
            assert!(steps.iter().all(|commit| *commit == steps[0]), "{plan}: {commits:?}");
            assert!(steps[0].1 < steps[0].0, "{plan}: {commits:?}");
        }
        assert!(commits.iter().all(|(step, _)| *step < STEPS), "the last step is saved durably");
    }
}

#[test]
fn no_state_is_committed_where_that_is_turned_off() {
    let gang = Gang::new(TrainOptions { commit_every_steps: 0, ..options("tp2") });
    let outcome = gang.run().unwrap();
    assert_eq!(gang.memory.commits(), []);
    assert_eq!(outcome.hashes(), undisturbed().hashes());
}

#[test]
fn any_plan_goes_on_from_states_in_memory() {
    let expected = undisturbed();
    for (before, after, zero_stage) in [
        ("tp2.pp2", "tp2.pp2", 1),
        ("tp2.pp2", "dp2", 1),
        ("dp2.tp2", "pp2", 1),
        ("dp2.tp2", "dp2.tp2", 1),
        ("dp4", "dp2", 0),
        ("dp2", "dp4", 1),
        ("tp1", "tp2.pp2", 1),
    ] {
        let gang = killed_after(4, without_checkpoints(before));
        let newest = gang.memory.commits().iter().map(|(step, _)| *step).max().unwrap();
        let next = gang.next_attempt(TrainOptions { zero_stage, ..without_checkpoints(after) });
        let outcome = next.run().unwrap();
        assert_eq!(outcome.hashes(), expected.hashes(), "{before} to {after}");
        assert_logged(&outcome, &format!("going on from step {newest}"));
        assert_eq!(next.memory.went_on(), [(newest, 4 - newest)]);
    }
}

#[test]
fn a_step_that_is_incomplete_or_damaged_in_memory_is_not_used() {
    let many = |plan| TrainOptions { steps: 40, ..without_checkpoints(plan) };
    let expected = Gang::new(many("tp1")).run().unwrap();
    type Harm = fn(&Gang, u64);
    let harms: [(&str, Harm); 2] = [
        ("damaged", |gang, step| gang.memory.damage(step)),
        ("incomplete", |gang, step| {
            let last = gang.memory.commits().iter().rposition(|(other, _)| *other == step).unwrap();
            let seen = std::cell::Cell::new(0);
            gang.memory.forget(|_| seen.replace(seen.get() + 1) == last);
        }),
    ];
    let plans = ["tp2.pp2", "dp2", "dp2.tp2"];
    for ((name, harm), plan) in harms.into_iter().flat_map(|harm| plans.map(|plan| (harm, plan))) {
        let gang = killed_after(35, many(plan));
        let mut steps: Vec<u64> = gang.memory.commits().iter().map(|(step, _)| *step).collect();
        steps.sort_unstable();
        steps.dedup();
        let [.., older, newest] = steps[..] else { panic!("{steps:?}") };
        harm(&gang, newest);
        let outcome = gang.next_attempt(many(plan)).run().unwrap();
        assert_eq!(outcome.hashes(), expected.hashes(), "{plan}, {name}");
        assert_logged(&outcome, &format!("checkpoint of step {newest} is not used"));
        assert_logged(&outcome, &format!("going on from step {older}"));
    }
}

#[test]
fn the_durable_checkpoint_is_used_where_memory_has_nothing_newer() {
    let expected = undisturbed();
    let gang = killed_after(3, options("tp2"));
    let outcome = gang.next_attempt(options("pp2")).resumed_at(4).run().unwrap();
    assert_eq!(outcome.hashes(), expected.hashes());
    assert_logged(&outcome, "going on from step 4");
}

#[test]
fn a_damaged_state_in_memory_and_a_damaged_checkpoint_leave_the_one_before() {
    let gang = killed_after(4, options("tp1"));
    gang.memory.forget(|commit| commit.step < 4);
    let next = gang.next_attempt(options("tp2")).resumed_at(4);
    if gang.memory.commits().iter().any(|(step, _)| *step == 4) {
        gang.memory.damage(4);
    }
    let mend = next.damage_one_file(4, Damage::Bit);
    let outcome = next.run().unwrap();
    assert_eq!(outcome.hashes(), undisturbed().hashes());
    assert_logged(&outcome, "going on from step 2");
    mend();
}

#[test]
fn a_checkpoint_of_which_nothing_can_be_fetched_leaves_the_one_before() {
    let gang = killed_after(4, options("tp1"));
    gang.memory.forget(|_| true);
    let outcome = gang.next_attempt(options("tp2")).resumed_at(2).told_of_lost(4).run().unwrap();
    assert_eq!(outcome.hashes(), undisturbed().hashes());
    assert_logged(&outcome, "the checkpoint of step 4 is not used");
    assert_logged(&outcome, "going on from step 2");
}

#[test]
fn a_job_whose_states_nobody_takes_trains_on_and_says_so() {
    let gang = Gang::new(options("tp2"));
    gang.memory.fill();
    let outcome = gang.run().unwrap();
    assert_eq!(outcome.hashes(), undisturbed().hashes());
    assert_eq!(gang.memory.commits(), []);
    assert_logged(&outcome, "is not held in memory");
}
