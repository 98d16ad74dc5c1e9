//! The permutations of MinHash: `(h * a + b) mod 2^64 mod (2^61 - 1)`, with the `a` and `b` that numpy's
//! `RandomState(1)` draws for datatrove, so that sketches can be compared with its signatures.

use std::sync::LazyLock;

use super::ROWS;

/// 2^61 - 1.
const PRIME: u64 = (1 << 61) - 1;

const SEED: u32 = 1;

pub(super) static PERMUTATIONS: LazyLock<Permutations> = LazyLock::new(Permutations::draw);

/// One permutation a row.
pub(super) struct Permutations {
    a: [u64; ROWS],
    b: [u64; ROWS],
}

impl Permutations {
    fn draw() -> Self {
        let mut random = MersenneTwister::new(SEED);
        let a = std::array::from_fn(|_| 1 + random.below(PRIME - 1));
        Self { a, b: std::array::from_fn(|_| random.below(PRIME)) }
    }

    /// Takes the permuted hash for each minimum that is larger.
    pub(super) fn lower(&self, minima: &mut [u64; ROWS], hash: u64) {
        for ((minimum, a), b) in minima.iter_mut().zip(&self.a).zip(&self.b) {
            *minimum = (*minimum).min(permuted(hash, *a, *b));
        }
    }
}

fn permuted(hash: u64, a: u64, b: u64) -> u64 {
    let value = hash.wrapping_mul(a).wrapping_add(b);
    let folded = (value & PRIME) + (value >> 61);
    if folded >= PRIME { folded - PRIME } else { folded }
}

/// Words of its state, and the distance of the two that make a new one.
const STATE_WORDS: usize = 624;
const MIDDLE: usize = 397;

/// MT19937 (Matsumoto and Nishimura, 1998).
struct MersenneTwister {
    state: [u32; STATE_WORDS],
    at: usize,
}

impl MersenneTwister {
    fn new(seed: u32) -> Self {
        let mut state = [seed; STATE_WORDS];
        for at in 1..STATE_WORDS {
            let previous = state[at - 1];
            state[at] = (previous ^ previous >> 30).wrapping_mul(1_812_433_253).wrapping_add(at as u32);
        }
        Self { state, at: STATE_WORDS }
    }

    fn twist(&mut self) {
        for at in 0..STATE_WORDS {
            let joined = (self.state[at] & 0x8000_0000) | (self.state[(at + 1) % STATE_WORDS] & 0x7fff_ffff);
            let odd = if joined & 1 == 1 { 0x9908_b0df } else { 0 };
            self.state[at] = self.state[(at + MIDDLE) % STATE_WORDS] ^ joined >> 1 ^ odd;
        }
        self.at = 0;
    }

    fn next_u32(&mut self) -> u32 {
        if self.at == STATE_WORDS {
            self.twist();
        }
        let mut word = self.state[self.at];
        self.at += 1;
        word ^= word >> 11;
        word ^= word << 7 & 0x9d2c_5680;
        word ^= word << 15 & 0xefc6_0000;
        word ^ word >> 18
    }

    /// A number below `bound`, which is more than 2^60, by rejection as numpy's `randint` draws it.
    fn below(&mut self, bound: u64) -> u64 {
        loop {
            let high = u64::from(self.next_u32());
            let value = (high << 32 | u64::from(self.next_u32())) & PRIME;
            if value < bound {
                return value;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permutations_are_those_of_numpy() {
        // numpy.random.RandomState(1): randint(1, 2**61 - 1, size=112), then randint(0, 2**61 - 1, size=112).
        let Permutations { a, b } = Permutations::draw();
        assert_eq!([a[0], a[1], a[111]], [775169054918279404, 1758426461858698313, 223865076026037746]);
        assert_eq!([b[0], b[1], b[111]], [1062448801025099917, 1324811268927594100, 1097409548522419201]);
        let permuted = [0, 1].map(|row| permuted(12345678901234567890, a[row], b[row]));
        assert_eq!(permuted, [574544044318327338, 238136717084171353]);
    }
}
