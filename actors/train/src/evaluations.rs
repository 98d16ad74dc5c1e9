//! Held-out losses of a training so far, and what follows from them: [`Evaluations`].

use serde::{Deserialize, Serialize};

use crate::options::TrainOptions;

/// Bytes of one in a file: the step and the loss, little-endian.
const BYTES: usize = 12;

/// The held-out loss after so many steps.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Steps done by then.
    pub step: u64,
    /// Mean loss of the held-out targets that count, in nats.
    pub loss: f32,
}

/// The evaluations of a training, equal on all ranks and a part of their states: after an interruption the rest follows from
/// them as it would have without.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Evaluations {
    every: u64,
    steps: u64,
    /// How many without an improvement end the training; 0 for any number.
    patience: u64,
    done: Vec<Evaluation>,
}

impl Evaluations {
    /// Of a training that begins, or goes on with those that were `done`.
    pub(crate) fn new(options: &TrainOptions, done: Vec<Evaluation>) -> Self {
        let TrainOptions { evaluate_every_steps, steps, early_stop_evaluations, .. } = *options;
        Self { every: evaluate_every_steps, steps, patience: early_stop_evaluations, done }
    }

    /// Whether there is to be one after `step` steps that there is not yet.
    pub(crate) fn is_due(&self, step: u64) -> bool {
        let has = self.done.last().is_some_and(|last| last.step >= step);
        self.every > 0 && !has && (step.is_multiple_of(self.every) || step == self.steps)
    }

    /// How many there are in a state after `step` steps.
    pub(crate) fn due_by(options: &TrainOptions, step: u64) -> usize {
        let TrainOptions { evaluate_every_steps: every, steps, .. } = *options;
        match every {
            0 => 0,
            every => (step / every) as usize + 1 + usize::from(step == steps && !step.is_multiple_of(every)),
        }
    }

    /// Adds one. Returns whether it is the best so far.
    pub(crate) fn add(&mut self, evaluation: Evaluation) -> bool {
        self.done.push(evaluation);
        self.best() == Some(evaluation)
    }

    /// All of them, in order.
    pub(crate) fn done(&self) -> &[Evaluation] {
        &self.done
    }

    /// The earliest with the least loss, of those after at least one step.
    pub(crate) fn best(&self) -> Option<Evaluation> {
        let after_steps = self.done.iter().filter(|evaluation| evaluation.step > 0);
        after_steps
            .copied()
            .reduce(|best, next| if next.loss < best.loss || best.loss.is_nan() { next } else { best })
    }

    /// Whether the best weights are to be kept.
    pub(crate) fn keeps_best(&self) -> bool {
        self.every > 0 && self.patience > 0
    }

    /// Whether the training is to end here.
    pub(crate) fn are_over(&self) -> bool {
        let Some(best) = self.best().filter(|_| self.keeps_best()) else { return false };
        self.done.iter().filter(|evaluation| evaluation.step > best.step).count() as u64 >= self.patience
    }

    /// As a file.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let one = |evaluation: &Evaluation| {
            let Evaluation { step, loss } = *evaluation;
            [step.to_le_bytes().as_slice(), &loss.to_le_bytes()].concat()
        };
        self.done.iter().flat_map(one).collect()
    }

    /// Those of a file; nothing if it is none.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Vec<Evaluation>> {
        let (records, []) = bytes.as_chunks::<BYTES>() else { return None };
        let one = |record: &[u8; BYTES]| {
            let (step, loss) = record.split_at(8);
            Some(Evaluation {
                step: u64::from_le_bytes(step.try_into().ok()?),
                loss: f32::from_le_bytes(loss.try_into().ok()?),
            })
        };
        records.iter().map(one).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evaluations(losses: &[f32], patience: u64) -> Evaluations {
        let options = TrainOptions {
            evaluate_every_steps: 4,
            steps: 18,
            early_stop_evaluations: patience,
            ..TrainOptions::default()
        };
        let mut evaluations = Evaluations::new(&options, Vec::new());
        let steps = (0..=18).filter(|step| step % 4 == 0 || *step == 18);
        for (step, &loss) in steps.zip(losses) {
            assert!(evaluations.is_due(step) && !evaluations.are_over());
            evaluations.add(Evaluation { step, loss });
            assert!(!evaluations.is_due(step) && !evaluations.is_due(step + 1));
            assert_eq!(evaluations.done().len(), Evaluations::due_by(&options, step));
        }
        evaluations
    }

    #[test]
    fn so_many_without_an_improvement_end_a_training() {
        let best = |losses: &[f32], patience| {
            let evaluations = evaluations(losses, patience);
            (evaluations.best().map(|best| best.step), evaluations.are_over())
        };
        assert_eq!(best(&[1.0], 1), (None, false), "before the first step nothing was learned");
        assert_eq!(best(&[1.0, 3.0], 1), (Some(4), false));
        assert_eq!(best(&[1.0, 3.0, 3.0], 1), (Some(4), true));
        assert_eq!(best(&[1.0, 3.0, 2.0, 2.5], 2), (Some(8), false));
        assert_eq!(best(&[1.0, 3.0, 2.0, 2.5, 2.1], 2), (Some(8), true));
        assert_eq!(best(&[1.0, 3.0, 2.0, f32::NAN, 2.1], 2), (Some(8), true));
        assert_eq!(best(&[1.0, 3.0, 2.0, 2.5, 2.1, 2.2], 0), (Some(8), false));
    }

    #[test]
    fn survive_a_file() {
        let evaluations = evaluations(&[1.0, 3.0, 2.0], 2);
        let bytes = evaluations.encode();
        assert_eq!(Evaluations::decode(&bytes).as_deref(), Some(evaluations.done()));
        assert_eq!(Evaluations::decode(&bytes[1..]), None);
    }
}
