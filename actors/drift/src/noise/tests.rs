//! Tests of `noise`.

use super::*;
use crate::counts::SampleCounts;

/// Tokens of a skewed distribution over `vocabulary`, from a counter.
fn text(tokens: u32, vocabulary: u32, seed: u32) -> Vec<u32> {
    let draw = |at: u32| {
        let mixed = (u64::from(at) << 32 | u64::from(seed)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mixed = (mixed ^ mixed >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let uniform = (mixed >> 40) as f64 / (1_u64 << 24) as f64;
        (uniform * uniform * f64::from(vocabulary)) as u32
    };
    (0..tokens).map(draw).collect()
}

fn counted(text: &[u32], vocabulary: u32) -> TokenCounts {
    let mut counts = TokenCounts::new(vocabulary, 0.5);
    counts.add(&count(text));
    counts
}

#[test]
fn smaller_samples_are_noisier_and_the_counts_stay() {
    let text = text(100_000, 2000, 1);
    let mut counts = counted(&text, 2000);
    let before = counts.clone();
    let band = NoiseBand::measure(&text, &mut counts, 250, 3000).unwrap();
    assert_eq!(counts, before);
    let sizes: Vec<u64> = band.levels().iter().map(|level| level.tokens).collect();
    assert_eq!(sizes, [250, 500, 1000, 2000, 3000]);
    assert!(band.levels().is_sorted_by(|small, large| small.mean > large.mean));
    assert_eq!(band.level(999).tokens, 500);
    assert_eq!(
        (band.level(3000).tokens, band.level(1 << 40).tokens, band.level(1).tokens),
        (3000, 3000, 250)
    );
}

#[test]
fn new_text_of_the_same_kind_is_within_the_band_and_other_text_is_not() {
    // A reference so small that its pieces are a good part of it.
    let reference = text(9000, 1000, 1);
    let mut counts = counted(&reference, 1000);
    let band = NoiseBand::measure(&reference, &mut counts, 1000, 1000).unwrap();
    let distance = |sample: &SampleCounts| counts.divergence_of(sample).js_distance;
    for seed in 2..40 {
        assert!(distance(&count(&text(1000, 1000, seed))) < band.level(1000).limit(0.0), "seed {seed}");
    }
    // Nine pieces say little about their spread, so the limit is high; a quarter of the vocabulary is above it.
    assert!(distance(&count(&text(1000, 250, 2))) > band.level(1000).limit(0.0));
}

#[test]
fn sizes_with_too_few_pieces_are_left_out() {
    let text = text(1000, 50, 1);
    let mut counts = counted(&text, 50);
    let band = NoiseBand::measure(&text, &mut counts, 100, 400).unwrap();
    assert_eq!((band.levels().len(), band.levels()[0].pieces), (1, 10));
    assert_eq!(NoiseBand::measure(&text, &mut counts, 126, 400), None);
}

#[test]
fn a_certain_but_small_effect_is_within_the_limit() {
    let level = NoiseLevel { tokens: 1, pieces: 8, mean: 0.1, sigma: 0.001 };
    assert!((level.limit(0.03) - 0.13).abs() < 1e-12 && level.limit(0.0) < 0.105);
    assert!((level.clear(0.03) - 0.12).abs() < 1e-12);
}

/// Quantiles of Student's t at .99865, by numerical integration of its density.
#[test]
fn few_pieces_make_a_wider_band_and_many_the_usual_one() {
    for (pieces, quantile) in [(8, 4.5300), (16, 3.5864), (128, 3.0601)] {
        let expected = quantile * (1.0 + 1.0 / f64::from(pieces)).sqrt();
        assert!((sigmas(pieces as usize) / expected - 1.0).abs() < 2e-3, "{pieces} pieces");
    }
    assert!((sigmas(1_000_000) - 3.0).abs() < 1e-4);
}
