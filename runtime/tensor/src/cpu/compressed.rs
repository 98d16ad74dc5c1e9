//! Weights that are kept in fewer bits than products read them in: [`Compressed`].

use serde::{Deserialize, Serialize};

use crate::cpu::bf16::rounded_bits;
use crate::cpu::simd::{simd_dispatch, simd_level};
use crate::cpu::threads;

/// Numbers that share a scale.
pub const COMPRESSED_BLOCK: usize = 64;
/// Numbers of one task: whole blocks.
const TASK_ELEMENTS: usize = 1 << 15;

/// The sixteen numbers of NF4, relative to the largest of a block: quantiles of a normal distribution, zero and both ends among
/// them (Dettmers et al., "QLoRA: Efficient Finetuning of Quantized LLMs", 2023, appendix E).
const NF4: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// How weights are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// Rounded to bfloat16: 16 bits a number.
    Bf16,
    /// Integers from -127 to 127 times a scale a block, the largest magnitude over 127: 8.5 bits a number.
    Int8,
    /// NF4, four bits, times a scale a block, the largest magnitude: 4.5 bits a number.
    Nf4,
}

/// Numbers of a row-major weight or a part of one, compressed in blocks of [`COMPRESSED_BLOCK`] in their order.
#[derive(Debug, Clone, PartialEq)]
pub struct Compressed {
    compression: Compression,
    len: usize,
    codes: Vec<u8>,
    /// One a block; none in bfloat16.
    scales: Vec<f32>,
}

impl Compressed {
    /// The nearest to `values`; ties go to the even one in bfloat16, away from zero in integers, to the lower one in NF4. A NaN
    /// or infinity spoils its block.
    pub fn new(values: &[f32], compression: Compression) -> Self {
        let blocks = values.chunks(COMPRESSED_BLOCK);
        let largest = |block: &[f32]| {
            // Of a number and a NaN, the NaN.
            let larger = |most: f32, x: &f32| if x.abs() > most || x.is_nan() { x.abs() } else { most };
            block.iter().fold(0.0, larger)
        };
        let (scales, codes) = match compression {
            Compression::Bf16 => {
                let codes = values.iter().flat_map(|x| ((rounded_bits(*x) >> 16) as u16).to_le_bytes());
                (Vec::new(), codes.collect())
            }
            Compression::Int8 => {
                let scales: Vec<f32> = blocks.clone().map(|block| largest(block) / 127.0).collect();
                let code = |x: f32, scale: f32| if scale > 0.0 { (x / scale).round() as i8 } else { 0 };
                let of_block = |(block, scale): (&[f32], f32)| {
                    block.iter().map(move |x| code(*x, scale) as u8).collect::<Vec<_>>()
                };
                let codes = blocks.zip(scales.iter().copied()).flat_map(of_block).collect();
                (scales, codes)
            }
            Compression::Nf4 => {
                let scales: Vec<f32> = blocks.clone().map(largest).collect();
                let of_block = |(block, scale): (&[f32], f32)| {
                    let code = move |x: Option<&f32>| {
                        x.map_or(0, |x| nearest(x / if scale > 0.0 { scale } else { 1.0 }))
                    };
                    block
                        .chunks(2)
                        .map(move |two| code(two.first()) | code(two.get(1)) << 4)
                        .collect::<Vec<_>>()
                };
                let codes = blocks.zip(scales.iter().copied()).flat_map(of_block).collect();
                (scales, codes)
            }
        };
        Self { compression, len: values.len(), codes, scales }
    }

    /// Numbers.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no numbers.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes that they take.
    pub fn bytes(&self) -> usize {
        self.codes.len() + size_of_val(self.scales.as_slice())
    }

    /// How they are kept.
    pub(crate) fn compression(&self) -> Compression {
        self.compression
    }

    /// The bits of the numbers.
    pub(crate) fn codes(&self) -> &[u8] {
        &self.codes
    }

    /// One scale a block; none in bfloat16.
    pub(crate) fn scales(&self) -> &[f32] {
        &self.scales
    }

    /// Writes the numbers from `first` on, which begins a block, to `out`.
    ///
    /// # Panics
    /// There are not so many, or `first` does not begin a block.
    pub fn expand(&self, first: usize, out: &mut [f32]) {
        assert!(first.is_multiple_of(COMPRESSED_BLOCK) && first + out.len() <= self.len, "part of a weight");
        let (level, cost) = (simd_level(), out.len());
        threads::for_each_chunk(out, TASK_ELEMENTS, cost, |task, out| {
            let first = first + task * TASK_ELEMENTS;
            let scales = || &self.scales[first / COMPRESSED_BLOCK..];
            match self.compression {
                Compression::Bf16 => expand_bf16_at(level, &self.codes[2 * first..], out),
                Compression::Int8 => expand_int8_at(level, &self.codes[first..], scales(), out),
                Compression::Nf4 => expand_nf4_at(level, &self.codes[first / 2..], scales(), out),
            }
        });
    }

    /// As [`embed`](crate::cpu::embed), of a compressed table.
    ///
    /// # Panics
    /// As for [`embed`](crate::cpu::embed).
    pub fn embed(&self, width: usize, first_id: usize, ids: &[u32], out: &mut [f32]) {
        assert_eq!((self.len % width, out.len()), (0, ids.len() * width), "shapes of an embedding");
        let mut blocks = vec![0.0; width + 2 * COMPRESSED_BLOCK];
        for (id, row) in ids.iter().zip(out.chunks_exact_mut(width)) {
            let Some(index) = (*id as usize).checked_sub(first_id).filter(|index| index * width < self.len)
            else {
                continue;
            };
            let start = index * width;
            let first = start / COMPRESSED_BLOCK * COMPRESSED_BLOCK;
            let end = self.len.min((start + width).next_multiple_of(COMPRESSED_BLOCK));
            self.expand(first, &mut blocks[..end - first]);
            row.copy_from_slice(&blocks[start - first..][..width]);
        }
    }
}

/// The number of NF4 that is nearest to `x`.
fn nearest(x: f32) -> u8 {
    NF4.windows(2).take_while(|two| x > 0.5 * (two[0] + two[1])).count() as u8
}

simd_dispatch!(fn expand_bf16_at(codes: &[u8], out: &mut [f32]) = expand_bf16);
simd_dispatch!(fn expand_int8_at(codes: &[u8], scales: &[f32], out: &mut [f32]) = expand_int8);
simd_dispatch!(fn expand_nf4_at(codes: &[u8], scales: &[f32], out: &mut [f32]) = expand_nf4);

#[inline(always)]
fn expand_bf16(codes: &[u8], out: &mut [f32]) {
    for (out, code) in out.iter_mut().zip(codes.chunks_exact(2)) {
        *out = f32::from_bits(u32::from(u16::from_le_bytes([code[0], code[1]])) << 16);
    }
}

#[inline(always)]
fn expand_int8(codes: &[u8], scales: &[f32], out: &mut [f32]) {
    let blocks = out.chunks_mut(COMPRESSED_BLOCK).zip(codes.chunks(COMPRESSED_BLOCK));
    for ((out, codes), scale) in blocks.zip(scales) {
        for (out, code) in out.iter_mut().zip(codes) {
            *out = f32::from(*code as i8) * scale;
        }
    }
}

#[inline(always)]
fn expand_nf4(codes: &[u8], scales: &[f32], out: &mut [f32]) {
    let blocks = out.chunks_mut(COMPRESSED_BLOCK).zip(codes.chunks(COMPRESSED_BLOCK / 2));
    for ((out, codes), scale) in blocks.zip(scales) {
        let numbers = NF4.map(|number| number * scale);
        for (two, code) in out.chunks_mut(2).zip(codes) {
            two[0] = numbers[usize::from(code & 15)];
            if let Some(second) = two.get_mut(1) {
                *second = numbers[usize::from(code >> 4)];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::simd::SimdLevel;
    use crate::{Counter, Purpose};

    fn normal(len: usize) -> Vec<f32> {
        let mut values = vec![0.0; len];
        Counter::new(1, 0, 0, 0, Purpose::INITIALISATION).fill_normal(0, &mut values);
        values
    }

    fn expanded(compressed: &Compressed) -> Vec<f32> {
        let mut out = vec![f32::NAN; compressed.len()];
        compressed.expand(0, &mut out);
        out
    }

    #[test]
    fn what_comes_back_is_as_near_as_the_bits_allow() {
        for len in [1, 63, 64, 65, 1000, 70_001] {
            let values = normal(len);
            for compression in [Compression::Bf16, Compression::Int8, Compression::Nf4] {
                let compressed = Compressed::new(&values, compression);
                let back = expanded(&compressed);
                for (block, back) in values.chunks(COMPRESSED_BLOCK).zip(back.chunks(COMPRESSED_BLOCK)) {
                    let largest = block.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
                    // Half of the widest gap between two numbers; of bfloat16 relative to the number.
                    let bound = |x: f32| match compression {
                        Compression::Bf16 => x.abs() / 256.0,
                        Compression::Int8 => largest * 0.5001 / 127.0,
                        Compression::Nf4 => largest * 0.1520,
                    };
                    for (x, back) in block.iter().zip(back) {
                        assert!((x - back).abs() <= bound(*x), "{compression:?}: {x} {back} of {largest}");
                    }
                }
                // Compressed again it stays what it is, up to the rounding of a scale.
                let again = expanded(&Compressed::new(&back, compression));
                assert!(
                    back.iter().zip(&again).all(|(a, b)| (a - b).abs() <= 1e-6 * a.abs()),
                    "{compression:?}"
                );
            }
        }
        let bits = |compression| Compressed::new(&normal(6400), compression).bytes() as f64 * 8.0 / 6400.0;
        let of = [Compression::Bf16, Compression::Int8, Compression::Nf4].map(bits);
        assert_eq!(of, [16.0, 8.5, 4.5]);
    }

    #[test]
    fn zeros_and_the_ends_of_a_block_are_exact() {
        let mut values = vec![0.0; 128];
        values[70] = -3.0;
        for compression in [Compression::Bf16, Compression::Int8, Compression::Nf4] {
            let back = expanded(&Compressed::new(&values, compression));
            assert_eq!(back, values, "{compression:?}");
        }
        let nan = Compressed::new(&[1.0, f32::NAN, 2.0], Compression::Nf4);
        assert!(expanded(&nan).iter().all(|x| x.is_nan()));
    }

    #[test]
    fn every_level_expands_alike_and_parts_are_parts() {
        let values = normal(1000);
        for compression in [Compression::Bf16, Compression::Int8, Compression::Nf4] {
            let compressed = Compressed::new(&values, compression);
            let whole = expanded(&compressed);
            let mut part = vec![0.0; 300];
            compressed.expand(128, &mut part);
            assert_eq!(part, whole[128..428]);
            for level in SimdLevel::available() {
                let mut out = vec![0.0; 1000];
                let Compressed { codes, scales, .. } = &compressed;
                match compression {
                    Compression::Bf16 => expand_bf16_at(level, codes, &mut out),
                    Compression::Int8 => expand_int8_at(level, codes, scales, &mut out),
                    Compression::Nf4 => expand_nf4_at(level, codes, scales, &mut out),
                }
                assert_eq!(out, whole, "{}", level.name());
            }
            // Rows that begin inside of blocks.
            let mut rows = vec![-1.0; 4 * 25];
            compressed.embed(25, 100, &[139, 100, 99, 103], &mut rows);
            let expected = [&whole[975..], &whole[..25], &[-1.0; 25], &whole[75..100]].concat();
            assert_eq!(rows, expected);
        }
    }
}
