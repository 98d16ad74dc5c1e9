//! From the bytes of a file to f32.

use half::{bf16, f16};

use super::Encoding;

/// Numbers of a block of the K encodings.
const SUPER_BLOCK: usize = 256;

impl Encoding {
    /// Decodes whole blocks.
    ///
    /// # Panics
    /// If `bytes` and `numbers` are not as many blocks.
    pub fn decode(self, bytes: &[u8], numbers: &mut [f32]) {
        assert_eq!(self.bytes_of(numbers.len()), Some(bytes.len()), "{} in blocks", self.name());
        let decode: fn(&[u8], &mut [f32]) = match self {
            Self::F32 => |bytes, out| out[0] = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
            Self::F16 => |bytes, out| out[0] = half_at(bytes, 0),
            Self::Bf16 => |bytes, out| out[0] = bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
            Self::Q8_0 => q8_0,
            Self::Q4_0 => q4_0,
            Self::Q4_1 => q4_1,
            Self::Q5_0 => q5_0,
            Self::Q5_1 => q5_1,
            Self::Q4K => q4_k,
            Self::Q5K => q5_k,
            Self::Q6K => q6_k,
        };
        let blocks = bytes.chunks_exact(self.block_bytes());
        blocks
            .zip(numbers.chunks_exact_mut(self.block_numbers()))
            .for_each(|(block, out)| decode(block, out));
    }
}

fn half_at(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

fn q8_0(block: &[u8], out: &mut [f32]) {
    let scale = half_at(block, 0);
    for (out, byte) in out.iter_mut().zip(&block[2..]) {
        *out = f32::from(byte.cast_signed()) * scale;
    }
}

/// The numbers of 4 bits of a block: the lower halves of all bytes, then the upper ones.
fn nibbles(bytes: &[u8]) -> impl Iterator<Item = u8> + '_ {
    bytes.iter().map(|byte| byte & 15).chain(bytes.iter().map(|byte| byte >> 4))
}

fn q4_0(block: &[u8], out: &mut [f32]) {
    let scale = half_at(block, 0);
    for (out, q) in out.iter_mut().zip(nibbles(&block[2..])) {
        *out = scale * f32::from(q.cast_signed() - 8);
    }
}

fn q4_1(block: &[u8], out: &mut [f32]) {
    let (scale, min) = (half_at(block, 0), half_at(block, 2));
    for (out, q) in out.iter_mut().zip(nibbles(&block[4..])) {
        *out = scale * f32::from(q) + min;
    }
}

/// The numbers of 5 bits of a block: a word with their fifth bits, then as [`nibbles`].
fn fives(bytes: &[u8]) -> impl Iterator<Item = u8> + '_ {
    let fifth = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    nibbles(&bytes[4..]).enumerate().map(move |(at, low)| low | (((fifth >> at) & 1) as u8) << 4)
}

fn q5_0(block: &[u8], out: &mut [f32]) {
    let scale = half_at(block, 0);
    for (out, q) in out.iter_mut().zip(fives(&block[2..])) {
        *out = scale * f32::from(q.cast_signed() - 16);
    }
}

fn q5_1(block: &[u8], out: &mut [f32]) {
    let (scale, min) = (half_at(block, 0), half_at(block, 2));
    for (out, q) in out.iter_mut().zip(fives(&block[4..])) {
        *out = scale * f32::from(q) + min;
    }
}

/// Scale and minimum of a group of a block of `Q4_K` or `Q5_K`: of the first four groups six bits of a byte; of the
/// others four bits of a shared byte, and the two bits that the bytes of the first four have left.
fn scale_and_min(packed: &[u8], group: usize) -> (f32, f32) {
    let (scale, min) = if group < 4 {
        (packed[group] & 63, packed[group + 4] & 63)
    } else {
        let (shared, low, high) = (packed[group + 4], packed[group - 4], packed[group]);
        ((shared & 15) | (low >> 2) & 48, (shared >> 4) | (high >> 2) & 48)
    };
    (f32::from(scale), f32::from(min))
}

/// What `Q4_K` and `Q5_K` share: groups of 32 numbers, two of which lie in the halves of the same bytes.
fn k_groups(block: &[u8], nibbles: &[u8], fifth: impl Fn(usize, usize) -> u8, out: &mut [f32]) {
    let (scales, mins) = (half_at(block, 0), half_at(block, 2));
    for (group, out) in out.chunks_exact_mut(32).enumerate() {
        let (scale, min) = scale_and_min(&block[4..16], group);
        let (scale, min) = (scales * scale, mins * min);
        for (at, (out, byte)) in out.iter_mut().zip(&nibbles[group / 2 * 32..]).enumerate() {
            let low = if group % 2 == 0 { byte & 15 } else { byte >> 4 };
            *out = scale * f32::from(low | fifth(group, at) << 4) - min;
        }
    }
}

fn q4_k(block: &[u8], out: &mut [f32]) {
    k_groups(block, &block[16..], |_, _| 0, out);
}

fn q5_k(block: &[u8], out: &mut [f32]) {
    let fifths = &block[16..48];
    k_groups(block, &block[48..], |group, at| (fifths[at] >> group) & 1, out);
}

fn q6_k(block: &[u8], out: &mut [f32]) {
    let (low, rest) = block.split_at(SUPER_BLOCK / 2);
    let (high, rest) = rest.split_at(SUPER_BLOCK / 4);
    let scale = half_at(rest, 16);
    for (at, out) in out.iter_mut().enumerate() {
        // Each half of the block has 64 bytes of lower bits, for four runs of 32, and 32 bytes of upper ones.
        let (part, run, within) = (at / 128, at % 128 / 32, at % 32);
        let low = low[part * 64 + run % 2 * 32 + within] >> (run / 2 * 4) & 15;
        let high = high[part * 32 + within] >> (run * 2) & 3;
        let group_scale = scale * f32::from(rest[at / 16].cast_signed());
        *out = group_scale * f32::from((low | high << 4).cast_signed() - 32);
    }
}
