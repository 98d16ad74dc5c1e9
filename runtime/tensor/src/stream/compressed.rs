//! Weights in fewer bits, on a device.

use crate::cpu::{self, Compression};
use crate::{IndexView, Stream, ViewMut};

/// Numbers in fewer bits; [`cpu::Compressed`] on the CPU. Their memory is no buffer's.
#[derive(Debug)]
pub struct Compressed(Kind);

#[derive(Debug)]
enum Kind {
    Cpu(cpu::Compressed),
}

impl Compressed {
    /// Numbers.
    pub fn len(&self) -> usize {
        self.on_cpu().len()
    }

    /// Whether there are no numbers.
    pub fn is_empty(&self) -> bool {
        self.on_cpu().is_empty()
    }

    /// Bytes that they take.
    pub fn bytes(&self) -> usize {
        self.on_cpu().bytes()
    }

    fn on_cpu(&self) -> &cpu::Compressed {
        let Kind::Cpu(compressed) = &self.0;
        compressed
    }
}

impl Stream {
    /// Numbers of the host in fewer bits; see [`cpu::Compressed::new`].
    pub fn compress(&self, values: &[f32], compression: Compression) -> Compressed {
        Compressed(Kind::Cpu(cpu::Compressed::new(values, compression)))
    }

    /// Writes all numbers to `out`.
    ///
    /// # Panics
    /// The lengths differ.
    pub fn expand(&self, compressed: &Compressed, out: ViewMut<'_>) {
        assert_eq!(compressed.len(), out.len(), "lengths of an expansion");
        compressed.on_cpu().expand(0, out.on_cpu());
    }

    /// As [`Self::embed`], of a compressed table.
    ///
    /// # Panics
    /// As [`Self::embed`].
    pub fn embed_compressed(
        &self,
        table: &Compressed,
        width: usize,
        first_id: usize,
        ids: IndexView<'_>,
        out: ViewMut<'_>,
    ) {
        table.on_cpu().embed(width, first_id, ids.on_cpu(), out.on_cpu());
    }
}
