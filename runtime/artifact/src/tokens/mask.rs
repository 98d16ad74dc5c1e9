//! A bit for each token: [`MaskBits`].

/// Bits that are pushed one after another, eight a byte, the first one lowest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MaskBits {
    bytes: Vec<u8>,
    bits: u64,
}

impl MaskBits {
    /// Adds the bit of the next token.
    pub fn push(&mut self, bit: bool) {
        if self.bits.is_multiple_of(8) {
            self.bytes.push(0);
        }
        if let Some(last) = self.bytes.last_mut() {
            *last |= u8::from(bit) << (self.bits % 8);
        }
        self.bits += 1;
    }

    /// The content of the file.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Bytes of a file for so many tokens.
    pub(super) const fn bytes_for(tokens: u64) -> u64 {
        tokens.div_ceil(8)
    }

    /// The bit of a token in the content of a file; not set behind its end.
    pub(super) fn get(bytes: &[u8], token: u64) -> bool {
        let byte = usize::try_from(token / 8).ok().and_then(|at| bytes.get(at));
        byte.is_some_and(|byte| byte >> (token % 8) & 1 == 1)
    }
}
