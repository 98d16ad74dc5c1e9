//! The curves of a training, of bounded length: [`History`].

use serde::{Deserialize, Serialize};

use crate::evaluations::Evaluation;

/// Points that are kept at most: more than a picture has room for.
pub const HISTORY_POINTS_MAX: usize = 400;
/// Stragglers that are remembered.
const STRAGGLERS_MAX: usize = 64;

/// Figures of a step, or the means of those of some steps one after another.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(from = "[f32; 8]", into = "[f32; 8]")]
pub struct HistoryPoint {
    /// Mean loss of the targets, in nats.
    pub loss: f32,
    /// Global norm of the gradient, before clipping.
    pub gradient_norm: f32,
    /// Learning rate.
    pub learning_rate: f32,
    /// Wall time of a step, from the end of the one before; 0 where nobody measured it.
    pub seconds: f32,
    /// Model FLOPs utilization: floating-point operations that the model needs, as a part of what all ranks' machines
    /// could have done meanwhile; 0 where their peak is not known.
    pub mfu: f32,
    /// Seconds of a step in which the first rank waited for its batch.
    pub data_wait_seconds: f32,
    /// The part of the time in which ranks waited for their pipelines, mean over ranks.
    pub bubble: f32,
    /// Memory of the first rank's process, in bytes; of several steps the most.
    pub resident_bytes: f32,
}

impl From<[f32; 8]> for HistoryPoint {
    fn from(values: [f32; 8]) -> Self {
        let [loss, gradient_norm, learning_rate, seconds, mfu, data_wait_seconds, bubble, resident_bytes] =
            values;
        Self { loss, gradient_norm, learning_rate, seconds, mfu, data_wait_seconds, bubble, resident_bytes }
    }
}

impl From<HistoryPoint> for [f32; 8] {
    fn from(point: HistoryPoint) -> Self {
        let HistoryPoint {
            loss,
            gradient_norm,
            learning_rate,
            seconds,
            mfu,
            data_wait_seconds,
            bubble,
            resident_bytes,
        } = point;
        [loss, gradient_norm, learning_rate, seconds, mfu, data_wait_seconds, bubble, resident_bytes]
    }
}

impl HistoryPoint {
    /// The mean of this, which is of `steps`, and `other`, which is of `others`.
    fn mean(self, steps: u64, other: Self, others: u64) -> Self {
        let (a, b): ([f32; 8], [f32; 8]) = (self.into(), other.into());
        let all = (steps + others) as f32;
        let mean = |(a, b): (f32, f32)| a * (steps as f32 / all) + b * (others as f32 / all);
        let mut both = [0.0; 8];
        both.iter_mut().zip(a.into_iter().zip(b).map(mean)).for_each(|(to, mean)| *to = mean);
        Self { resident_bytes: self.resident_bytes.max(other.resident_bytes), ..both.into() }
    }
}

/// A rank that was named because it had been slower than the others for long.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct NamedStraggler {
    /// Steps done by then.
    pub step: u64,
    /// The rank.
    pub rank: u32,
    /// How much slower it was, as a multiple of the median rank.
    pub to_median: f32,
}

/// The curves of a training from its first step on, whatever attempts there were: a part of the state that nodes hold
/// and checkpoints keep.
///
/// Once there are [`HISTORY_POINTS_MAX`] points, neighbours become their mean, and from then on a point stands for
/// twice as many steps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct History {
    /// Steps that a point stands for; the last one may stand for fewer.
    pub stride: u64,
    /// Steps done.
    pub steps: u64,
    /// From the first step on.
    pub points: Vec<HistoryPoint>,
    /// Ranks that were named, the first ones.
    pub stragglers: Vec<NamedStraggler>,
    /// Held-out losses; where there are very many, some of them.
    #[serde(default)]
    pub evaluations: Vec<Evaluation>,
}

impl Default for History {
    fn default() -> Self {
        Self { stride: 1, steps: 0, points: Vec::new(), stragglers: Vec::new(), evaluations: Vec::new() }
    }
}

impl History {
    /// Of a training of which only the losses are known.
    pub fn of_losses(losses: &[f32]) -> Self {
        let mut history = Self::default();
        losses.iter().for_each(|&loss| history.push(HistoryPoint { loss, ..HistoryPoint::default() }));
        history
    }

    /// Adds a step.
    pub fn push(&mut self, point: HistoryPoint) {
        let in_last = self.steps % self.stride;
        match self.points.last_mut() {
            Some(last) if in_last > 0 => *last = last.mean(in_last, point, 1),
            _ => {
                if self.points.len() == HISTORY_POINTS_MAX {
                    self.halve();
                }
                self.points.push(point);
            }
        }
        self.steps += 1;
    }

    /// Whole points become half as many.
    fn halve(&mut self) {
        let pairs = self.points.as_chunks::<2>().0;
        self.points = pairs.iter().map(|[a, b]| a.mean(self.stride, *b, self.stride)).collect();
        self.stride *= 2;
    }

    /// Remembers a straggler, unless there have been very many.
    pub fn name_straggler(&mut self, straggler: NamedStraggler) {
        if self.stragglers.len() < STRAGGLERS_MAX {
            self.stragglers.push(straggler);
        }
    }

    /// Takes over the held-out losses, [`HISTORY_POINTS_MAX`] of them at most, the first and the last among them.
    pub(crate) fn set_evaluations(&mut self, all: &[Evaluation]) {
        let stride = all.len().div_ceil(HISTORY_POINTS_MAX - 1).max(1);
        self.evaluations = all.iter().step_by(stride).copied().collect();
        if let Some(last) = all.last().filter(|last| self.evaluations.last() != Some(last)) {
            self.evaluations.push(*last);
        }
    }

    /// The last step that each point stands for, with the point.
    pub fn by_step(&self) -> impl Iterator<Item = (u64, HistoryPoint)> {
        (1..).zip(&self.points).map(|(number, point)| ((number * self.stride).min(self.steps), *point))
    }

    /// Whether it is one that [`Self::push`] makes of so many steps.
    pub fn is_of(&self, steps: u64) -> bool {
        let points = self.points.len() as u64;
        self.stride > 0
            && self.steps == steps
            && points == steps.div_ceil(self.stride)
            && points <= HISTORY_POINTS_MAX as u64
            && self.stragglers.len() <= STRAGGLERS_MAX
            && self.evaluations.len() <= HISTORY_POINTS_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_history_is_bounded_and_keeps_the_mean_of_all_steps() {
        for steps in [0, 1, 7, 399, 400, 401, 1000, 12_345] {
            let losses: Vec<f32> = (0..steps).map(|step| (step % 10) as f32).collect();
            let history = History::of_losses(&losses);
            assert!(history.is_of(steps), "{steps} steps: {} points", history.points.len());
            assert!(history.points.len() <= HISTORY_POINTS_MAX);
            assert!(steps < 400 || history.points.len() > HISTORY_POINTS_MAX / 2);
            let mut before = 0;
            let mut sum = 0.0;
            for (step, point) in history.by_step() {
                sum += f64::from(point.loss) * (step - before) as f64;
                before = step;
            }
            assert_eq!(before, steps);
            let expected: f64 = losses.iter().map(|loss| f64::from(*loss)).sum();
            assert!((sum - expected).abs() <= 1e-4 * expected, "{steps}: {sum} is not {expected}");
        }
    }

    #[test]
    fn points_of_several_steps_have_their_mean_and_the_most_of_memory() {
        let point = |seconds, resident_bytes| HistoryPoint { seconds, resident_bytes, ..Default::default() };
        let mean = point(1.0, 8.0).mean(3, point(5.0, 2.0), 1);
        assert_eq!((mean.seconds, mean.resident_bytes), (2.0, 8.0));
    }

    #[test]
    fn it_survives_its_ways_and_anything_else_is_noticed() {
        let mut history = History::of_losses(&[3.0, 2.5]);
        for step in 0..100 {
            history.name_straggler(NamedStraggler { step, rank: 1, to_median: 2.0 });
        }
        assert_eq!(history.stragglers.len(), STRAGGLERS_MAX);
        let text = serde_json::to_string(&history).unwrap();
        assert_eq!(serde_json::from_str::<History>(&text).unwrap(), history);
        let bytes = sixfold_wire::codec::encode(&history).unwrap();
        assert_eq!(sixfold_wire::codec::decode::<History>(&bytes).unwrap(), history);
        assert!(history.is_of(2) && !history.is_of(3));
        history.points.pop();
        assert!(!history.is_of(2));
    }
}
