//! What the ranks tell each other of a step beside its numbers: how long each computed, and where one first
//! had a number that was not finite. Read [`StepHealth`] first.
//!
//! It travels in the messages in which the ranks exchange the loss and the table of squares: a few numbers
//! a rank, each filled in by one rank and zero elsewhere, so that no sum rounds them.

use std::fmt;
use std::time::{Duration, Instant};

use sixfold_model::{Geometry, ModelSlice, Part, Site, UnitId};
use sixfold_topology::Rank;

use crate::links::RankLinks;

/// Numbers that a rank tells of itself: milliseconds, GFLOP, its bubble, its peak, its flag, and two for where a number
/// was not finite.
pub(crate) const NUMBERS_OF_RANK: usize = 7;

/// In the place of a micro-batch's first sequence: the gradient of a unit, after all micro-batches.
const OF_GRADIENT: f32 = (1 << 23) as f32;
/// Positions of a pass, more than any model has. A backward pass counts down from twice as many.
const POSITIONS: u32 = 1 << 12;

/// What the ranks told each other of a step. Equal on all of them.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct StepHealth {
    /// How long each rank computed, by rank.
    pub times: Vec<RankTime>,
    /// Where the first number arose that is not finite, if any did.
    pub not_finite: Option<NotFinite>,
    /// How many ranks had their flag up.
    pub flags: u32,
}

/// What a rank did between two exchanges: the end of one step and the passes of the next.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct RankTime {
    /// Wall time within steps, without the time that the rank waited for others.
    pub compute_ms: f32,
    /// Floating-point operations that it did meanwhile.
    pub gflop: f32,
    /// The part of the wall time within steps in which it waited for other stages of its pipeline, from 0 to 1.
    pub bubble: f32,
    /// GFLOP/s of products that its machine can do ([`Trainer::set_peak_gflops`](crate::Trainer::set_peak_gflops)).
    pub peak_gflops: f32,
}

/// A number that is not finite, where it arose first: in the earliest micro-batch, at the earliest place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotFinite {
    /// The rank that computed it.
    pub rank: Rank,
    /// Where in the step.
    pub origin: Origin,
}

/// Where in a step a number arises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// In the rank's own part of the result of a layer, or of its gradient.
    Pass(Site),
    /// In the gradient of a parameter, or in the sum of its squares.
    Gradient(UnitId),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pass(site) => site.fmt(f),
            Self::Gradient(unit) => {
                write!(f, "the gradient of {}, logical shard {}", unit.tensor_name(), unit.shard)
            }
        }
    }
}

/// A rank's stopwatch: runs within steps.
#[derive(Default)]
pub(crate) struct Stopwatch {
    lap: Lap,
    /// When it was started, and how long the rank had waited by then: for others at all, and for its pipeline.
    started: Option<(Instant, [Duration; 2])>,
}

/// What a stopwatch shows.
#[derive(Default)]
pub(crate) struct Lap {
    wall: Duration,
    waited: Duration,
    waited_for_pipeline: Duration,
}

impl Lap {
    /// Time without what the rank waited for others.
    pub(crate) fn computed(&self) -> Duration {
        self.wall.saturating_sub(self.waited)
    }

    /// The part of the time in which the rank waited for its pipeline.
    pub(crate) fn bubble(&self) -> f32 {
        self.waited_for_pipeline.as_secs_f32() / self.wall.as_secs_f32().max(f32::MIN_POSITIVE)
    }
}

impl Stopwatch {
    pub(crate) fn start(&mut self, links: &RankLinks) {
        self.started = Some((Instant::now(), [links.waited(), links.waited_for_pipeline()]));
    }

    pub(crate) fn stop(&mut self, links: &RankLinks) {
        if let Some((since, [waited, for_pipeline])) = self.started.take() {
            self.lap.wall += since.elapsed();
            self.lap.waited += links.waited().saturating_sub(waited);
            self.lap.waited_for_pipeline += links.waited_for_pipeline().saturating_sub(for_pipeline);
        }
    }

    /// What it shows; it goes back to zero and runs on.
    pub(crate) fn lap(&mut self, links: &RankLinks) -> Lap {
        self.stop(links);
        self.start(links);
        std::mem::take(&mut self.lap)
    }
}

/// The units of the whole model, by whose order a unit is told.
pub(crate) fn units_of(geometry: &Geometry) -> Vec<UnitId> {
    ModelSlice::whole(geometry).units(geometry)
}

/// What one rank tells.
pub(crate) fn encode(
    time: RankTime,
    flag: bool,
    origin: Option<Origin>,
    units: &[UnitId],
) -> [f32; NUMBERS_OF_RANK] {
    let position = |part| match part {
        Part::Embedding => 0,
        Part::Attention(layer) => 1 + 2 * layer,
        Part::FeedForward(layer) => 2 + 2 * layer,
        Part::Head => POSITIONS - 1,
    };
    let [sample, place] = match origin {
        None => [0.0, 0.0],
        Some(Origin::Pass(Site { first_sample, backward, part })) => {
            let position = position(part);
            let place = if backward { 2 * POSITIONS - position } else { position };
            [(first_sample + 1) as f32, place as f32]
        }
        Some(Origin::Gradient(unit)) => {
            let index = units.iter().position(|one| *one == unit).unwrap_or(0);
            [OF_GRADIENT, index as f32]
        }
    };
    [time.compute_ms, time.gflop, time.bubble, time.peak_gflops, f32::from(u8::from(flag)), sample, place]
}

/// What all ranks told, by rank.
pub(crate) fn decode(told: &[f32], units: &[UnitId]) -> StepHealth {
    let (records, _) = told.as_chunks::<NUMBERS_OF_RANK>();
    let times = records
        .iter()
        .map(|&[compute_ms, gflop, bubble, peak_gflops, ..]| RankTime {
            compute_ms,
            gflop,
            bubble,
            peak_gflops,
        })
        .collect();
    let flags = records.iter().filter(|[_, _, _, _, flag, ..]| *flag > 0.0).count() as u32;
    let wrong = (0..).zip(records).filter(|(_, [.., sample, _])| *sample > 0.0);
    let order = |[.., sample, place]: &[f32; NUMBERS_OF_RANK]| (*sample as u64, *place as u64);
    let first = wrong.min_by_key(|(_, record)| order(record));
    let not_finite = first.and_then(|(rank, &[.., sample, place])| {
        let origin = if sample == OF_GRADIENT {
            Origin::Gradient(*units.get(place as usize)?)
        } else {
            Origin::Pass(site(sample as u64 - 1, place as u32))
        };
        Some(NotFinite { rank: Rank(rank), origin })
    });
    StepHealth { times, not_finite, flags }
}

fn site(first_sample: u64, place: u32) -> Site {
    let backward = place > POSITIONS;
    let part = match if backward { 2 * POSITIONS - place } else { place } {
        0 => Part::Embedding,
        position if position == POSITIONS - 1 => Part::Head,
        position if position % 2 == 1 => Part::Attention(position / 2),
        position => Part::FeedForward(position / 2 - 1),
    };
    Site { first_sample, backward, part }
}

#[cfg(test)]
mod tests;
