//! Where two runs part: [`first_difference`].

use std::collections::BTreeSet;
use std::fmt;

use serde::Serialize;
use sixfold_model::{Geometry, HostUnits, UnitBuffer, UnitId};
use sixfold_topology::{ParallelPlan, PipelineLayout, Rank};

use super::gang::{RankTrace, StepTrace};
use crate::job::StepReport;
use crate::slice::RankSlice;

/// The first thing in which a rank's run and the serial run are not the same.
#[derive(Debug, Clone, PartialEq, Serialize, thiserror::Error)]
pub struct Difference {
    /// The rank.
    pub rank: Rank,
    /// The step, counted from 0; none before the first.
    pub step: Option<u64>,
    /// What is not the same.
    pub found: Found,
}

/// What is not the same.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Found {
    /// A number of a tensor has other bits.
    Tensor(TensorDifference),
    /// The rank does not hold a shard that the plan gives it.
    Missing {
        /// The tensor, by name ([`UnitId::tensor_name`]).
        tensor: String,
        /// The logical shard.
        shard: u32,
    },
    /// The rank holds a shard that the plan does not give it.
    Unexpected {
        /// The tensor, by name ([`UnitId::tensor_name`]).
        tensor: String,
        /// The logical shard.
        shard: u32,
    },
    /// All tensors are the same, but a figure that the rank reports is not.
    Figure {
        /// The figure.
        figure: &'static str,
        /// Its values.
        values: Values,
    },
}

/// The first number of a tensor that has other bits.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TensorDifference {
    /// Which of the rank's numbers.
    pub quantity: Quantity,
    /// The tensor, by name ([`UnitId::tensor_name`]).
    pub tensor: String,
    /// The logical shard; 0 for a norm, which is not cut.
    pub shard: u32,
    /// Row of the whole tensor.
    pub row: usize,
    /// Column of the whole tensor.
    pub column: usize,
    /// The number's values.
    pub values: Values,
    /// Shards of tensors of which this quantity is not the same, on any rank, in this step.
    pub shards_that_differ: usize,
    /// Shards of tensors that were compared.
    pub shards_compared: usize,
}

/// What the numbers of a tensor are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Quantity {
    /// Parameters before the first step.
    InitialParameter,
    /// Gradients after all sums.
    Gradient,
    /// Parameters after the step.
    Parameter,
    /// AdamW's first moments after the step.
    FirstMoment,
    /// AdamW's second moments after the step.
    SecondMoment,
}

/// The value of one number in two runs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Values {
    /// In the serial run.
    pub serial: f32,
    /// On the rank.
    pub on_rank: f32,
    /// The bits of both, in that order.
    pub bits: [String; 2],
}

impl Values {
    fn new(serial: f32, on_rank: f32) -> Self {
        let bits = [serial, on_rank].map(|value| format!("{:#010x}", value.to_bits()));
        Self { serial, on_rank, bits }
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::InitialParameter => "initial value",
            Self::Gradient => "gradient",
            Self::Parameter => "updated value",
            Self::FirstMoment => "first moment",
            Self::SecondMoment => "second moment",
        })
    }
}

impl fmt::Display for Values {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { serial, on_rank, bits: [serial_bits, rank_bits] } = self;
        write!(f, "{on_rank} ({rank_bits}), serially {serial} ({serial_bits})")
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.step {
            Some(step) => write!(f, "step {step}, ")?,
            None => f.write_str("before the first step, ")?,
        }
        let rank = self.rank;
        match &self.found {
            Found::Tensor(found) => {
                let TensorDifference { quantity, tensor, shard, row, column, values, .. } = found;
                let (differ, all) = (found.shards_that_differ, found.shards_compared);
                write!(f, "the {quantity} of {tensor}, logical shard {shard}, held by {rank}, ")?;
                write!(f, "differs first at row {row}, column {column}: {values}; ")?;
                write!(f, "{differ} of {all} shards of tensors differ")
            }
            Found::Missing { tensor, shard } => {
                write!(f, "{rank} does not hold logical shard {shard} of {tensor}")
            }
            Found::Unexpected { tensor, shard } => {
                write!(f, "{rank} holds logical shard {shard} of {tensor}, which is another rank's")
            }
            Found::Figure { figure, values } => {
                write!(f, "every tensor is the same, but {rank} reports another {figure}: {values}")
            }
        }
    }
}

/// Compares what the ranks of a plan computed, by rank, with what one rank computed.
pub(super) fn first_difference(
    geometry: &Geometry,
    (plan, layout): (&ParallelPlan, &PipelineLayout),
    serial: &RankTrace,
    ranks: &[&RankTrace],
) -> Option<Difference> {
    let runs = Runs { geometry, plan, layout, serial, ranks };
    runs.holdings().or_else(|| runs.numbers(None, Quantity::InitialParameter)).or_else(|| {
        (0..serial.steps.len()).find_map(|step| {
            let quantities =
                [Quantity::Gradient, Quantity::Parameter, Quantity::FirstMoment, Quantity::SecondMoment];
            let tensors = quantities.into_iter().find_map(|quantity| runs.numbers(Some(step), quantity));
            tensors.or_else(|| runs.figures(step))
        })
    })
}

/// Whole tensors that `parameters` hold.
pub(super) fn tensors(parameters: &HostUnits<'_>) -> usize {
    parameters.iter().map(|(unit, _)| (unit.place, unit.tensor)).collect::<BTreeSet<_>>().len()
}

/// A figure's name, and where a report has it.
type Figure = (&'static str, fn(&StepReport) -> f32);

struct Runs<'a> {
    geometry: &'a Geometry,
    plan: &'a ParallelPlan,
    layout: &'a PipelineLayout,
    serial: &'a RankTrace,
    ranks: &'a [&'a RankTrace],
}

impl Runs<'_> {
    /// Whether every rank holds the units that the plan gives it.
    fn holdings(&self) -> Option<Difference> {
        self.plan.ranks().zip(self.ranks).find_map(|(rank, trace)| {
            let given = RankSlice::new(self.geometry, self.plan, self.layout, rank).units(self.geometry);
            let held: BTreeSet<UnitId> = trace.initial.iter().map(|(unit, _)| unit).collect();
            let name = |unit: &UnitId| (unit.tensor_name(), unit.shard);
            let missing = given.iter().find(|unit| !held.contains(unit)).map(name);
            let found = match missing {
                Some((tensor, shard)) => Some(Found::Missing { tensor, shard }),
                None => held.iter().find(|unit| !given.contains(unit)).map(|unit| {
                    let (tensor, shard) = name(unit);
                    Found::Unexpected { tensor, shard }
                }),
            };
            found.map(|found| Difference { rank, step: None, found })
        })
    }

    /// The first unit, in canonical order, of which a quantity is not the same.
    fn numbers(&self, step: Option<usize>, quantity: Quantity) -> Option<Difference> {
        let serial = select(self.serial, step, quantity)?;
        let mut differ = Vec::new();
        for (rank, trace) in self.plan.ranks().zip(self.ranks) {
            for (unit, values) in select(trace, step, quantity)?.iter() {
                let start = match quantity {
                    Quantity::InitialParameter | Quantity::Parameter => 0,
                    _ => trace.parts.get(&unit).map_or(0, |part| part.start),
                };
                let expected = serial.get(unit).and_then(|all| all.get(start..)).unwrap_or_default();
                let mut pairs = expected.iter().zip(values);
                let first = pairs.position(|(a, b)| a.to_bits() != b.to_bits());
                if let Some(at) = first {
                    differ.push((unit, rank, start + at, Values::new(expected[at], values[at])));
                }
            }
        }
        let units: BTreeSet<UnitId> = differ.iter().map(|(unit, ..)| *unit).collect();
        let (unit, rank, at, values) = differ.into_iter().min_by_key(|(unit, rank, ..)| (*unit, *rank))?;
        let region = self.geometry.region(unit);
        let found = Found::Tensor(TensorDifference {
            quantity,
            tensor: unit.tensor_name(),
            shard: unit.shard,
            row: region.rows.start + at / region.columns.len(),
            column: region.columns.start + at % region.columns.len(),
            values,
            shards_that_differ: units.len(),
            shards_compared: serial.iter().count(),
        });
        Some(Difference { rank, step: step.map(|step| step as u64), found })
    }

    fn figures(&self, step: usize) -> Option<Difference> {
        let figures: [Figure; 3] = [
            ("loss", |report| report.loss),
            ("gradient norm", |report| report.gradient_norm),
            ("learning rate", |report| report.learning_rate),
        ];
        let expected = &self.serial.steps[step].report;
        self.plan.ranks().zip(self.ranks).find_map(|(rank, trace)| {
            let report = &trace.steps.get(step)?.report;
            let differs = |(_, of): &Figure| of(expected).to_bits() != of(report).to_bits();
            let (figure, of) = figures.into_iter().find(differs)?;
            let found = Found::Figure { figure, values: Values::new(of(expected), of(report)) };
            Some(Difference { rank, step: Some(step as u64), found })
        })
    }
}

fn select(trace: &RankTrace, step: Option<usize>, quantity: Quantity) -> Option<&UnitBuffer> {
    let Some(step) = step else { return Some(&trace.initial) };
    let StepTrace { gradients, parameters, moments: [first, second], .. } = trace.steps.get(step)?;
    Some(match quantity {
        Quantity::Gradient => gradients,
        Quantity::InitialParameter | Quantity::Parameter => parameters,
        Quantity::FirstMoment => first,
        Quantity::SecondMoment => second,
    })
}
