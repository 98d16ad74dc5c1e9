//! Where operations are enqueued: [`Stream`]. Its methods stand in files by topic; this one has memory and copies.
//!
//! Two kinds of data go into an operation. What is read for every row or element lies on the device: buffers, and
//! [`IndexBuffer`]s of tokens, positions and targets. What shapes the operation is an argument on the host: dims, document
//! starts, segments of rows, leaves of a sum, seeds. A device needs the latter before it can begin, and they are few, so they travel
//! with the call; neither waits for the device.

mod activation;
mod attention;
mod compressed;
mod elementwise;
mod embedding;
mod loss;
mod norm;
mod product;
mod sum;

use std::borrow::Cow;

use crate::device::Kind;
use crate::{Buffer, Device, IndexBuffer, View, ViewMut};

pub use attention::{AttentionSaved, KvBlocks, RopeTable};
pub use compressed::Compressed;
pub use norm::{LayerNormSaved, RmsNormSaved};
pub use product::Panels;

/// A queue of operations of one device, done in the order in which they are enqueued.
///
/// When a method returns, its operation has been enqueued. On the CPU it has then been done too, on which callers must not
/// rely: they see what it wrote only through the copies and borrows here, all of which wait for it.
///
/// A mismatch of shapes is an error of the caller's program and panics. Clones are the same queue.
#[derive(Clone, Debug)]
pub struct Stream {
    device: Device,
}

impl Stream {
    pub(crate) fn new(device: Device) -> Self {
        Self { device }
    }

    /// The device.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// A buffer whose elements hold anything, from memory that was freed where there is any.
    pub fn uninit(&self, len: usize) -> Buffer {
        match &self.device.0 {
            Kind::Cpu(pool) => Buffer::on_cpu(pool.take(len), len),
            Kind::Cuda(cuda) => Buffer::on_cuda(cuda.take(len), len),
        }
    }

    /// A buffer of zeros.
    pub fn zeros(&self, len: usize) -> Buffer {
        self.filled(len, 0.0)
    }

    /// A buffer that holds `value` everywhere.
    pub fn filled(&self, len: usize, value: f32) -> Buffer {
        let mut buffer = self.uninit(len);
        self.fill(buffer.view_mut(), value);
        buffer
    }

    /// A buffer with the elements of `view`.
    pub fn copy_of(&self, view: View<'_>) -> Buffer {
        let mut buffer = self.uninit(view.len());
        self.copy(view, buffer.view_mut());
        buffer
    }

    /// A buffer with these elements.
    pub fn upload(&self, values: &[f32]) -> Buffer {
        let mut buffer = self.uninit(values.len());
        self.from_host(values, buffer.view_mut());
        buffer
    }

    /// Indices for operations to read.
    pub fn upload_indices(&self, indices: &[u32]) -> IndexBuffer {
        match &self.device.0 {
            Kind::Cpu(_) => IndexBuffer::on_cpu(indices.to_vec()),
            Kind::Cuda(cuda) => IndexBuffer::on_cuda(cuda.upload(indices)),
        }
    }

    /// Copies elements from the host. `values` may change once this returns.
    ///
    /// # Panics
    /// The lengths differ.
    pub fn from_host(&self, values: &[f32], to: ViewMut<'_>) {
        match &self.device.0 {
            Kind::Cpu(_) => to.on_cpu().copy_from_slice(values),
            Kind::Cuda(cuda) => cuda.copy_in(values, to.on_cuda()),
        }
    }

    /// Copies elements to the host, once all operations before are done.
    ///
    /// # Panics
    /// The lengths differ.
    pub fn to_host(&self, from: View<'_>, values: &mut [f32]) {
        match &self.device.0 {
            Kind::Cpu(_) => values.copy_from_slice(from.on_cpu()),
            Kind::Cuda(cuda) => cuda.copy_out(from.on_cuda(), values),
        }
    }

    /// As [`Self::to_host`], to new memory of the host.
    pub fn to_vec(&self, from: View<'_>) -> Vec<f32> {
        let mut values = vec![0.0; from.len()];
        self.to_host(from, &mut values);
        values
    }

    /// The elements as the host sees them, once all operations before are done: in place where the memory of the device is that of the
    /// host, else a copy.
    pub fn host<'a>(&self, view: View<'a>) -> Cow<'a, [f32]> {
        match self.is_shared() {
            true => Cow::Borrowed(view.on_cpu()),
            false => Cow::Owned(self.to_vec(view)),
        }
    }

    /// Lends elements to the host, once all operations before are done, to read and change: in place where the memory of the device is that
    /// of the host, else a copy that is written back afterwards.
    pub fn with_host<R>(&self, view: ViewMut<'_>, work: impl FnOnce(&mut [f32]) -> R) -> R {
        if self.is_shared() {
            return work(view.on_cpu());
        }
        let mut copy = self.to_vec(view.as_view());
        let result = work(&mut copy);
        self.from_host(&copy, view);
        result
    }

    /// A buffer that the host may read as often as it wants, once all operations before are done.
    pub fn mirror(&self, buffer: Buffer) -> Mirror {
        let copy = (!self.is_shared()).then(|| self.to_vec(buffer.view()));
        Mirror { buffer, copy }
    }

    /// Whether the host may look at the device's memory itself.
    fn is_shared(&self) -> bool {
        match &self.device.0 {
            Kind::Cpu(pool) => !pool.is_strict(),
            Kind::Cuda(_) => false,
        }
    }
}

/// A buffer that does not change any more, and what the host sees of it.
#[derive(Debug)]
pub struct Mirror {
    buffer: Buffer,
    /// None where the device's memory is the host's.
    copy: Option<Vec<f32>>,
}

impl Mirror {
    /// The elements on the device.
    pub fn device(&self) -> View<'_> {
        self.buffer.view()
    }

    /// The elements on the host.
    pub fn host(&self) -> &[f32] {
        self.copy.as_deref().unwrap_or_else(|| self.buffer.view().on_cpu())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_host_sends_comes_back_and_what_it_changes_is_kept() {
        for device in [Device::cpu(), Device::strict_cpu()].into_iter().chain(Device::emulated_cuda()) {
            send_and_change(&device.stream());
        }
    }

    fn send_and_change(stream: &Stream) {
        let values: Vec<f32> = (0..700).map(|value| value as f32).collect();
        let mut buffer = stream.upload(&values);
        assert_eq!(stream.to_vec(buffer.view()), values);
        stream.with_host(buffer.slice_mut(10..12), |part| part.fill(-1.0));
        let mut part = [0.0; 4];
        stream.to_host(buffer.slice(9..13), &mut part);
        assert_eq!(part, [9.0, -1.0, -1.0, 12.0]);
        assert_eq!(stream.host(buffer.slice(12..13))[..], [12.0]);
        assert_eq!(stream.mirror(stream.copy_of(buffer.slice(1..3))).host(), [1.0, 2.0]);
    }

    #[test]
    fn views_are_cut_like_slices() {
        let stream = Device::cpu().stream();
        let mut buffer = stream.zeros(10);
        let (left, mut right) = buffer.view_mut().split_at(4);
        stream.fill(left.slice(1..3), 1.0);
        stream.fill(right.reborrow().slice(5..6), 2.0);
        assert_eq!(stream.to_vec(right.as_view().slice(4..6)), [0.0, 2.0]);
        assert_eq!(stream.to_vec(buffer.view()), [0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 2.0]);
    }

    #[test]
    fn freed_memory_is_used_again_and_holds_zeros_only_where_asked() {
        let stream = Device::cpu().stream();
        drop(stream.filled(5000, 3.0));
        let zeros = stream.zeros(5000);
        assert!(stream.to_vec(zeros.view()).iter().all(|value| *value == 0.0));
        assert_eq!(stream.device().memory_use().allocations, 1);
    }
}
