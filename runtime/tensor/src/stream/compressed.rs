//! Weights in fewer bits, on a device.

use crate::buffer::elsewhere;
use crate::cpu::{self, Compression};
use crate::{IndexView, Stream, ViewMut, cuda, device};

/// Numbers in fewer bits; [`cpu::Compressed`] on the CPU. Their memory is no buffer's.
#[derive(Debug)]
pub struct Compressed(Kind);

#[derive(Debug)]
enum Kind {
    Cpu(cpu::Compressed),
    Cuda(cuda::compressed::Compressed),
}

impl Compressed {
    /// Numbers.
    pub fn len(&self) -> usize {
        match &self.0 {
            Kind::Cpu(compressed) => compressed.len(),
            Kind::Cuda(compressed) => compressed.len(),
        }
    }

    /// Whether there are no numbers.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes that they take.
    pub fn bytes(&self) -> usize {
        match &self.0 {
            Kind::Cpu(compressed) => compressed.bytes(),
            Kind::Cuda(compressed) => compressed.bytes(),
        }
    }
}

impl Stream {
    /// Numbers of the host in fewer bits; see [`cpu::Compressed::new`].
    pub fn compress(&self, values: &[f32], compression: Compression) -> Compressed {
        let compressed = cpu::Compressed::new(values, compression);
        Compressed(match &self.device().0 {
            device::Kind::Cpu(_) => Kind::Cpu(compressed),
            device::Kind::Cuda(cuda) => Kind::Cuda(cuda::compressed::Compressed::upload(cuda, &compressed)),
        })
    }

    /// Writes all numbers to `out`.
    ///
    /// # Panics
    /// The lengths differ.
    pub fn expand(&self, compressed: &Compressed, out: ViewMut<'_>) {
        assert_eq!(compressed.len(), out.len(), "lengths of an expansion");
        match (&compressed.0, &self.device().0) {
            (Kind::Cpu(compressed), _) => compressed.expand(0, out.on_cpu()),
            (Kind::Cuda(compressed), device::Kind::Cuda(cuda)) => compressed.expand(cuda, out.on_cuda()),
            (Kind::Cuda(_), device::Kind::Cpu(_)) => elsewhere("the CPU"),
        }
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
        match (&table.0, &self.device().0) {
            (Kind::Cpu(table), _) => table.embed(width, first_id, ids.on_cpu(), out.on_cpu()),
            (Kind::Cuda(table), device::Kind::Cuda(cuda)) => {
                table.embed(cuda, width, first_id, ids.on_cuda(), out.on_cuda());
            }
            (Kind::Cuda(_), device::Kind::Cpu(_)) => elsewhere("the CPU"),
        }
    }
}
