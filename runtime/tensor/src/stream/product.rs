//! Matrix products, and weights packed for them.

use crate::cpu::{self, Leaves, Start};
use crate::{Mat, MatMut, Stream};

/// The right operand of products, packed for the device; [`cpu::Panels`] on the CPU.
#[derive(Debug)]
pub struct Panels(Kind);

#[derive(Debug)]
enum Kind {
    Cpu(cpu::Panels),
}

impl Panels {
    /// The summed dim `k`.
    pub fn rows(&self) -> usize {
        let Kind::Cpu(panels) = &self.0;
        panels.rows()
    }

    /// Output columns.
    pub fn cols(&self) -> usize {
        let Kind::Cpu(panels) = &self.0;
        panels.cols()
    }

    /// Bytes of the packed elements, padding included.
    pub fn bytes(&self) -> usize {
        let Kind::Cpu(panels) = &self.0;
        panels.bytes()
    }
}

impl Stream {
    /// Packs `b` (`[k][n]`). For a weight stored `[out][in]` pass its transposed view.
    pub fn pack(&self, b: Mat<'_>) -> Panels {
        Panels(Kind::Cpu(cpu::Panels::pack(b.on_cpu())))
    }

    /// Packs another matrix into the memory of `panels`.
    pub fn pack_into(&self, b: Mat<'_>, panels: &mut Panels) {
        let Kind::Cpu(panels) = &mut panels.0;
        panels.pack_from(b.on_cpu());
    }

    /// Memory for packed operands, of no size yet.
    pub fn no_panels(&self) -> Panels {
        Panels(Kind::Cpu(cpu::Panels::default()))
    }

    /// `c = (c +) a · b`: one accumulator an element, over ascending `k`.
    ///
    /// # Panics
    /// The dims disagree.
    pub fn matmul_panels(&self, a: Mat<'_>, b: &Panels, c: MatMut<'_>, start: Start) {
        let Kind::Cpu(b) = &b.0;
        cpu::matmul_panels(a.on_cpu(), b, &mut c.on_cpu(), start);
    }

    /// `c = a · b`, the sum over `k` cut into `leaves`, which are added in the tree.
    ///
    /// # Panics
    /// The dims disagree, or a leaf lies beyond `k`.
    pub fn matmul_tree(&self, a: Mat<'_>, b: &Panels, leaves: &Leaves, c: MatMut<'_>) {
        let Kind::Cpu(b) = &b.0;
        cpu::matmul_tree(a.on_cpu(), b, leaves, &mut c.on_cpu());
    }
}
