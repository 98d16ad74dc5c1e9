//! Which documents repeat others, whatever order their signatures were made in.
//!
//! Documents are numbered by (segment, position in it). Equal content hashes and SimHashes within
//! a few bits join documents to clusters; the smallest number of a cluster stays. Clusters are the
//! connected components of a relation between signatures, so neither the number of workers nor
//! the order in which they finish can change them.

use std::collections::HashMap;

use crate::signature::Signature;

/// The hash is looked up by bands of this many bits.
const BAND_BITS: u32 = 16;

/// With this many bands, hashes that differ in fewer bits than there are bands share one band.
const BANDS: u32 = 64 / BAND_BITS;

/// The largest distance that the bands cannot miss.
pub const DISTANCE_MAX: u32 = BANDS - 1;

/// What becomes of a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It stays.
    Unique,
    /// Its letters and digits are those of an earlier document.
    Exact {
        /// The number of the document that stays.
        of: usize,
    },
    /// Its SimHash is near that of an earlier document of its cluster.
    Near {
        /// The number of the document that stays.
        of: usize,
    },
}

/// The verdict on each document. Equal content counts where `exact` is set; `distance` is how many of
/// 64 SimHash bits may differ, up to [`DISTANCE_MAX`], and `None` leaves SimHash out.
pub fn find(signatures: &[Signature], exact: bool, distance: Option<u32>) -> Vec<Verdict> {
    let mut first_of_content: HashMap<u128, usize> = HashMap::new();
    let mut first_of = vec![None; signatures.len()];
    let mut clusters = Clusters::new(signatures.len());
    for (number, signature) in signatures.iter().enumerate().filter(|_| exact) {
        let first = *first_of_content.entry(signature.content).or_insert(number);
        if first != number {
            first_of[number] = Some(first);
            clusters.join(first, number);
        }
    }
    if let Some(distance) = distance {
        join_near(signatures, distance.min(DISTANCE_MAX), &mut clusters);
    }
    (0..signatures.len()).map(|number| verdict(number, first_of[number], clusters.smallest(number))).collect()
}

fn verdict(number: usize, exact: Option<usize>, smallest: usize) -> Verdict {
    match exact {
        _ if smallest == number => Verdict::Unique,
        Some(first) if first == smallest => Verdict::Exact { of: smallest },
        _ => Verdict::Near { of: smallest },
    }
}

/// Compares each hash with those that share a band with it.
fn join_near(signatures: &[Signature], distance: u32, clusters: &mut Clusters) {
    let mut first_of_hash: HashMap<u64, usize> = HashMap::new();
    let mut hashes = Vec::new();
    for (number, signature) in signatures.iter().enumerate() {
        let hash = signature.simhash;
        let first = *first_of_hash.entry(hash).or_insert(number);
        if first == number {
            hashes.push((hash, number));
        } else {
            clusters.join(first, number);
        }
    }
    for band in 0..BANDS {
        let key = |hash: u64| hash >> (band * BAND_BITS) & 0xffff;
        hashes.sort_unstable_by_key(|&(hash, number)| (key(hash), number));
        for bucket in hashes.chunk_by(|a, b| key(a.0) == key(b.0)) {
            for (at, &(hash, number)) in bucket.iter().enumerate() {
                for &(other_hash, other) in &bucket[at + 1..] {
                    if (hash ^ other_hash).count_ones() <= distance {
                        clusters.join(number, other);
                    }
                }
            }
        }
    }
}

/// Disjoint sets whose representative is their smallest member.
struct Clusters(Vec<usize>);

impl Clusters {
    fn new(count: usize) -> Self {
        Self((0..count).collect())
    }

    fn smallest(&mut self, mut number: usize) -> usize {
        while self.0[number] != number {
            self.0[number] = self.0[self.0[number]];
            number = self.0[number];
        }
        number
    }

    fn join(&mut self, a: usize, b: usize) {
        let (a, b) = (self.smallest(a), self.smallest(b));
        self.0[a.max(b)] = a.min(b);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn signature(content: u128, simhash: u64) -> Signature {
        Signature { content, simhash }
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
        let found = find(&signatures, true, Some(3));
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
        assert_eq!(find(&signatures, true, None)[3], Verdict::Unique);
    }

    #[test]
    fn follows_chains_to_the_smallest() {
        let signatures =
            [signature(1, 0), signature(2, 0b11_1111), signature(3, 0b111), signature(2, 0b11_1111)];
        let found = find(&signatures, true, Some(3));
        assert_eq!(found[1..], [Verdict::Near { of: 0 }; 3]);
    }

    /// Compares every pair: what the bands must not miss.
    fn plain(signatures: &[Signature], distance: u32) -> Vec<usize> {
        let mut clusters = Clusters::new(signatures.len());
        for (a, one) in signatures.iter().enumerate() {
            for (b, other) in signatures.iter().enumerate().skip(a + 1) {
                if one.content == other.content || (one.simhash ^ other.simhash).count_ones() <= distance {
                    clusters.join(a, b);
                }
            }
        }
        (0..signatures.len()).map(|number| clusters.smallest(number)).collect()
    }

    proptest! {
        #[test]
        fn equals_the_comparison_of_all_pairs(
            seeds in prop::collection::vec((0_u128..20, 0_u64..6, 0_u32..64, 0_u32..64, 0_u32..64), 0..60),
            distance in 0_u32..4,
        ) {
            let signatures: Vec<Signature> = seeds
                .iter()
                .map(|&(content, base, a, b, c)| {
                    signature(content, base.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 1 << a ^ 1 << b ^ 1 << c)
                })
                .collect();
            let found = find(&signatures, true, Some(distance));
            let expected = plain(&signatures, distance);
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
