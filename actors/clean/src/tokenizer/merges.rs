//! Learns the merges of byte-pair encoding (Sennrich et al. 2016) over bytes.
//!
//! In each step the most frequent pair of neighbours becomes one token; of equally frequent pairs,
//! the one that is greater as a pair of byte strings. Counts and this order do not depend on how
//! words were gathered, so training is deterministic.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BinaryHeap, HashMap};
use std::sync::Arc;

use rayon::prelude::*;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::{AddedToken, Result, Trainer};

/// A longer word teaches nothing and costs time at every merge; it is cut for training.
const WORD_BYTES_MAX: usize = 256;

type Pair = (u32, u32);

/// A trainer for byte-level [`BPE`] models.
pub struct MergeTrainer {
    vocabulary: usize,
    pair_count_min: u64,
    specials: Vec<AddedToken>,
    words: BTreeMap<Vec<u8>, u64>,
}

impl MergeTrainer {
    /// A trainer for a vocabulary of that many entries: the special tokens, the 256 bytes, and
    /// merges of pairs that occur at least `pair_count_min` times.
    pub fn new(vocabulary: usize, pair_count_min: u64, specials: Vec<AddedToken>) -> Self {
        Self { vocabulary, pair_count_min: pair_count_min.max(1), specials, words: BTreeMap::new() }
    }

    /// The tokens after the special ones, in the order of their ids, and the merges in the order in
    /// which they were learned.
    fn learn(&self) -> (Vec<Arc<[u8]>>, Vec<Pair>) {
        let mut learner = Learner::new(&self.words);
        while self.specials.len() + learner.tokens.len() < self.vocabulary {
            let Some(pair) = learner.most_frequent(self.pair_count_min) else { break };
            learner.merge(pair);
        }
        (learner.tokens, learner.merges)
    }
}

impl Trainer for MergeTrainer {
    type Model = BPE;

    fn should_show_progress(&self) -> bool {
        false
    }

    fn train(&self, model: &mut BPE) -> Result<Vec<AddedToken>> {
        let (tokens, merges) = self.learn();
        let characters = byte_characters();
        let written: Vec<String> = tokens
            .iter()
            .map(|token| token.iter().map(|&byte| characters[usize::from(byte)]).collect())
            .collect();
        let specials = self.specials.iter().map(|token| token.content.clone());
        let vocabulary: Vocab = specials.chain(written.iter().cloned()).zip(0..).collect();
        let pair = |&(a, b): &Pair| (written[a as usize].clone(), written[b as usize].clone());
        *model = BPE::builder().vocab_and_merges(vocabulary, merges.iter().map(pair).collect()).build()?;
        Ok(self.specials.clone())
    }

    fn feed<I, S, F>(&mut self, iterator: I, process: F) -> Result<()>
    where
        I: Iterator<Item = S> + Send,
        S: AsRef<str> + Send,
        F: Fn(&str) -> Result<Vec<String>> + Sync,
    {
        let bytes: HashMap<char, u8> = byte_characters().into_iter().zip(0..=255).collect();
        let count = |sequence: S| -> Result<HashMap<Vec<u8>, u64>> {
            let mut counts = HashMap::new();
            for word in process(sequence.as_ref())? {
                let word: Vec<u8> = word.chars().filter_map(|c| bytes.get(&c).copied()).collect();
                for part in word.chunks(WORD_BYTES_MAX) {
                    *counts.entry(part.to_vec()).or_default() += 1;
                }
            }
            Ok(counts)
        };
        let counted = iterator.par_bridge().map(count).try_reduce(HashMap::new, |mut all, counts| {
            for (word, count) in counts {
                *all.entry(word).or_default() += count;
            }
            Ok(all)
        });
        self.words = counted?.into_iter().collect();
        Ok(())
    }
}

/// GPT-2's printable character for each byte (`encoder.py`, `bytes_to_unicode`).
pub(super) fn byte_characters() -> [char; 256] {
    let mut next = 256;
    std::array::from_fn(|byte| {
        let printable = matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
        let code = if printable {
            byte as u32
        } else {
            next += 1;
            next - 1
        };
        char::from_u32(code).unwrap_or('\u{fffd}')
    })
}

/// A pair with the count that it had when it was pushed.
#[derive(PartialEq, Eq)]
struct Entry {
    count: u64,
    bytes: (Arc<[u8]>, Arc<[u8]>),
    pair: Pair,
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> Ordering {
        self.count.cmp(&other.count).then_with(|| self.bytes.cmp(&other.bytes))
    }
}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Words as sequences of tokens, and how often each pair of neighbours occurs.
struct Learner {
    tokens: Vec<Arc<[u8]>>,
    ids: HashMap<Arc<[u8]>, u32>,
    merges: Vec<Pair>,
    words: Vec<(Vec<u32>, u64)>,
    counts: HashMap<Pair, u64>,
    /// Words in which a pair occurs or did occur, in order, some of them twice.
    places: HashMap<Pair, Vec<u32>>,
    queue: BinaryHeap<Entry>,
}

impl Learner {
    fn new(words: &BTreeMap<Vec<u8>, u64>) -> Self {
        let tokens: Vec<Arc<[u8]>> = (0..=255_u8).map(|byte| Arc::from([byte])).collect();
        let ids = tokens.iter().cloned().zip(0..).collect();
        let words: Vec<(Vec<u32>, u64)> = words
            .iter()
            .map(|(word, &count)| (word.iter().map(|&byte| u32::from(byte)).collect(), count))
            .collect();
        let mut learner = Self {
            tokens,
            ids,
            merges: Vec::new(),
            words: Vec::new(),
            counts: HashMap::new(),
            places: HashMap::new(),
            queue: BinaryHeap::new(),
        };
        for (number, (word, count)) in words.iter().enumerate() {
            for pair in word.windows(2) {
                learner.add((pair[0], pair[1]), *count, number as u32);
            }
        }
        learner.words = words;
        let pairs: Vec<Pair> = learner.counts.keys().copied().collect();
        pairs.into_iter().for_each(|pair| learner.push(pair));
        learner
    }

    fn add(&mut self, pair: Pair, count: u64, word: u32) {
        *self.counts.entry(pair).or_default() += count;
        let places = self.places.entry(pair).or_default();
        if places.last() != Some(&word) {
            places.push(word);
        }
    }

    fn push(&mut self, pair: Pair) {
        let bytes = |id: u32| self.tokens[id as usize].clone();
        let count = self.counts.get(&pair).copied().unwrap_or(0);
        self.queue.push(Entry { count, bytes: (bytes(pair.0), bytes(pair.1)), pair });
    }

    /// Counts only fall between pushes, so an entry that is still right is the largest of all.
    fn most_frequent(&mut self, count_min: u64) -> Option<Pair> {
        while let Some(entry) = self.queue.pop() {
            let count = self.counts.get(&entry.pair).copied().unwrap_or(0);
            if count == entry.count && count >= count_min {
                return Some(entry.pair);
            }
            if count != entry.count && count >= count_min {
                self.push(entry.pair);
            }
        }
        None
    }

    fn merge(&mut self, pair: Pair) {
        let bytes: Arc<[u8]> =
            [&*self.tokens[pair.0 as usize], &*self.tokens[pair.1 as usize]].concat().into();
        // Two ways to the same bytes lead to the same token.
        let next = self.tokens.len() as u32;
        let token = *self.ids.entry(bytes.clone()).or_insert(next);
        if token == next {
            self.tokens.push(bytes);
        }
        self.merges.push(pair);
        let mut places = self.places.remove(&pair).unwrap_or_default();
        places.sort_unstable();
        places.dedup();
        let mut grown = Vec::new();
        for number in places {
            self.merge_in(number, pair, token, &mut grown);
        }
        self.counts.remove(&pair);
        grown.sort_unstable();
        grown.dedup();
        grown.into_iter().filter(|grown| *grown != pair).for_each(|pair| self.push(pair));
    }

    /// Replaces the pair in one word and recounts the word's pairs.
    fn merge_in(&mut self, number: u32, pair: Pair, token: u32, grown: &mut Vec<Pair>) {
        let (word, count) = std::mem::take(&mut self.words[number as usize]);
        let merged = replaced(&word, pair, token);
        if merged.len() < word.len() {
            for old in word.windows(2) {
                if let Some(total) = self.counts.get_mut(&(old[0], old[1])) {
                    *total -= count;
                }
            }
            for new in merged.windows(2) {
                let new = (new[0], new[1]);
                self.add(new, count, number);
                if new.0 == token || new.1 == token {
                    grown.push(new);
                }
            }
        }
        self.words[number as usize] = (merged, count);
    }
}

/// The word with each occurrence of the pair, from the left, as one token.
fn replaced(word: &[u32], pair: Pair, token: u32) -> Vec<u32> {
    let mut out = Vec::with_capacity(word.len());
    let mut at = 0;
    while at < word.len() {
        if word[at..].starts_with(&[pair.0, pair.1]) {
            out.push(token);
            at += 2;
        } else {
            out.push(word[at]);
            at += 1;
        }
    }
    out
}
