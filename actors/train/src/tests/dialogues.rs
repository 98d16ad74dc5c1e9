//! Trainings on dialogues, whose answers alone count in the loss.

use super::gang::Gang;
use super::options;
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
