//! Random numbers as a function of a position, not of a history.
//!
//! A [`Counter`] names a stream by (seed, step, sample, layer, purpose); its words are addressed by index. So
//! any rank can compute any element's number, backward recomputes what forward drew, and a redone step draws the same.
//!
//! The generator is Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3",
//! SC 2011), with its published test vectors.

use crate::cpu::simd::{simd_dispatch, simd_level};
use crate::math;

/// What a stream is for, so that uses of the same (step, sample, layer) draw different numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Purpose(pub u32);

impl Purpose {
    /// Initial weights.
    pub const INITIALISATION: Self = Self(0);
    /// The order of training sequences.
    pub const ORDER: Self = Self(1);
    /// Sampling of generated tokens.
    pub const SAMPLING: Self = Self(2);
    /// Dropout after the embedding.
    pub const EMBEDDING_DROPOUT: Self = Self(3);
    /// Dropout after attention's output projection.
    pub const ATTENTION_DROPOUT: Self = Self(4);
    /// Dropout after the MLP.
    pub const MLP_DROPOUT: Self = Self(5);
    /// Dropout before the adapters of queries, keys and values.
    pub const QKV_ADAPTER_DROPOUT: Self = Self(6);
    /// Dropout before the adapter of attention's output projection.
    pub const ATTENTION_OUTPUT_ADAPTER_DROPOUT: Self = Self(7);
    /// Dropout before the adapters of the projections into the MLP.
    pub const INNER_ADAPTER_DROPOUT: Self = Self(8);
    /// Dropout before the adapter of the projection out of the MLP.
    pub const DOWN_ADAPTER_DROPOUT: Self = Self(9);
}

/// A stream of random words, addressed by index.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Counter {
    key: [u32; 2],
    high: [u32; 2],
}

impl Counter {
    /// The stream of `purpose` in `layer`, for `sample` (a sequence) of `step`.
    ///
    /// One Philox call mixes (step, sample) under the seed; its four words give the stream's key and, combined with layer and
    /// purpose, the upper half of its counter. The lower half counts blocks of four words.
    pub fn new(seed: u64, step: u64, sample: u64, layer: u32, purpose: Purpose) -> Self {
        let (step, sample) = (halves(step), halves(sample));
        let mixed = philox4x32([step[0], step[1], sample[0], sample[1]], halves(seed));
        Self { key: [mixed[0], mixed[1]], high: [mixed[2] ^ layer, mixed[3] ^ purpose.0] }
    }

    /// The random word at `index`.
    pub fn word(&self, index: u64) -> u32 {
        self.block(index / 4)[(index % 4) as usize]
    }

    /// The uniform number in `[0, 1)` at `index`: the upper 24 bits of its word.
    pub fn uniform(&self, index: u64) -> f32 {
        to_uniform(self.word(index))
    }

    /// Writes the uniform numbers from `first` on.
    pub fn fill_uniform(&self, first: u64, out: &mut [f32]) {
        self.for_each_word(first, out.len(), |position, word| out[position] = to_uniform(word));
    }

    /// Writes standard normal numbers (Box-Muller): number `i` is made of the words `2 i` and `2 i + 1`.
    pub fn fill_normal(&self, first: u64, out: &mut [f32]) {
        let mut radius_word = 0;
        self.for_each_word(2 * first, 2 * out.len(), |position, word| {
            if position % 2 == 0 {
                radius_word = word;
            } else {
                out[position / 2] = normal(radius_word, word);
            }
        });
    }

    /// The key of the stream, and the upper half of its counter.
    pub(crate) fn words(&self) -> [[u32; 2]; 2] {
        [self.key, self.high]
    }

    /// Calls `take(position, word)` for the `count` words from `first` on.
    pub(crate) fn for_each_word(&self, first: u64, count: usize, mut take: impl FnMut(usize, u32)) {
        let mut words = [0u32; CHUNK];
        let skipped = (first % 4) as usize;
        let (level, mut block) = (simd_level(), first / 4);
        let mut done = 0;
        while done < count + skipped {
            fill_words_at(level, self, block, &mut words);
            for (offset, &word) in words.iter().enumerate().take(count + skipped - done) {
                if let Some(position) = (done + offset).checked_sub(skipped) {
                    take(position, word);
                }
            }
            done += CHUNK;
            block += (CHUNK / 4) as u64;
        }
    }

    #[inline(always)]
    fn block(&self, index: u64) -> [u32; 4] {
        let [low, high] = halves(index);
        rounds([low, high, self.high[0], self.high[1]], self.key)
    }
}

/// Words computed at once.
const CHUNK: usize = 64;

simd_dispatch!(fn fill_words_at(counter: &Counter, first_block: u64, words: &mut [u32; CHUNK]) = fill_words);

#[inline(always)]
fn fill_words(counter: &Counter, first_block: u64, words: &mut [u32; CHUNK]) {
    let (blocks, _) = words.as_chunks_mut::<4>();
    for (index, block) in blocks.iter_mut().enumerate() {
        *block = counter.block(first_block.wrapping_add(index as u64));
    }
}

/// Philox4x32 with ten rounds: a bijection of the 128-bit `counter` under a 64-bit `key`.
pub fn philox4x32(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    rounds(counter, key)
}

#[inline(always)]
fn rounds(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let first = u64::from(counter[0]) * 0xD251_1F53;
        let second = u64::from(counter[2]) * 0xCD9E_8D57;
        counter = [
            (second >> 32) as u32 ^ counter[1] ^ key[0],
            second as u32,
            (first >> 32) as u32 ^ counter[3] ^ key[1],
            first as u32,
        ];
        key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
    }
    counter
}

fn halves(value: u64) -> [u32; 2] {
    [value as u32, (value >> 32) as u32]
}

fn to_uniform(word: u32) -> f32 {
    (word >> 8) as f32 * (1.0 / 16_777_216.0)
}

/// `sqrt(-2 ln u) cos(2 pi v)` with `u` in `(0, 1]` and `v` in `[0, 1)`.
fn normal(radius_word: u32, angle_word: u32) -> f32 {
    let radius = (-2.0 * math::ln(1.0 - to_uniform(radius_word))).sqrt();
    radius * math::cos(std::f32::consts::TAU * to_uniform(angle_word))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The vectors published with the Random123 library (`kat_vectors`).
    #[test]
    fn philox_matches_its_published_vectors() {
        assert_eq!(philox4x32([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(
            philox4x32([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
        assert_eq!(
            philox4x32([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn a_number_depends_on_its_index_alone() {
        let counter = Counter::new(1, 2, 3, 4, Purpose::SAMPLING);
        let mut all = vec![0.0; 300];
        counter.fill_uniform(0, &mut all);
        let mut part = vec![0.0; 130];
        counter.fill_uniform(77, &mut part);
        assert_eq!(part, all[77..207]);
        assert_eq!(counter.uniform(200), all[200]);
        let (mut normals, mut tail) = (vec![0.0; 101], vec![0.0; 34]);
        counter.fill_normal(0, &mut normals);
        counter.fill_normal(67, &mut tail);
        assert_eq!(tail, normals[67..]);
    }

    #[test]
    fn every_part_of_the_name_selects_another_stream() {
        let base = Counter::new(1, 2, 3, 4, Purpose(5));
        let others = [
            Counter::new(9, 2, 3, 4, Purpose(5)),
            Counter::new(1, 9, 3, 4, Purpose(5)),
            Counter::new(1, 2, 9, 4, Purpose(5)),
            Counter::new(1, 2, 3, 9, Purpose(5)),
            Counter::new(1, 2, 3, 4, Purpose(9)),
        ];
        for other in others {
            assert_ne!(other.word(0), base.word(0));
        }
    }

    #[test]
    fn normals_have_mean_zero_and_variance_one() {
        let mut values = vec![0.0; 40_000];
        Counter::new(0, 0, 0, 0, Purpose::INITIALISATION).fill_normal(0, &mut values);
        let mean = values.iter().map(|&value| f64::from(value)).sum::<f64>() / 40_000.0;
        let variance = values.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>() / 40_000.0;
        assert!(mean.abs() < 0.02 && (variance - 1.0).abs() < 0.03, "mean {mean}, variance {variance}");
    }
}
