//! How the numbers of a tensor are encoded in a file: [`Encoding`], [`Encoding::decode`] and [`Encoding::encode`].
//!
//! Numbers that are not stored one by one come in blocks of a fixed length with scales of their own. Layouts are those
//! of ggml (`ggml-common.h`); results have the bits of the PyPI package `gguf`, whose arithmetic is in f32.

mod decode;
mod encode;

/// How numbers are encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Encoding {
    /// IEEE 754 single precision.
    F32,
    /// IEEE 754 half precision.
    F16,
    /// The upper half of single precision.
    Bf16,
    /// 32 numbers of 8 bits with a scale.
    Q8_0,
    /// 32 numbers of 4 bits with a scale.
    Q4_0,
    /// 32 numbers of 4 bits with a scale and a minimum.
    Q4_1,
    /// 32 numbers of 5 bits with a scale.
    Q5_0,
    /// 32 numbers of 5 bits with a scale and a minimum.
    Q5_1,
    /// 256 numbers of 4 bits in 8 groups, whose scales and minima are of 6 bits.
    Q4K,
    /// As `Q4K`, of 5 bits.
    Q5K,
    /// 256 numbers of 6 bits in 16 groups, whose scales are of 8 bits.
    Q6K,
}

/// An encoding, its name, its number in GGUF, the numbers of a block and the bytes of one.
type Row = (Encoding, &'static str, u32, usize, usize);

const TABLE: [Row; 11] = [
    (Encoding::F32, "F32", 0, 1, 4),
    (Encoding::F16, "F16", 1, 1, 2),
    (Encoding::Q4_0, "Q4_0", 2, 32, 18),
    (Encoding::Q4_1, "Q4_1", 3, 32, 20),
    (Encoding::Q5_0, "Q5_0", 6, 32, 22),
    (Encoding::Q5_1, "Q5_1", 7, 32, 24),
    (Encoding::Q8_0, "Q8_0", 8, 32, 34),
    (Encoding::Q4K, "Q4_K", 12, 256, 144),
    (Encoding::Q5K, "Q5_K", 13, 256, 176),
    (Encoding::Q6K, "Q6_K", 14, 256, 210),
    (Encoding::Bf16, "BF16", 30, 1, 2),
];

impl Encoding {
    /// All of them.
    pub fn all() -> impl Iterator<Item = Self> {
        TABLE.iter().map(|row| row.0)
    }

    fn row(self) -> &'static Row {
        TABLE.iter().find(|row| row.0 == self).unwrap_or(&TABLE[0])
    }

    /// As ggml writes it, for example `Q4_K`.
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// The `ggml_type` of GGUF files.
    pub fn ggml_type(self) -> u32 {
        self.row().2
    }

    /// The encoding with this `ggml_type`, if it is one that is read here.
    pub fn of_ggml_type(number: u32) -> Option<Self> {
        TABLE.iter().find(|row| row.2 == number).map(|row| row.0)
    }

    /// Numbers of a block; 1 where they are stored one by one.
    pub fn block_numbers(self) -> usize {
        self.row().3
    }

    /// Bytes of a block.
    pub fn block_bytes(self) -> usize {
        self.row().4
    }

    /// Whether numbers are stored one by one, so that nothing was lost but digits.
    pub fn is_plain(self) -> bool {
        self.block_numbers() == 1
    }

    /// Bytes of so many numbers, if they are whole blocks and can be counted.
    pub fn bytes_of(self, numbers: usize) -> Option<usize> {
        let whole = numbers.is_multiple_of(self.block_numbers());
        whole.then(|| (numbers / self.block_numbers()).checked_mul(self.block_bytes())).flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_encoding_has_a_number_and_a_name_of_its_own() {
        for one in Encoding::all() {
            assert_eq!(Encoding::of_ggml_type(one.ggml_type()), Some(one));
            assert_eq!(Encoding::all().filter(|other| other.name() == one.name()).count(), 1);
        }
        assert_eq!(Encoding::of_ggml_type(4), None);
    }

    #[test]
    fn bytes_are_those_of_whole_blocks() {
        assert_eq!(Encoding::Q4K.bytes_of(512), Some(288));
        assert_eq!(Encoding::Q4K.bytes_of(255), None);
        assert_eq!(Encoding::F32.bytes_of(usize::MAX), None);
    }
}
