//! Units in a safetensors file.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::Arc;

use safetensors::tensor::{Dtype, SafeTensorError, SafeTensors, View, serialize};
use sixfold_model::{Geometry, HostUnits, UnitBuffer, UnitId};
use sixfold_parallel::{RankSlice, Trainer};

use super::CheckpointError;

/// Names of the three numbers kept for each parameter, in the order of [`Trainer::state`].
pub(super) const PARTS: [&str; 3] = ["parameter", "first_moment", "second_moment"];

/// Parameters and moments of a rank.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct RankState {
    /// Parameters, first and second moments.
    pub(crate) buffers: [UnitBuffer; 3],
}

impl RankState {
    /// All zeros.
    pub(crate) fn zeros(geometry: &Geometry, slice: &RankSlice) -> Self {
        let index = Arc::new(slice.parameter_index(geometry));
        Self { buffers: std::array::from_fn(|_| UnitBuffer::zeros(index.clone())) }
    }

    /// Overwrites a trainer's state, which is of the same slice.
    pub(crate) fn restore(&self, trainer: &mut Trainer) {
        trainer.restore(self.buffers.each_ref());
    }
}

/// The bytes of a file with parameters and moments of `trainer`.
pub(crate) fn encode(trainer: &Trainer) -> Result<Vec<u8>, SafeTensorError> {
    encode_buffers(trainer.state().each_ref())
}

pub(super) fn encode_buffers(buffers: [&HostUnits<'_>; 3]) -> Result<Vec<u8>, SafeTensorError> {
    let tensors = PARTS.iter().zip(buffers).flat_map(|(part, buffer)| {
        buffer.iter().map(move |(unit, values)| (name(unit, part), Numbers { shape: [values.len()], values }))
    });
    serialize(tensors, None)
}

fn name(unit: UnitId, part: &str) -> String {
    format!("{unit}/{part}")
}

/// Copies the units of `wanted` that `file` has into `buffers`, one buffer for each of the first
/// parts, and takes them off `wanted`.
pub(super) fn read(
    file: &[u8],
    wanted: &mut BTreeSet<UnitId>,
    buffers: &mut [UnitBuffer],
) -> Result<(), CheckpointError> {
    let tensors = SafeTensors::deserialize(file)?;
    let has = |unit: &UnitId| tensors.tensor(&name(*unit, PARTS[0])).is_ok();
    let found: Vec<UnitId> = wanted.iter().copied().filter(has).collect();
    for unit in found {
        for (part, buffer) in PARTS.iter().zip(buffers.iter_mut()) {
            copy(&tensors, name(unit, part), buffer.unit_mut(unit))?;
        }
        wanted.remove(&unit);
    }
    Ok(())
}

fn copy(tensors: &SafeTensors<'_>, name: String, values: &mut [f32]) -> Result<(), CheckpointError> {
    let view = tensors.tensor(&name)?;
    if view.dtype() != Dtype::F32 || view.shape() != [values.len()] {
        let (dtype, shape) = (view.dtype(), view.shape().to_vec());
        return Err(CheckpointError::Tensor { name, dtype, shape, expected: values.len() });
    }
    let (numbers, _) = view.data().as_chunks::<4>();
    values.iter_mut().zip(numbers).for_each(|(value, bytes)| *value = f32::from_le_bytes(*bytes));
    Ok(())
}

struct Numbers<'a> {
    shape: [usize; 1],
    values: &'a [f32],
}

impl View for Numbers<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        if cfg!(target_endian = "little") {
            return bytemuck::cast_slice(self.values).into();
        }
        self.values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>().into()
    }

    fn data_len(&self) -> usize {
        size_of_val(self.values)
    }
}

#[cfg(test)]
mod tests {
    use sixfold_model::ModelSlice;

    use super::*;
    use crate::options::TrainOptions;

    fn state(slice: &RankSlice, geometry: &Geometry) -> RankState {
        let mut state = RankState::zeros(geometry, slice);
        for (kind, buffer) in state.buffers.iter_mut().enumerate() {
            for (at, value) in buffer.values_mut().iter_mut().enumerate() {
                *value = if at % 7 == 0 { -0.0 } else { kind as f32 + at as f32 * 0.5 };
            }
        }
        state
    }

    fn geometry() -> Geometry {
        let options = TrainOptions { layers: 2, hidden_size: 16, heads: 4, ..TrainOptions::default() };
        options.geometry(40, None).unwrap()
    }

    #[test]
    fn units_are_found_in_whichever_file_has_them() {
        let geometry = geometry();
        let of = |slice: ModelSlice| RankSlice::from_iter([slice]);
        let half = |shards| of(ModelSlice { shards, ..ModelSlice::whole(&geometry) });
        let files: Vec<_> = [0..2, 2..4]
            .map(|shards| encode_buffers(state(&half(shards), &geometry).buffers.each_ref()).unwrap())
            .into_iter()
            .collect();
        let slice = of(ModelSlice { layers: 1..2, input: false, output: true, shards: 0..4 });
        let mut wanted: BTreeSet<_> = slice.units(&geometry).into_iter().collect();
        let mut read_back = RankState::zeros(&geometry, &slice);
        for file in &files {
            assert!(!wanted.is_empty());
            read(file, &mut wanted, &mut read_back.buffers).unwrap();
        }
        assert!(wanted.is_empty());
        let first = state(&half(0..2), &geometry);
        for unit in slice.units(&geometry) {
            for (read_back, written) in read_back.buffers.iter().zip(&first.buffers) {
                if let Some(written) = written.get(unit) {
                    let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
                    assert_eq!(bits(read_back.unit(unit)), bits(written), "{unit}");
                }
            }
        }
    }

    #[test]
    fn a_file_of_another_shape_is_refused() {
        let geometry = geometry();
        let slice = RankSlice::whole(&geometry);
        let file = encode_buffers(state(&slice, &geometry).buffers.each_ref()).unwrap();
        let wider = TrainOptions { layers: 2, hidden_size: 32, heads: 4, ..TrainOptions::default() };
        let wider = wider.geometry(40, None).unwrap();
        let mut wanted: BTreeSet<_> = slice.units(&wider).into_iter().collect();
        let mut buffers = RankState::zeros(&wider, &slice).buffers;
        assert!(matches!(read(&file, &mut wanted, &mut buffers), Err(CheckpointError::Tensor { .. })));
        let cut = &file[..file.len() - 1];
        assert!(matches!(read(cut, &mut wanted, &mut buffers), Err(CheckpointError::Units(_))));
    }
}
