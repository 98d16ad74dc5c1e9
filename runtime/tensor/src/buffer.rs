//! Memory of a device, opaque to the host: [`Buffer`] and its views.
//!
//! The host sees elements only through a [`Stream`](crate::Stream): [`to_host`](crate::Stream::to_host) and its neighbours.

use std::fmt;
use std::ops::Range;

use crate::cpu::pool::Block;

/// Numbers in the memory of a device. When it is dropped its memory serves later buffers of the device: operations that were
/// enqueued before still find it, since the streams of a device keep their order.
pub struct Buffer {
    memory: Memory,
    len: usize,
}

enum Memory {
    Cpu(Block),
}

impl Buffer {
    pub(crate) fn on_cpu(block: Block, len: usize) -> Self {
        Self { memory: Memory::Cpu(block), len }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All elements, to read.
    pub fn view(&self) -> View<'_> {
        let Memory::Cpu(block) = &self.memory;
        View(Elements::Cpu(&block.elements()[..self.len]))
    }

    /// All elements, to write.
    pub fn view_mut(&mut self) -> ViewMut<'_> {
        let Memory::Cpu(block) = &mut self.memory;
        ViewMut(ElementsMut::Cpu(&mut block.elements_mut()[..self.len]))
    }

    /// Some elements, to read.
    ///
    /// # Panics
    /// The range ends beyond the buffer.
    pub fn slice(&self, range: Range<usize>) -> View<'_> {
        self.view().slice(range)
    }

    /// Some elements, to write.
    ///
    /// # Panics
    /// The range ends beyond the buffer.
    pub fn slice_mut(&mut self, range: Range<usize>) -> ViewMut<'_> {
        self.view_mut().slice(range)
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Buffer").field("len", &self.len).finish_non_exhaustive()
    }
}

/// A run of elements of a buffer, to read.
#[derive(Clone, Copy)]
pub struct View<'a>(Elements<'a>);

#[derive(Clone, Copy)]
enum Elements<'a> {
    Cpu(&'a [f32]),
}

impl<'a> View<'a> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        let Elements::Cpu(elements) = self.0;
        elements.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Some of the elements.
    ///
    /// # Panics
    /// The range ends beyond the view.
    pub fn slice(self, range: Range<usize>) -> Self {
        let Elements::Cpu(elements) = self.0;
        Self(Elements::Cpu(&elements[range]))
    }

    /// The elements, on the CPU.
    pub(crate) fn on_cpu(self) -> &'a [f32] {
        let Elements::Cpu(elements) = self.0;
        elements
    }
}

/// A run of elements of a buffer, to write.
pub struct ViewMut<'a>(ElementsMut<'a>);

enum ElementsMut<'a> {
    Cpu(&'a mut [f32]),
}

impl<'a> ViewMut<'a> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        let ElementsMut::Cpu(elements) = &self.0;
        elements.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Some of the elements.
    ///
    /// # Panics
    /// The range ends beyond the view.
    pub fn slice(self, range: Range<usize>) -> Self {
        let ElementsMut::Cpu(elements) = self.0;
        Self(ElementsMut::Cpu(&mut elements[range]))
    }

    /// The elements before `middle`, and those from there on.
    ///
    /// # Panics
    /// `middle` lies beyond the view.
    pub fn split_at(self, middle: usize) -> (Self, Self) {
        let ElementsMut::Cpu(elements) = self.0;
        let (left, right) = elements.split_at_mut(middle);
        (Self(ElementsMut::Cpu(left)), Self(ElementsMut::Cpu(right)))
    }

    /// The same elements, lent for shorter.
    pub fn reborrow(&mut self) -> ViewMut<'_> {
        let ElementsMut::Cpu(elements) = &mut self.0;
        ViewMut(ElementsMut::Cpu(elements))
    }

    /// The same elements, to read.
    pub fn as_view(&self) -> View<'_> {
        let ElementsMut::Cpu(elements) = &self.0;
        View(Elements::Cpu(elements))
    }

    /// The elements, on the CPU.
    pub(crate) fn on_cpu(self) -> &'a mut [f32] {
        let ElementsMut::Cpu(elements) = self.0;
        elements
    }
}

/// Indices in the memory of a device: what an operation reads of the host's data for every row, such as tokens, positions and
/// targets. Made once a micro-batch by [`Stream::upload_indices`](crate::Stream::upload_indices).
#[derive(Debug)]
pub struct IndexBuffer(Indices);

#[derive(Debug)]
enum Indices {
    Cpu(Vec<u32>),
}

impl IndexBuffer {
    pub(crate) fn on_cpu(indices: Vec<u32>) -> Self {
        Self(Indices::Cpu(indices))
    }

    /// All of them.
    pub fn view(&self) -> IndexView<'_> {
        let Indices::Cpu(indices) = &self.0;
        IndexView(IndexElements::Cpu(indices))
    }

    /// Some of them.
    ///
    /// # Panics
    /// The range ends beyond the buffer.
    pub fn slice(&self, range: Range<usize>) -> IndexView<'_> {
        let Indices::Cpu(indices) = &self.0;
        IndexView(IndexElements::Cpu(&indices[range]))
    }
}

/// A run of indices.
#[derive(Clone, Copy)]
pub struct IndexView<'a>(IndexElements<'a>);

#[derive(Clone, Copy)]
enum IndexElements<'a> {
    Cpu(&'a [u32]),
}

impl<'a> IndexView<'a> {
    /// The indices, on the CPU.
    pub(crate) fn on_cpu(self) -> &'a [u32] {
        let IndexElements::Cpu(indices) = self.0;
        indices
    }
}
