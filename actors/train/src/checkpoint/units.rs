//! Units, and parts of units, in a safetensors file.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use safetensors::tensor::{Dtype, SafeTensors};
use serde_json::json;
use sixfold_artifact::ContentBuffer;
use sixfold_model::{Geometry, HostUnits, UnitBuffer, UnitId, UnitIndex};
use sixfold_parallel::{RankSlice, StateParts, Trainer, UnitParts};

use super::CheckpointError;
use crate::error::TrainError;

/// Names of the three numbers kept for each parameter, in the order of [`Trainer::state`].
pub(super) const QUANTITIES: [&str; 3] = ["parameter", "first_moment", "second_moment"];
/// Between a tensor's name and the place in its unit where its numbers begin, where they are not the whole unit's.
const PLACE: char = '@';
/// Bytes of the length that a safetensors file begins with.
const LENGTH_BYTES: usize = 8;
/// The header ends at a multiple of it.
const ALIGNMENT: usize = 8;

/// One quantity of parts of units.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct PartBuffer {
    pub(super) parts: UnitParts,
    pub(super) values: UnitBuffer,
}

impl PartBuffer {
    /// All zeros.
    pub(super) fn zeros(parts: UnitParts) -> Self {
        let index = UnitIndex::new(parts.iter().map(|(unit, part)| (*unit, part.len())));
        Self { parts, values: UnitBuffer::zeros(Arc::new(index)) }
    }

    /// All zeros, of the whole units of a slice.
    pub(super) fn of_slice(geometry: &Geometry, slice: &RankSlice) -> Self {
        Self::zeros(
            slice.units(geometry).into_iter().map(|unit| (unit, 0..geometry.region(unit).len())).collect(),
        )
    }
}

/// Parameters and moments of a rank: those of its units, and those that it keeps.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct RankState {
    /// By [`QUANTITIES`].
    pub(super) quantities: [PartBuffer; 3],
}

impl RankState {
    /// All zeros.
    pub(super) fn zeros(geometry: &Geometry, slice: &RankSlice, parts: &StateParts) -> Self {
        let moments = || PartBuffer::zeros(parts.moments.clone());
        Self { quantities: [PartBuffer::of_slice(geometry, slice), moments(), moments()] }
    }

    /// Overwrites the state of a trainer that has the same units and keeps the same moments.
    ///
    /// # Errors
    /// [`TrainError::State`] if it does not.
    pub(crate) fn restore(&self, trainer: &mut Trainer) -> Result<(), TrainError> {
        let [parameters, moments, _] = &self.quantities;
        let same = trainer.parameters().index() == parameters.values.index()
            && *trainer.optimizer().parts() == moments.parts;
        if !same {
            return Err(TrainError::State("the state that was read is not the rank's".to_owned()));
        }
        trainer.restore(self.quantities.each_ref().map(|quantity| &quantity.values));
        Ok(())
    }
}

/// The bytes of a file with the parameters and moments of `saved`.
///
/// # Errors
/// [`TrainError::State`] if the trainer does not keep some of them.
pub(crate) fn encode(trainer: &Trainer, saved: &UnitParts) -> Result<Bytes, TrainError> {
    let kept = Some(trainer.optimizer().parts());
    let [parameters, first, second] = &trainer.state();
    let [first, second] = [first, second].map(|moment| Source { values: moment, parts: kept });
    encode_parts(saved, [Source { values: parameters, parts: None }, first, second])
}

/// Where a quantity's numbers are: whole units, or parts of them.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    pub(super) values: &'a HostUnits<'a>,
    pub(super) parts: Option<&'a UnitParts>,
}

impl<'a> Source<'a> {
    fn numbers(&self, unit: UnitId, part: &Range<usize>) -> Option<&'a [f32]> {
        let start = match self.parts {
            Some(parts) => parts.get(&unit)?.start,
            None => 0,
        };
        self.values.get(unit)?.get(part.start.checked_sub(start)?..part.end.checked_sub(start)?)
    }
}

pub(super) fn encode_parts(saved: &UnitParts, sources: [Source<'_>; 3]) -> Result<Bytes, TrainError> {
    let [parameters, ..] = sources;
    let mut tensors = Vec::with_capacity(saved.len() * QUANTITIES.len());
    for (quantity, source) in QUANTITIES.iter().zip(sources) {
        for (unit, part) in saved {
            let whole = parameters.values.get(*unit).is_some_and(|values| *part == (0..values.len()));
            let name = match whole {
                true => format!("{unit}/{quantity}"),
                false => format!("{unit}/{quantity}{PLACE}{}", part.start),
            };
            let Some(values) = source.numbers(*unit, part) else {
                return Err(TrainError::State(format!("it has no {name} to save")));
            };
            tensors.push((name, values));
        }
    }
    write(&tensors)
}

/// A safetensors file, in one copy: a 64-bit length, that many bytes of JSON, and the numbers.
fn write(tensors: &[(String, &[f32])]) -> Result<Bytes, TrainError> {
    let mut end = 0;
    let mut entry = |(name, values): &(String, &[f32])| {
        let start = end;
        end += size_of_val(*values);
        (name.clone(), json!({"dtype": "F32", "shape": [values.len()], "data_offsets": [start, end]}))
    };
    let header: serde_json::Map<String, serde_json::Value> = tensors.iter().map(&mut entry).collect();
    let mut header = serde_json::to_vec(&header).map_err(|error| TrainError::State(error.to_string()))?;
    header.resize(header.len().next_multiple_of(ALIGNMENT), b' ');
    let mut file = ContentBuffer::zeroed(LENGTH_BYTES + header.len() + end);
    let (length, rest) = file.split_at_mut(LENGTH_BYTES);
    length.copy_from_slice(&(header.len() as u64).to_le_bytes());
    let (text, mut numbers) = rest.split_at_mut(header.len());
    text.copy_from_slice(&header);
    for (_, values) in tensors {
        let (own, later) = numbers.split_at_mut(size_of_val(*values));
        if cfg!(target_endian = "little") {
            own.copy_from_slice(bytemuck::cast_slice(values));
        } else {
            let pairs = own.as_chunks_mut::<4>().0.iter_mut().zip(*values);
            pairs.for_each(|(bytes, value)| *bytes = value.to_le_bytes());
        }
        numbers = later;
    }
    Ok(file.into())
}

/// Some numbers of a unit, as they lie in a file.
pub(super) struct Piece<'a> {
    pub(super) unit: UnitId,
    /// Which of [`QUANTITIES`].
    pub(super) quantity: usize,
    /// Which numbers of the unit.
    pub(super) part: Range<usize>,
    /// As many, little-endian f32.
    pub(super) bytes: &'a [u8],
}

impl Piece<'_> {
    pub(super) fn name(&self) -> String {
        format!("{}/{}{PLACE}{}", self.unit, QUANTITIES[self.quantity], self.part.start)
    }
}

/// The pieces of a file that was written by the owner of `slice`.
///
/// # Errors
/// [`CheckpointError`] if the file is malformed, or has anything but units of the slice, within their lengths, and
/// each number once.
pub(super) fn pieces<'a>(
    file: &'a [u8],
    geometry: &Geometry,
    slice: &RankSlice,
) -> Result<Vec<Piece<'a>>, CheckpointError> {
    let tensors = SafeTensors::deserialize(file)?;
    let units: BTreeSet<UnitId> = slice.units(geometry).into_iter().collect();
    let mut pieces = Vec::with_capacity(tensors.len());
    for (name, view) in tensors.iter() {
        let Some((unit, quantity, place)) = parse(name).filter(|(unit, ..)| units.contains(unit)) else {
            return Err(CheckpointError::Name(name.to_owned()));
        };
        let (len, start) = (geometry.region(unit).len(), place.unwrap_or(0));
        let wrong = || CheckpointError::Tensor {
            name: name.to_owned(),
            dtype: view.dtype(),
            shape: view.shape().to_vec(),
            most: len.saturating_sub(start),
        };
        let &[count] = view.shape() else { return Err(wrong()) };
        let fits = if place.is_some() { count <= len.saturating_sub(start) } else { count == len };
        if view.dtype() != Dtype::F32 || !fits {
            return Err(wrong());
        }
        pieces.push(Piece { unit, quantity, part: start..start + count, bytes: view.data() });
    }
    pieces.sort_by_key(|piece| (piece.quantity, piece.unit, piece.part.start));
    let overlap = pieces.windows(2).find(|pair| {
        (pair[0].quantity, pair[0].unit) == (pair[1].quantity, pair[1].unit)
            && pair[1].part.start < pair[0].part.end
    });
    match overlap {
        Some(pair) => Err(CheckpointError::Twice(pair[1].name())),
        None => Ok(pieces),
    }
}

/// The unit, the quantity and the place that a tensor's name names.
fn parse(name: &str) -> Option<(UnitId, usize, Option<usize>)> {
    let (unit, rest) = name.split_once('/')?;
    let (quantity, place) = match rest.split_once(PLACE) {
        Some((quantity, place)) => (quantity, Some(place.parse().ok()?)),
        None => (rest, None),
    };
    Some((unit.parse().ok()?, QUANTITIES.iter().position(|known| *known == quantity)?, place))
}
