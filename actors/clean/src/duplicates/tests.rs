//! Tests of `duplicates`.

use proptest::prelude::*;

use super::*;
use crate::sketch::Sketch;

const NEAR: Nearness = Nearness { distance: 3, overlap: 0.5 };

/// A sketch of which so many of the 14 times 8 minima, here and there, are `value` and the others 0.
fn sketch(changed: usize, value: u8) -> Sketch {
    let bytes: Vec<u8> = (0..112).map(|row| if row * 45 % 112 < changed { value } else { 0 }).collect();
    let number = |at: usize| bytes[at * 8..][..8].iter().fold(0, |sum, &byte| sum << 8 | u64::from(byte));
    Sketch(std::array::from_fn(number))
}

fn signature(content: u128, simhash: u64) -> Signature {
    Signature { content, simhash, sketch: sketch(0, 0) }
}

fn finder(signatures: &[Signature]) -> Finder {
    let mut finder = Finder::default();
    signatures.iter().for_each(|&signature| finder.add(signature, "en"));
    finder
}

#[test]
fn keeps_the_smallest_of_equal_and_near_documents() {
    let far = 0xffff_0000_ffff_0000;
    let signatures = [
        signature(1, far),
        signature(2, 0),
        signature(1, far),
        signature(3, 0b111),
        signature(4, 0b1111_0000),
    ];
    let found = finder(&signatures).find(true, Some(NEAR));
    assert_eq!(
        found,
        [
            Verdict::Unique,
            Verdict::Unique,
            Verdict::Exact { of: 0 },
            Verdict::Near { of: 1 },
            Verdict::Unique
        ]
    );
    assert_eq!(finder(&signatures).find(true, None)[3], Verdict::Unique);
}

#[test]
fn follows_chains_to_the_smallest() {
    let signatures = [signature(1, 0), signature(2, 0b11_1111), signature(3, 0b111), signature(2, 0b11_1111)];
    let found = finder(&signatures).find(true, Some(NEAR));
    assert_eq!(found[1..], [Verdict::Near { of: 0 }; 3]);
}

#[test]
fn the_same_simhash_is_not_enough() {
    let mut finder = Finder::default();
    for (content, (changed, language)) in [(0, "en"), (112, "en"), (0, "de"), (30, "en")].iter().enumerate() {
        let signature = Signature { sketch: sketch(*changed, 1), ..signature(content as u128, 7) };
        finder.add(signature, language);
    }
    let near = Verdict::Near { of: 0 };
    let unique = Verdict::Unique;
    assert_eq!(finder.find(true, Some(NEAR)), [unique, unique, unique, near]);
    let by_hash_alone = Some(Nearness { overlap: 0.0, ..NEAR });
    assert_eq!(finder.find(true, by_hash_alone), [unique, near, unique, near]);
}

#[test]
fn equal_content_counts_in_any_language() {
    let mut finder = Finder::default();
    ["en", "und"].iter().for_each(|language| finder.add(signature(1, 5), language));
    assert_eq!(finder.find(true, Some(NEAR))[1], Verdict::Exact { of: 0 });
    assert_eq!(finder.find(false, Some(NEAR))[1], Verdict::Unique);
}

/// Compares every pair: what the bands and groups must not miss.
fn plain(documents: &[(Signature, &str)], near: Nearness) -> Vec<usize> {
    let mut clusters = Clusters::new(documents.len());
    for (a, (one, language)) in documents.iter().enumerate() {
        for (b, (other, other_language)) in documents.iter().enumerate().skip(a + 1) {
            let is_near = (one.simhash ^ other.simhash).count_ones() <= near.distance
                && one.sketch.overlap(&other.sketch) >= near.overlap
                && language == other_language;
            if one.content == other.content || is_near {
                clusters.join(a, b);
            }
        }
    }
    (0..documents.len()).map(|number| clusters.smallest(number)).collect()
}

proptest! {
    #[test]
    fn equals_the_comparison_of_all_pairs(
        seeds in prop::collection::vec(
            (0_u128..40, (0_u64..4, 0_u32..64, 0_u32..64, 0_u32..64), (0_usize..113, 1_u8..4), 0_usize..3),
            0..60,
        ),
        distance in 0_u32..4,
        overlap in prop::sample::select(vec![0.0, 0.2, 0.5, 0.8, 1.0]),
    ) {
        let documents: Vec<(Signature, &str)> = seeds
            .iter()
            .map(|&(content, (base, a, b, c), (changed, value), language)| {
                let simhash = base.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 1 << a ^ 1 << b ^ 1 << c;
                let signature = Signature { content, simhash, sketch: sketch(changed, value) };
                (signature, ["en", "en", "zh-Hans"][language])
            })
            .collect();
        let near = Nearness { distance, overlap };
        let expected = plain(&documents, near);
        let mut finder = Finder::default();
        documents.iter().for_each(|&(signature, language)| finder.add(signature, language));
        for compared_max in [0, 8, usize::MAX] {
            let found = finder.find_among(true, Some(near), compared_max);
            for (number, verdict) in found.iter().enumerate() {
                let of = match *verdict {
                    Verdict::Unique => number,
                    Verdict::Exact { of } | Verdict::Near { of } => of,
                };
                prop_assert_eq!(of, expected[number]);
            }
        }
    }
}
