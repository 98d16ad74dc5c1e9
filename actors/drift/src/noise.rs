//! How far text is from itself: the distances of pieces of the reference from the rest of it.
//!
//! A piece is compared with the reference *without* it. A small reference is otherwise nearer to its
//! own pieces than to any new text of the same kind, and all new text looks like drift. Pieces are
//! runs of neighbouring tokens, as prompts are, with their topics and repetitions; tokens drawn at
//! random would be nearer to the whole than any real text.
//!
//! The distance of a small sample is larger by chance, so the band is measured for several sizes.

use crate::counts::{TokenCounts, count};

/// Fewer pieces say too little about their spread.
const PIECES_MIN: usize = 8;
/// More are not measured; those that are lie evenly over the reference.
const PIECES_MAX: usize = 128;
/// Part of the margin under which drift is over again, so that a figure at the limit does not flap.
const CLEAR_SHARE: f64 = 2.0 / 3.0;

/// Jensen-Shannon distances of pieces of one size.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NoiseLevel {
    /// Tokens of a piece.
    pub tokens: u64,
    /// Pieces measured.
    pub pieces: usize,
    /// Mean of their distances.
    pub mean: f64,
    /// Sample standard deviation of their distances.
    pub sigma: f64,
}

impl NoiseLevel {
    /// Distances above this are drift: as far above the mean as a new piece is by chance once in 741
    /// times (three standard deviations, if they were known and not estimated), and at least `effect_min`, so that a difference that is certain but too small to matter is none.
    pub fn limit(&self, effect_min: f64) -> f64 {
        self.mean + self.margin(effect_min)
    }

    /// Drift is over below this.
    pub fn clear(&self, effect_min: f64) -> f64 {
        self.mean + self.margin(effect_min) * CLEAR_SHARE
    }

    fn margin(&self, effect_min: f64) -> f64 {
        (sigmas(self.pieces) * self.sigma).max(effect_min)
    }
}

/// The noise of samples of several sizes.
#[derive(Clone, Debug, PartialEq)]
pub struct NoiseBand {
    /// By ascending size; not empty.
    levels: Vec<NoiseLevel>,
}

impl NoiseBand {
    /// Measures the band of a reference, whose counts are `counts` and return unchanged, for samples of
    /// `smallest` tokens, twice as many, and so on up to `largest`. Sizes of which the reference has too few
    /// pieces are left out; `None` where that is all of them.
    pub fn measure(tokens: &[u32], counts: &mut TokenCounts, smallest: u64, largest: u64) -> Option<Self> {
        let doubled = std::iter::successors(Some(smallest.max(1)), |size| size.checked_mul(2));
        let sizes = doubled.take_while(|size| *size < largest).chain([largest]);
        let levels: Vec<NoiseLevel> = sizes.map_while(|size| measure_size(tokens, counts, size)).collect();
        (!levels.is_empty()).then_some(Self { levels })
    }

    /// The noise of a sample of `tokens` tokens: that of the largest size measured that is not
    /// larger, whose limit is the more cautious one.
    pub fn level(&self, tokens: u64) -> &NoiseLevel {
        let larger = self.levels.partition_point(|level| level.tokens <= tokens);
        &self.levels[larger.saturating_sub(1)]
    }

    /// The levels by ascending size.
    pub fn levels(&self) -> &[NoiseLevel] {
        &self.levels
    }
}

/// Standard deviations, estimated from `pieces` values, that a further value exceeds as seldom as a
/// normal one exceeds three: the upper prediction limit `t(.99865, v) * sqrt(1 + 1/pieces)` for
/// `v = pieces - 1`. The quantile of t is expanded at 3 (Abramowitz and Stegun 26.7.5).
fn sigmas(pieces: usize) -> f64 {
    let pieces = pieces.max(PIECES_MIN) as f64;
    let v = pieces - 1.0;
    let quantile = 3.0 + (7.5 + (17.25 + (30.1875 + 38.601 / v) / v) / v) / v;
    quantile * (1.0 + 1.0 / pieces).sqrt()
}

fn measure_size(tokens: &[u32], counts: &mut TokenCounts, size: u64) -> Option<NoiseLevel> {
    let pieces: Vec<&[u32]> = tokens.chunks_exact(usize::try_from(size).ok()?).collect();
    if pieces.len() < PIECES_MIN {
        return None;
    }
    let measured = pieces.len().min(PIECES_MAX);
    let spread = (0..measured).map(|number| pieces[number * pieces.len() / measured]);
    let distances: Vec<f64> = spread.map(|piece| distance_of(piece, counts)).collect();
    let mean = distances.iter().sum::<f64>() / measured as f64;
    let squares: f64 = distances.iter().map(|distance| (distance - mean).powi(2)).sum();
    let sigma = (squares / (measured - 1) as f64).sqrt();
    Some(NoiseLevel { tokens: size, pieces: measured, mean, sigma })
}

/// The distance of a piece from the rest.
fn distance_of(piece: &[u32], counts: &mut TokenCounts) -> f64 {
    let piece = count(piece);
    counts.remove(&piece);
    let distance = counts.divergence_of(&piece).js_distance;
    counts.add(&piece);
    distance
}

#[cfg(test)]
mod tests;
