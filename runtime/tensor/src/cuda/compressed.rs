//! Weights in fewer bits on a GPU.

use super::{Block, Cuda, Run};
use crate::cpu::{self, Compression};

const SOURCE: &str = "compressed";

/// Compressed numbers in the memory of a GPU.
#[derive(Debug)]
pub(crate) struct Compressed {
    compression: Compression,
    len: usize,
    bytes: usize,
    codes: Block,
    /// One a block; none in bfloat16.
    scales: Block,
}

impl Compressed {
    /// Uploads what the host compressed.
    pub(crate) fn upload(cuda: &Cuda, compressed: &cpu::Compressed) -> Self {
        let mut codes = vec![0_u32; compressed.codes().len().div_ceil(4)];
        bytemuck::cast_slice_mut(&mut codes)[..compressed.codes().len()].copy_from_slice(compressed.codes());
        Self {
            compression: compressed.compression(),
            len: compressed.len(),
            bytes: compressed.bytes(),
            codes: cuda.upload(&codes),
            scales: cuda.upload(compressed.scales()),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// As the kernels name it.
    fn format(&self) -> u32 {
        match self.compression {
            Compression::Bf16 => 0,
            Compression::Int8 => 1,
            Compression::Nf4 => 2,
        }
    }

    /// Writes all numbers.
    pub(crate) fn expand(&self, cuda: &Cuda, out: Run) {
        let launch = cuda.kernel(SOURCE, "expand").u32(self.format());
        launch.run(self.codes.run()).run(self.scales.run()).run(out).size(out.len).over(out.len);
    }

    pub(crate) fn embed(&self, cuda: &Cuda, width: usize, first_id: usize, ids: Run, out: Run) {
        assert_eq!((self.len % width, out.len), (0, ids.len * width), "shapes of an embedding");
        let launch = cuda.kernel(SOURCE, "embed_compressed").u32(self.format());
        let launch = launch.run(self.codes.run()).run(self.scales.run()).size(self.len).size(width);
        launch.size(first_id).run(ids).run(out).size(out.len).over(out.len);
    }
}
