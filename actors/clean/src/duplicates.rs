//! Which documents repeat others, whatever order their signatures were made in.
//!
//! Documents are numbered in the order in which they are added. Two are joined to a cluster where
//! their content hashes are equal, or where they are near: of one language, their SimHashes within a
//! few bits, and their sketches such that the texts overlap. SimHash finds candidates fast, but sees
//! only how often each short piece of text occurs: long pages of one vocabulary agree in that
//! without one sentence in common, and so do pages full of the same commands.
//!
//! The smallest number of a cluster stays. Clusters are the connected components of a relation between
//! documents, so neither the number of workers nor the order in which they finish can change them.

use std::collections::HashMap;

use crate::signature::Signature;
use crate::sketch::{PAIRS, Sketch};

/// The hash is looked up by bands of this many bits.
const BAND_BITS: u32 = 16;

/// With this many bands, hashes that differ in fewer bits than there are bands share one band.
const BANDS: u32 = 64 / BAND_BITS;

/// Of so many documents with an equal band all pairs are compared; of more, those that share a pair of
/// minima. That is where the two take about the same time.
const COMPARED_MAX: usize = 512;

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
    /// It is near an earlier document, or near one that is.
    Near {
        /// The number of the document that stays.
        of: usize,
    },
}

/// When two documents of one language are near.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Nearness {
    /// Bits of the SimHash that may differ, up to [`DISTANCE_MAX`].
    pub distance: u32,
    /// Jaccard similarity of their runs of words at least, 0 to 1, as sketches estimate it.
    pub overlap: f64,
}

/// Signatures of documents, among which duplicates are found.
#[derive(Default)]
pub struct Finder {
    documents: Vec<Known>,
    /// A number for each language.
    languages: HashMap<String, u32>,
}

/// What is known of a document.
struct Known {
    signature: Signature,
    language: u32,
}

impl Finder {
    /// Adds a document, which gets the next number. `language` is its BCP 47 tag.
    pub fn add(&mut self, signature: Signature, language: &str) {
        let next = self.languages.len() as u32;
        let language = match self.languages.get(language) {
            Some(&known) => known,
            None => *self.languages.entry(language.to_owned()).or_insert(next),
        };
        self.documents.push(Known { signature, language });
    }

    /// The verdict on each document. Equal content counts where `exact` is set, near documents where
    /// `near` says what they are.
    pub fn find(&self, exact: bool, near: Option<Nearness>) -> Vec<Verdict> {
        self.find_among(exact, near, COMPARED_MAX)
    }

    /// Looks sketches up in buckets of more than `compared_max` documents.
    fn find_among(&self, exact: bool, near: Option<Nearness>, compared_max: usize) -> Vec<Verdict> {
        let mut first_of_content: HashMap<u128, usize> = HashMap::new();
        let mut first_of = vec![None; self.documents.len()];
        let mut clusters = Clusters::new(self.documents.len());
        for (number, document) in self.documents.iter().enumerate().filter(|_| exact) {
            let first = *first_of_content.entry(document.signature.content).or_insert(number);
            if first != number {
                first_of[number] = Some(first);
                clusters.join(first, number);
            }
        }
        if let Some(near) = near {
            self.join_near(near, compared_max, &mut clusters);
        }
        let numbers = 0..self.documents.len();
        numbers.map(|number| verdict(number, first_of[number], clusters.smallest(number))).collect()
    }

    /// Compares each document with those that share a band of the hash with it.
    fn join_near(&self, near: Nearness, compared_max: usize, clusters: &mut Clusters) {
        let near = Nearness { distance: near.distance.min(DISTANCE_MAX), ..near };
        let mut numbers = self.join_equal(clusters);
        for band in 0..BANDS {
            let key = |number: usize| self.simhash(number) >> (band * BAND_BITS) & 0xffff;
            numbers.sort_unstable_by_key(|&number| (key(number), number));
            for bucket in numbers.chunk_by(|&a, &b| key(a) == key(b)) {
                if bucket.len() > compared_max && Sketch::pairs_tell(near.overlap) {
                    self.look_up(bucket, near, clusters);
                } else {
                    self.compare(bucket.iter().copied(), near, clusters);
                }
            }
        }
    }

    /// Joins documents with the same hash, language and sketch, and returns the first of each kind.
    fn join_equal(&self, clusters: &mut Clusters) -> Vec<usize> {
        let key = |number: usize| {
            let Known { signature, language } = &self.documents[number];
            (signature.simhash, *language, signature.sketch)
        };
        let mut numbers: Vec<usize> = (0..self.documents.len()).collect();
        numbers.sort_unstable_by_key(|&number| (key(number), number));
        let mut firsts = Vec::new();
        for equal in numbers.chunk_by(|&a, &b| key(a) == key(b)) {
            firsts.push(equal[0]);
            equal[1..].iter().for_each(|&number| clusters.join(equal[0], number));
        }
        firsts
    }

    /// Compares documents that share a pair of minima, without which none of them are near. So many
    /// documents with one SimHash and nothing else in common are not each compared with all others.
    fn look_up(&self, bucket: &[usize], near: Nearness, clusters: &mut Clusters) {
        // Copies of one document are all near the first of them.
        for &number in bucket {
            if self.are_near(bucket[0], number, near) {
                clusters.join(bucket[0], number);
            }
        }
        for pair in 0..PAIRS {
            if bucket.iter().all(|&number| clusters.smallest(number) == clusters.smallest(bucket[0])) {
                return;
            }
            let key = |number: usize| self.documents[number].signature.sketch.pair(pair);
            let mut keyed: Vec<(u16, usize)> = bucket.iter().map(|&number| (key(number), number)).collect();
            keyed.sort_unstable();
            for alike in keyed.chunk_by(|a, b| a.0 == b.0).filter(|alike| alike.len() > 1) {
                self.compare(alike.iter().map(|&(_, number)| number), near, clusters);
            }
        }
    }

    /// Sorts documents into groups of one cluster each. A document is compared with the members of a
    /// group until one is near, so copies cost one comparison each.
    fn compare(&self, numbers: impl Iterator<Item = usize>, near: Nearness, clusters: &mut Clusters) {
        let mut groups: Vec<Vec<usize>> = Vec::new();
        for number in numbers {
            let mut own = vec![number];
            groups.retain_mut(|group| {
                let is_same = clusters.smallest(group[0]) == clusters.smallest(number);
                if !is_same && !group.iter().any(|&other| self.are_near(number, other, near)) {
                    return true;
                }
                clusters.join(group[0], number);
                if group.len() >= own.len() {
                    std::mem::swap(group, &mut own);
                }
                own.append(group);
                false
            });
            groups.push(own);
        }
    }

    fn are_near(&self, a: usize, b: usize, near: Nearness) -> bool {
        let (a, b) = (&self.documents[a], &self.documents[b]);
        a.language == b.language
            && (a.signature.simhash ^ b.signature.simhash).count_ones() <= near.distance
            && a.signature.sketch.overlap(&b.signature.sketch) >= near.overlap
    }

    fn simhash(&self, number: usize) -> u64 {
        self.documents[number].signature.simhash
    }
}

fn verdict(number: usize, exact: Option<usize>, smallest: usize) -> Verdict {
    match exact {
        _ if smallest == number => Verdict::Unique,
        Some(first) if first == smallest => Verdict::Exact { of: smallest },
        _ => Verdict::Near { of: smallest },
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
mod tests;
