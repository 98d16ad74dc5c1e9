//! Trainings on dialogues, whose answers alone count in the loss.

use sixfold_cluster::task::{HISTORY_FIGURE, Metric};
use sixfold_topology::Rank;

use super::gang::{Gang, Outcome};
use super::options;
use crate::history::History;
use crate::options::TrainOptions;

#[test]
fn every_plan_trains_the_answers_of_dialogues_with_the_same_bits() {
    let with = |plan| TrainOptions { batch_sequences: 8, context_length: 24, ..options(plan) };
    let serial = Gang::of_dialogues(with("tp1")).run().unwrap();
    assert!(serial.number("loss_last") < serial.number("loss_first"));
    let line = serial.log.iter().find(|line| line.contains("dialogues")).unwrap();
    assert!(line.contains("without an answer"), "{line}");
    for plan in ["dp2.tp2", "pp2", "dp4", "dp2.tp2.pp2"] {
        let outcome = Gang::of_dialogues(with(plan)).run().unwrap();
        assert_eq!(outcome.hashes(), serial.hashes(), "{plan}");
    }
}

/// Evaluates after every step; the learning rate is far too high.
fn evaluating(plan: &str) -> TrainOptions {
    TrainOptions {
        batch_sequences: 8,
        context_length: 24,
        steps: 12,
        learning_rate: 0.3,
        evaluate_every_steps: 1,
        evaluate_tokens: 500,
        ..options(plan)
    }
}

fn history(outcome: &Outcome) -> History {
    let Metric::Text(json) = &outcome.metrics[HISTORY_FIGURE] else { panic!("no history") };
    serde_json::from_str(json).unwrap()
}

#[test]
fn every_plan_has_the_same_held_out_losses_and_evaluations_change_no_bit() {
    let serial = Gang::of_dialogues(evaluating("tp1")).run().unwrap();
    let evaluations = history(&serial).evaluations;
    assert_eq!(evaluations.iter().map(|one| one.step).collect::<Vec<_>>(), (0..=12).collect::<Vec<_>>());
    assert_eq!(serial.number("held_out_loss") as f32, evaluations[12].loss);
    let without = TrainOptions { evaluate_every_steps: 0, ..evaluating("tp1") };
    assert_eq!(Gang::of_dialogues(without).run().unwrap().hashes(), serial.hashes());
    for plan in ["dp2.tp2", "pp2", "dp4", "dp2.tp2.pp2"] {
        let outcome = Gang::of_dialogues(evaluating(plan)).run().unwrap();
        assert_eq!(
            (outcome.hashes(), history(&outcome).evaluations),
            (serial.hashes(), evaluations.clone()),
            "{plan}"
        );
    }
    let told = serial.progress.iter().filter(|figures| figures.contains_key("held_out_loss"));
    assert_eq!(told.count(), 12);
}

/// Of text, which is cut and not packed.
#[test]
fn text_is_evaluated_too() {
    let with = |plan| TrainOptions { evaluate_every_steps: 4, evaluate_tokens: 100, ..options(plan) };
    let serial = Gang::new(with("tp1")).run().unwrap();
    let evaluations = history(&serial).evaluations;
    assert_eq!(evaluations.iter().map(|one| one.step).collect::<Vec<_>>(), [0, 4, 6]);
    assert!(evaluations[2].loss < evaluations[0].loss);
    assert_eq!(history(&Gang::new(with("dp2.pp2")).run().unwrap()).evaluations, evaluations);
}

#[test]
fn a_training_that_no_longer_improves_ends_with_the_best_weights() {
    let stopping = |plan| TrainOptions { early_stop_evaluations: 2, ..evaluating(plan) };
    let gang = Gang::of_dialogues(stopping("tp1"));
    let serial = gang.run().unwrap();
    let evaluations = history(&serial).evaluations;
    let best = evaluations[1..].iter().copied().reduce(|a, b| if b.loss < a.loss { b } else { a }).unwrap();
    let (Metric::Count(kept), Metric::Count(done)) = (&serial.metrics["kept_step"], &serial.metrics["steps"])
    else {
        panic!("{:?}", serial.metrics)
    };
    assert_eq!((*kept, *done), (best.step, best.step + 2), "{evaluations:?}");
    assert!(*done < 12, "{evaluations:?}");
    assert!(serial.log.iter().any(|line| line.starts_with("ending after step")), "{:?}", serial.log);

    // The weights are those that had the best loss.
    let once = TrainOptions { steps: 1, early_stop_evaluations: 0, ..stopping("tp1") };
    let again = gang.again(once).starting_from(serial.model).run().unwrap();
    assert_eq!(again.number("held_out_loss_first") as f32, best.loss);

    for plan in ["dp2", "tp2.pp2", "dp2.tp2"] {
        let outcome = Gang::of_dialogues(stopping(plan)).run().unwrap();
        assert_eq!(outcome.hashes(), serial.hashes(), "{plan}");
    }
    // After a fault behind the best evaluation, under another plan.
    let after = best.step + best.step % 2;
    let before = Gang::of_dialogues(TrainOptions { checkpoint_every_steps: 1, ..stopping("dp2.tp2") });
    before.run().unwrap();
    for plan in ["pp2", "tp1", "dp4"] {
        let resumed =
            before.again(TrainOptions { checkpoint_every_steps: 1, ..stopping(plan) }).resumed_at(after);
        let outcome = resumed.run().unwrap();
        assert!(outcome.log.iter().any(|line| line.contains("going on from step")), "{:?}", outcome.log);
        assert_eq!(outcome.hashes(), serial.hashes(), "{plan}");
    }
}

#[test]
fn a_split_that_is_too_short_to_evaluate_on_is_named() {
    let long = TrainOptions {
        context_length: 1999,
        sequence_length: 1999,
        evaluate_every_steps: 1,
        ..options("tp1")
    };
    Gang::new(long.clone()).run().unwrap();
    let error = Gang::without_held_out(long).run().unwrap_err().remove(&Rank(0)).unwrap();
    assert!(error.message.contains("the held-out split has 0 tokens"), "{error}");
}
