//! Memory of a device, opaque to the host: [`Buffer`] and its views.
//!
//! The host sees elements only through a [`Stream`](crate::Stream): [`to_host`](crate::Stream::to_host) and its neighbours.

use std::fmt;
use std::marker::PhantomData;
use std::ops::Range;

use crate::cpu::pool::Block;
use crate::cuda;

/// Numbers in the memory of a device. When it is dropped its memory serves later buffers of the device: operations that were
/// enqueued before still find it, since the streams of a device keep their order.
pub struct Buffer {
    memory: Memory,
    len: usize,
}

enum Memory {
    Cpu(Block),
    Cuda(cuda::Block),
}

/// What becomes of an operand that lies on another device than the stream's.
#[cold]
pub(crate) fn elsewhere(device: &str) -> ! {
    panic!("an operand that does not lie on the stream's device, {device}")
}

impl Buffer {
    pub(crate) fn on_cpu(block: Block, len: usize) -> Self {
        Self { memory: Memory::Cpu(block), len }
    }

    pub(crate) fn on_cuda(block: cuda::Block, len: usize) -> Self {
        Self { memory: Memory::Cuda(block), len }
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
        View(match &self.memory {
            Memory::Cpu(block) => Elements::Cpu(&block.elements()[..self.len]),
            Memory::Cuda(block) => Elements::Cuda(block.run(), PhantomData),
        })
    }

    /// All elements, to write.
    pub fn view_mut(&mut self) -> ViewMut<'_> {
        ViewMut(match &mut self.memory {
            Memory::Cpu(block) => ElementsMut::Cpu(&mut block.elements_mut()[..self.len]),
            Memory::Cuda(block) => ElementsMut::Cuda(block.run(), PhantomData),
        })
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
    Cuda(cuda::Run, PhantomData<&'a [f32]>),
}

impl<'a> View<'a> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self.0 {
            Elements::Cpu(elements) => elements.len(),
            Elements::Cuda(run, _) => run.len,
        }
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
        Self(match self.0 {
            Elements::Cpu(elements) => Elements::Cpu(&elements[range]),
            Elements::Cuda(run, lifetime) => Elements::Cuda(run.slice(range), lifetime),
        })
    }

    /// The elements, on the CPU.
    pub(crate) fn on_cpu(self) -> &'a [f32] {
        match self.0 {
            Elements::Cpu(elements) => elements,
            Elements::Cuda(..) => elsewhere("the CPU"),
        }
    }

    /// The elements, on a GPU.
    pub(crate) fn on_cuda(self) -> cuda::Run {
        match self.0 {
            Elements::Cuda(run, _) => run,
            Elements::Cpu(_) => elsewhere("a GPU"),
        }
    }
}

/// A run of elements of a buffer, to write.
pub struct ViewMut<'a>(ElementsMut<'a>);

enum ElementsMut<'a> {
    Cpu(&'a mut [f32]),
    Cuda(cuda::Run, PhantomData<&'a mut [f32]>),
}

impl<'a> ViewMut<'a> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match &self.0 {
            ElementsMut::Cpu(elements) => elements.len(),
            ElementsMut::Cuda(run, _) => run.len,
        }
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
        Self(match self.0 {
            ElementsMut::Cpu(elements) => ElementsMut::Cpu(&mut elements[range]),
            ElementsMut::Cuda(run, lifetime) => ElementsMut::Cuda(run.slice(range), lifetime),
        })
    }

    /// The elements before `middle`, and those from there on.
    ///
    /// # Panics
    /// `middle` lies beyond the view.
    pub fn split_at(self, middle: usize) -> (Self, Self) {
        match self.0 {
            ElementsMut::Cpu(elements) => {
                let (left, right) = elements.split_at_mut(middle);
                (Self(ElementsMut::Cpu(left)), Self(ElementsMut::Cpu(right)))
            }
            ElementsMut::Cuda(run, lifetime) => {
                let parts = [0..middle, middle..run.len].map(|range| run.slice(range));
                let [left, right] = parts.map(|part| Self(ElementsMut::Cuda(part, lifetime)));
                (left, right)
            }
        }
    }

    /// The same elements, lent for shorter.
    pub fn reborrow(&mut self) -> ViewMut<'_> {
        ViewMut(match &mut self.0 {
            ElementsMut::Cpu(elements) => ElementsMut::Cpu(elements),
            ElementsMut::Cuda(run, _) => ElementsMut::Cuda(*run, PhantomData),
        })
    }

    /// The same elements, to read.
    pub fn as_view(&self) -> View<'_> {
        View(match &self.0 {
            ElementsMut::Cpu(elements) => Elements::Cpu(elements),
            ElementsMut::Cuda(run, _) => Elements::Cuda(*run, PhantomData),
        })
    }

    /// The elements, on the CPU.
    pub(crate) fn on_cpu(self) -> &'a mut [f32] {
        match self.0 {
            ElementsMut::Cpu(elements) => elements,
            ElementsMut::Cuda(..) => elsewhere("the CPU"),
        }
    }

    /// The elements, on a GPU.
    pub(crate) fn on_cuda(self) -> cuda::Run {
        match self.0 {
            ElementsMut::Cuda(run, _) => run,
            ElementsMut::Cpu(_) => elsewhere("a GPU"),
        }
    }
}

/// Indices in the memory of a device: what an operation reads of the host's data for every row, such as tokens, positions and
/// targets. Made once a micro-batch by [`Stream::upload_indices`](crate::Stream::upload_indices).
#[derive(Debug)]
pub struct IndexBuffer(Indices);

#[derive(Debug)]
enum Indices {
    Cpu(Vec<u32>),
    Cuda(cuda::Block),
}

impl IndexBuffer {
    pub(crate) fn on_cpu(indices: Vec<u32>) -> Self {
        Self(Indices::Cpu(indices))
    }

    pub(crate) fn on_cuda(block: cuda::Block) -> Self {
        Self(Indices::Cuda(block))
    }

    /// All of them.
    pub fn view(&self) -> IndexView<'_> {
        IndexView(match &self.0 {
            Indices::Cpu(indices) => IndexElements::Cpu(indices),
            Indices::Cuda(block) => IndexElements::Cuda(block.run(), PhantomData),
        })
    }

    /// Some of them.
    ///
    /// # Panics
    /// The range ends beyond the buffer.
    pub fn slice(&self, range: Range<usize>) -> IndexView<'_> {
        IndexView(match &self.0 {
            Indices::Cpu(indices) => IndexElements::Cpu(&indices[range]),
            Indices::Cuda(block) => IndexElements::Cuda(block.run().slice(range), PhantomData),
        })
    }
}

/// A run of indices.
#[derive(Clone, Copy)]
pub struct IndexView<'a>(IndexElements<'a>);

#[derive(Clone, Copy)]
enum IndexElements<'a> {
    Cpu(&'a [u32]),
    Cuda(cuda::Run, PhantomData<&'a [u32]>),
}

impl<'a> IndexView<'a> {
    /// The indices, on the CPU.
    pub(crate) fn on_cpu(self) -> &'a [u32] {
        match self.0 {
            IndexElements::Cpu(indices) => indices,
            IndexElements::Cuda(..) => elsewhere("the CPU"),
        }
    }

    /// The indices, on a GPU.
    pub(crate) fn on_cuda(self) -> cuda::Run {
        match self.0 {
            IndexElements::Cuda(run, _) => run,
            IndexElements::Cpu(_) => elsewhere("a GPU"),
        }
    }
}
