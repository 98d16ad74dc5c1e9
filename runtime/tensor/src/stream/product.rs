//! Matrix products, and operands packed for them.

use std::fmt;

use crate::buffer::elsewhere;
use crate::cpu::pool::PanelsBlock;
use crate::cpu::{self, Dtype, Leaves, Start};
use crate::cuda::product;
use crate::device;
use crate::{Mat, MatMut, Stream};

/// The right operand of products, packed for the device; [`cpu::Panels`] on the CPU.
pub struct Panels(Kind);

enum Kind {
    Cpu(PanelsBlock),
    Cuda(product::Panels),
}

impl Panels {
    /// The summed dim `k`.
    pub fn rows(&self) -> usize {
        match &self.0 {
            Kind::Cpu(block) => block.panels.rows(),
            Kind::Cuda(panels) => panels.rows(),
        }
    }

    /// Output columns.
    pub fn cols(&self) -> usize {
        match &self.0 {
            Kind::Cpu(block) => block.panels.cols(),
            Kind::Cuda(panels) => panels.cols(),
        }
    }
}

impl fmt::Debug for Panels {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Cpu(block) => block.panels.fmt(out),
            Kind::Cuda(panels) => panels.fmt(out),
        }
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
        match (&mut panels.0, &self.device().0) {
            (Kind::Cpu(block), _) => block.panels.pack_from(b.on_cpu(), dtype),
            (Kind::Cuda(panels), device::Kind::Cuda(cuda)) => panels.pack_from(cuda, b.on_cuda(), dtype),
            (Kind::Cuda(_), device::Kind::Cpu(_)) => elsewhere("the CPU"),
        }
    }

    /// A packed operand of no size yet, to pack into.
    pub fn no_panels(&self) -> Panels {
        self.panels_for(0, 0)
    }

    fn panels_for(&self, rows: usize, cols: usize) -> Panels {
        Panels(match &self.device().0 {
            device::Kind::Cpu(pool) => Kind::Cpu(pool.take_panels(rows, cols)),
            device::Kind::Cuda(cuda) => Kind::Cuda(product::Panels::new(cuda)),
        })
    }

    /// `c = (c +) a · b`: one accumulator an element, over ascending `k`.
    ///
    /// # Panics
    /// The dims disagree.
    pub fn matmul_panels(&self, a: Mat<'_>, b: &Panels, c: MatMut<'_>, start: Start) {
        match (&b.0, &self.device().0) {
            (Kind::Cpu(b), _) => cpu::matmul_panels(a.on_cpu(), &b.panels, &mut c.on_cpu(), start),
            (Kind::Cuda(b), device::Kind::Cuda(cuda)) => {
                product::matmul(cuda, a.on_cuda(), b, c.on_cuda(), start);
            }
            (Kind::Cuda(_), device::Kind::Cpu(_)) => elsewhere("the CPU"),
        }
    }

    /// `c = (c +) a · b`, the sum over the runs of `leaves`, which are one leaf: it continues from `c`.
    ///
    /// # Panics
    /// The dims disagree, there are other leaves, or a run lies beyond `k`.
    pub fn matmul_leaf(&self, a: Mat<'_>, b: &Panels, leaves: &Leaves, c: MatMut<'_>, start: Start) {
        match (&b.0, &self.device().0) {
            (Kind::Cpu(b), _) => cpu::matmul_leaf(a.on_cpu(), &b.panels, leaves, &mut c.on_cpu(), start),
            (Kind::Cuda(b), device::Kind::Cuda(cuda)) => {
                product::matmul_leaf(cuda, a.on_cuda(), b, leaves, c.on_cuda(), start);
            }
            (Kind::Cuda(_), device::Kind::Cpu(_)) => elsewhere("the CPU"),
        }
    }

    /// `c = a · b`, the sum over `k` cut into `leaves`, which are added in the tree.
    ///
    /// # Panics
    /// The dims disagree, or a leaf lies beyond `k`.
    pub fn matmul_tree(&self, a: Mat<'_>, b: &Panels, leaves: &Leaves, c: MatMut<'_>, start: Start) {
        match (&b.0, &self.device().0) {
            (Kind::Cpu(b), _) => cpu::matmul_tree(a.on_cpu(), &b.panels, leaves, &mut c.on_cpu(), start),
            (Kind::Cuda(b), device::Kind::Cuda(cuda)) => {
                product::matmul_tree(cuda, a.on_cuda(), b, leaves, c.on_cuda(), start);
            }
            (Kind::Cuda(_), device::Kind::Cpu(_)) => elsewhere("the CPU"),
        }
    }
}
