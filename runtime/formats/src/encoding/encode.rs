//! From f32 to the bytes of a file.

use half::{bf16, f16};

use super::Encoding;

impl Encoding {
    /// The encodings that are written.
    pub const WRITTEN: [Self; 5] = [Self::F32, Self::F16, Self::Bf16, Self::Q8_0, Self::Q4_0];

    /// Appends whole blocks to `out`, rounded as ggml's reference does.
    ///
    /// # Panics
    /// If the encoding is none of [`Self::WRITTEN`], or `numbers` are not whole blocks.
    pub fn encode(self, numbers: &[f32], out: &mut Vec<u8>) {
        assert!(numbers.len().is_multiple_of(self.block_numbers()), "{} in blocks", self.name());
        match self {
            Self::F32 => out.extend(numbers.iter().flat_map(|number| number.to_le_bytes())),
            Self::F16 => out.extend(numbers.iter().flat_map(|number| f16::from_f32(*number).to_le_bytes())),
            Self::Bf16 => out.extend(numbers.iter().flat_map(|number| bf16::from_f32(*number).to_le_bytes())),
            Self::Q8_0 => numbers.chunks_exact(32).for_each(|block| q8_0(block, out)),
            Self::Q4_0 => numbers.chunks_exact(32).for_each(|block| q4_0(block, out)),
            other => panic!("{} is not written", other.name()),
        }
    }
}

/// One over a scale; a block of zeros has none.
fn inverse(scale: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { 1.0 / scale }
}

fn q8_0(block: &[f32], out: &mut Vec<u8>) {
    let scale = block.iter().fold(0.0_f32, |max, number| max.max(number.abs())) / 127.0;
    let inverse = inverse(scale);
    out.extend(f16::from_f32(scale).to_le_bytes());
    out.extend(block.iter().map(|number| ((number * inverse).round() as i8).cast_unsigned()));
}

fn q4_0(block: &[f32], out: &mut Vec<u8>) {
    // The number of the greatest magnitude, with its sign, becomes -8: the first of several.
    let farthest = |far: f32, number: &f32| if number.abs() > far.abs() { *number } else { far };
    let scale = block.iter().fold(block[0], farthest) / -8.0;
    let inverse = inverse(scale);
    let quantised = |number: f32| ((number * inverse + 8.5) as u8).min(15);
    out.extend(f16::from_f32(scale).to_le_bytes());
    let (low, high) = block.split_at(16);
    out.extend(low.iter().zip(high).map(|(low, high)| quantised(*low) | quantised(*high) << 4));
}
