//! Matrix products, and operands packed for them.

use std::fmt;

use crate::cpu::pool::PanelsBlock;
use crate::cpu::{self, Dtype, Leaves, Start};
use crate::device;
use crate::{Mat, MatMut, Stream};

/// The right operand of products, packed for the device; [`cpu::Panels`] on the CPU.
pub struct Panels(Kind);

enum Kind {
    Cpu(PanelsBlock),
}

impl Panels {
    /// The summed dim `k`.
    pub fn rows(&self) -> usize {
        self.on_cpu().rows()
    }

    /// Output columns.
    pub fn cols(&self) -> usize {
        self.on_cpu().cols()
    }

    fn on_cpu(&self) -> &cpu::Panels {
        let Kind::Cpu(block) = &self.0;
        &block.panels
    }
}

impl fmt::Debug for Panels {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.on_cpu().fmt(out)
    }
}

impl Stream {
    /// Packs `b` (`[k][n]`) as elements of `dtype`, to which products round their left operand too. For a weight stored
    /// `[out][in]` pass its transposed view.
    pub fn pack(&self, b: Mat<'_>, dtype: Dtype) -> Panels {
        let mut panels = self.panels_for(b.rows(), b.cols());
        self.pack_into(b, dtype, &mut panels);
        panels
    }

    /// Packs another matrix into the memory of `panels`.
    pub fn pack_into(&self, b: Mat<'_>, dtype: Dtype, panels: &mut Panels) {
        let Kind::Cpu(block) = &mut panels.0;
        block.panels.pack_from(b.on_cpu(), dtype);
    }

    /// A packed operand of no size yet, to pack into.
    pub fn no_panels(&self) -> Panels {
        self.panels_for(0, 0)
    }

    fn panels_for(&self, rows: usize, cols: usize) -> Panels {
        let device::Kind::Cpu(pool) = &self.device().0;
        Panels(Kind::Cpu(pool.take_panels(rows, cols)))
    }

    /// `c = (c +) a · b`: one accumulator an element, over ascending `k`.
    ///
    /// # Panics
    /// The dims disagree.
    pub fn matmul_panels(&self, a: Mat<'_>, b: &Panels, c: MatMut<'_>, start: Start) {
        cpu::matmul_panels(a.on_cpu(), b.on_cpu(), &mut c.on_cpu(), start);
    }

    /// `c = (c +) a · b`, the sum over the runs of `leaves`, which are one leaf: it continues from `c`.
    ///
    /// # Panics
    /// The dims disagree, there are other leaves, or a run lies beyond `k`.
    pub fn matmul_leaf(&self, a: Mat<'_>, b: &Panels, leaves: &Leaves, c: MatMut<'_>, start: Start) {
        cpu::matmul_leaf(a.on_cpu(), b.on_cpu(), leaves, &mut c.on_cpu(), start);
    }

    /// `c = a · b`, the sum over `k` cut into `leaves`, which are added in the tree.
    ///
    /// # Panics
    /// The dims disagree, or a leaf lies beyond `k`.
    pub fn matmul_tree(&self, a: Mat<'_>, b: &Panels, leaves: &Leaves, c: MatMut<'_>, start: Start) {
        cpu::matmul_tree(a.on_cpu(), b.on_cpu(), leaves, &mut c.on_cpu(), start);
    }
}
