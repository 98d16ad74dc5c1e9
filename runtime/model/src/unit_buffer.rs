//! The numbers of units: [`HostUnits`] in the host's memory, [`DeviceUnits`] in a device's.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use sixfold_tensor::{Buffer, Stream, View, ViewMut};

use crate::unit::{UnitId, UnitIndex};

/// One number for each element of each unit of a set, in memory of the host: what is initialised, read from files and
/// written to them. Some are borrowed from a device ([`DeviceUnits::host`]).
#[derive(Debug, Clone, PartialEq)]
pub struct HostUnits<'a> {
    index: Arc<UnitIndex>,
    values: Cow<'a, [f32]>,
}

/// Such numbers in memory of their own.
pub type UnitBuffer = HostUnits<'static>;

impl UnitBuffer {
    /// All zeros.
    pub fn zeros(index: Arc<UnitIndex>) -> Self {
        let values = vec![0.0; index.len()].into();
        Self { index, values }
    }

    /// As [`Self::values`], to change.
    pub fn values_mut(&mut self) -> &mut [f32] {
        self.values.to_mut()
    }

    /// As [`Self::unit`], to change.
    ///
    /// # Panics
    /// If the unit is not in the index.
    pub fn unit_mut(&mut self, unit: UnitId) -> &mut [f32] {
        let range = range_of(&self.index, unit);
        &mut self.values_mut()[range]
    }
}

impl HostUnits<'_> {
    /// Where each unit lies.
    pub fn index(&self) -> &Arc<UnitIndex> {
        &self.index
    }

    /// The numbers of all units, one unit after another.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// The numbers of one unit.
    ///
    /// # Panics
    /// If the unit is not in the index: a rank computes only with the units that it owns.
    pub fn unit(&self, unit: UnitId) -> &[f32] {
        &self.values[range_of(&self.index, unit)]
    }

    /// The numbers of one unit, if the unit is held here.
    pub fn get(&self, unit: UnitId) -> Option<&[f32]> {
        self.index.range(unit).map(|range| &self.values[range])
    }

    /// Units and their numbers in canonical order.
    pub fn iter(&self) -> impl Iterator<Item = (UnitId, &[f32])> + '_ {
        self.index.iter().map(|(unit, range)| (unit, &self.values[range]))
    }

    /// The same numbers in memory of their own.
    pub fn into_owned(self) -> UnitBuffer {
        HostUnits { index: self.index, values: self.values.into_owned().into() }
    }
}

/// One number for each element of each unit of a set, in memory of a device: parameters, gradients, or a moment.
#[derive(Debug)]
pub struct DeviceUnits {
    index: Arc<UnitIndex>,
    values: Buffer,
}

impl DeviceUnits {
    /// All zeros.
    pub fn zeros(stream: &Stream, index: Arc<UnitIndex>) -> Self {
        let values = stream.zeros(index.len());
        Self { index, values }
    }

    /// Numbers of the host.
    pub fn upload(stream: &Stream, units: &HostUnits<'_>) -> Self {
        Self { index: units.index.clone(), values: stream.upload(&units.values) }
    }

    /// Where each unit lies.
    pub fn index(&self) -> &Arc<UnitIndex> {
        &self.index
    }

    /// The numbers of all units, one unit after another.
    pub fn view(&self) -> View<'_> {
        self.values.view()
    }

    /// As [`Self::view`], to change.
    pub fn view_mut(&mut self) -> ViewMut<'_> {
        self.values.view_mut()
    }

    /// The numbers in a range of the whole.
    ///
    /// # Panics
    /// If there are not so many.
    pub fn slice(&self, range: Range<usize>) -> View<'_> {
        self.values.slice(range)
    }

    /// As [`Self::slice`], to change.
    ///
    /// # Panics
    /// If there are not so many.
    pub fn slice_mut(&mut self, range: Range<usize>) -> ViewMut<'_> {
        self.values.slice_mut(range)
    }

    /// The numbers of one unit.
    ///
    /// # Panics
    /// If the unit is not in the index: a rank computes only with the units that it owns.
    pub fn unit(&self, unit: UnitId) -> View<'_> {
        self.values.slice(range_of(&self.index, unit))
    }

    /// The numbers of one unit, if the unit is held here.
    pub fn get(&self, unit: UnitId) -> Option<View<'_>> {
        self.index.range(unit).map(|range| self.values.slice(range))
    }

    /// As [`Self::unit`], to change.
    ///
    /// # Panics
    /// If the unit is not in the index.
    pub fn unit_mut(&mut self, unit: UnitId) -> ViewMut<'_> {
        let range = range_of(&self.index, unit);
        self.values.slice_mut(range)
    }

    /// The numbers of two units, to change, if both are in the index, the first before the second.
    pub(crate) fn two_mut(&mut self, first: UnitId, second: UnitId) -> Option<[ViewMut<'_>; 2]> {
        let (first, second) = (self.index.range(first)?, self.index.range(second)?);
        if second.start < first.end {
            return None;
        }
        let (before, after) = self.values.view_mut().split_at(second.start);
        Some([before.slice(first), after.slice(0..second.len())])
    }

    /// The numbers as the host sees them: in place where it can, else a copy.
    pub fn host(&self, stream: &Stream) -> HostUnits<'_> {
        HostUnits { index: self.index.clone(), values: stream.host(self.values.view()) }
    }

    /// Overwrites all numbers with those of the host, which lie alike.
    ///
    /// # Panics
    /// If they are not as many.
    pub fn overwrite(&mut self, stream: &Stream, units: &HostUnits<'_>) {
        stream.from_host(&units.values, self.values.view_mut());
    }
}

fn range_of(index: &UnitIndex, unit: UnitId) -> Range<usize> {
    match index.range(unit) {
        Some(range) => range,
        None => panic!("{unit} is not held here"),
    }
}
