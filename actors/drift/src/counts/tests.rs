//! Tests of `counts`. The golden values are scipy 1.17.1's, over dense arrays of the same bins:
//! `q = (c + a) / (n + a V)`, `p = c / n`, `scipy.stats.entropy(p, q)` and
//! `scipy.spatial.distance.jensenshannon(p, q, base=2)`.

use proptest::prelude::*;

use super::*;

fn counts(vocabulary: u32, smoothing: f64, sample: &SampleCounts) -> TokenCounts {
    let mut counts = TokenCounts::new(vocabulary, smoothing);
    counts.add(sample);
    counts
}

#[test]
fn figures_are_those_of_scipy() {
    type Case = (u32, f64, SampleCounts, SampleCounts, f64, f64);
    let cases: [Case; 5] = [
        (
            4,
            0.5,
            [(0, 5), (1, 3), (2, 2)].into(),
            [(0, 1), (1, 1), (3, 2)].into(),
            1.0523817040446066,
            0.5409488443119544,
        ),
        (8, 0.01, [(0, 10), (1, 20)].into(), [(2, 3), (3, 4)].into(), 7.326122580369257, 0.9980061739446372),
        (
            50,
            0.5,
            (0..50).map(|i| (i, u64::from(i * i % 17 + 1))).collect(),
            (0..50).map(|i| (i, u64::from((i * i % 17 + 1) * 3 + i % 2))).collect(),
            0.0008549331822748739,
            0.017845987059480033,
        ),
        (
            32_000,
            0.5,
            (0..30_000).map(|i| (i, u64::from(1_000_000 / (i + 1)))).collect(),
            (0..700).map(|i| (i * 37 % 30_000, u64::from(1 + i % 5))).collect(),
            5.120072044089068,
            0.9764559672993617,
        ),
        (10, 1.0, [(7, 1)].into(), [(7, 1)].into(), 1.7047480922384253, 0.7962420677263253),
    ];
    for (vocabulary, smoothing, reference, sample, kl_nats, js_distance) in cases {
        let found = counts(vocabulary, smoothing, &reference).divergence_of(&sample);
        assert!((found.kl_nats - kl_nats).abs() < 1e-9, "{} is not {kl_nats}", found.kl_nats);
        assert!((found.js_distance - js_distance).abs() < 1e-9, "{} is not {js_distance}", found.js_distance);
    }
}

#[test]
fn nothing_is_no_distance_from_anything() {
    let empty = counts(10, 0.5, &SampleCounts::new());
    assert_eq!(empty.divergence_of(&SampleCounts::new()), Divergence::default());
    let found = empty.divergence_of(&[(3, 2)].into());
    assert!(found.kl_nats.is_finite() && found.js_distance > 0.5);
}

/// The same figures from dense arrays, by the definitions.
fn dense(reference: &TokenCounts, sample: &SampleCounts) -> Divergence {
    let vocabulary = reference.vocabulary();
    let whole = reference.tokens as f64 + reference.smoothing * f64::from(vocabulary);
    let tokens = sample.values().sum::<u64>() as f64;
    let term = |p: f64, q: f64| if p > 0.0 { p * (p / q).ln() } else { 0.0 };
    let (mut kl, mut js) = (0.0, 0.0);
    for token in 0..vocabulary {
        let q = (reference.counts[token as usize] as f64 + reference.smoothing) / whole;
        let p = sample.get(&token).copied().unwrap_or(0) as f64 / tokens;
        kl += term(p, q);
        js += (term(p, (p + q) / 2.0) + term(q, (p + q) / 2.0)) / 2.0;
    }
    Divergence { kl_nats: kl, js_distance: (js / LN_2).sqrt() }
}

proptest! {
    #[test]
    fn visiting_the_sample_alone_gives_the_dense_figures(
        reference in prop::collection::btree_map(0_u32..300, 1_u64..1000, 0..200),
        sample in prop::collection::btree_map(0_u32..300, 1_u64..100, 1..100),
        smoothing in 0.001_f64..10.0,
    ) {
        let reference = counts(300, smoothing, &reference);
        let (found, expected) = (reference.divergence_of(&sample), dense(&reference, &sample));
        prop_assert!((found.kl_nats - expected.kl_nats).abs() < 1e-9);
        prop_assert!((found.js_distance - expected.js_distance).abs() < 1e-9);
        prop_assert!((0.0..=1.0).contains(&found.js_distance));
        prop_assert!(found.kl_nats > -1e-12);
    }

    #[test]
    fn what_was_added_can_be_taken_away(
        first in prop::collection::btree_map(0_u32..40, 1_u64..9, 0..30),
        second in prop::collection::btree_map(0_u32..40, 1_u64..9, 0..30),
    ) {
        let alone = counts(32, 0.5, &first);
        let mut both = alone.clone();
        both.add(&second);
        both.remove(&second);
        prop_assert_eq!(both, alone);
    }
}
