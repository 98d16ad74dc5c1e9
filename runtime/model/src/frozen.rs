//! Weights that are not trained: [`FrozenUnits`], and what products read, trained or not: [`Parameters`].

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use sixfold_tensor::{Compressed, Compression, Stream, View};

use crate::lora::Projection;
use crate::unit::{Geometry, Tensor, UnitId, UnitIndex};
use crate::unit_buffer::DeviceUnits;

/// The weights beside which adapters lie. Each unit is compressed by itself, so that what it comes to does not depend on who
/// has it.
#[derive(Debug)]
pub struct FrozenUnits {
    /// Where the units would lie as parameters, of which some are elsewhere.
    index: Arc<UnitIndex>,
    /// What is not compressed.
    plain: DeviceUnits,
    compressed: BTreeMap<UnitId, Compressed>,
}

impl FrozenUnits {
    /// These units of a model without adapters, each with the values that `fill` gives it in turn, so that no more than one is
    /// in memory twice. Projections are compressed as told; tables of tokens then are in bfloat16, and what is
    /// small, such as norms, stays as it is.
    ///
    /// # Errors
    /// What `fill` returns.
    pub fn new<E>(
        stream: &Stream,
        geometry: &Geometry,
        units: &[UnitId],
        compression: Option<Compression>,
        mut fill: impl FnMut(UnitId, &mut [f32]) -> Result<(), E>,
    ) -> Result<Self, E> {
        let of_tensor = |tensor: Tensor| match compression? {
            _ if matches!(tensor, Tensor::Embedding | Tensor::Head) => Some(Compression::Bf16),
            compression => Projection::of_weight(tensor).map(|_| compression),
        };
        let with_len = |unit: &UnitId| (*unit, geometry.region(*unit).len());
        let plain = units.iter().filter(|unit| of_tensor(unit.tensor).is_none()).map(with_len);
        let mut frozen = Self {
            index: Arc::new(UnitIndex::new(units.iter().map(with_len))),
            plain: DeviceUnits::zeros(stream, Arc::new(UnitIndex::new(plain))),
            compressed: BTreeMap::new(),
        };
        let mut values = Vec::new();
        for (unit, len) in units.iter().map(with_len) {
            values.clear();
            values.resize(len, 0.0);
            fill(unit, &mut values)?;
            match of_tensor(unit.tensor) {
                None => stream.from_host(&values, frozen.plain.unit_mut(unit)),
                Some(compression) => {
                    frozen.compressed.insert(unit, stream.compress(&values, compression));
                }
            }
        }
        Ok(frozen)
    }

    /// Where the units would lie as parameters.
    pub fn index(&self) -> &Arc<UnitIndex> {
        &self.index
    }

    /// Bytes that the weights take.
    pub fn bytes(&self) -> usize {
        let compressed: usize = self.compressed.values().map(Compressed::bytes).sum();
        compressed + self.plain.view().len() * size_of::<f32>()
    }
}

/// The parameters that a network computes with: those that are trained, or those beside which adapters lie.
#[derive(Debug, Clone, Copy)]
pub struct Parameters<'a> {
    /// Where all of them lie.
    index: &'a UnitIndex,
    plain: &'a DeviceUnits,
    compressed: &'a BTreeMap<UnitId, Compressed>,
}

/// Of parameters that are trained nothing is compressed.
static NOTHING_COMPRESSED: BTreeMap<UnitId, Compressed> = BTreeMap::new();

impl<'a> From<&'a DeviceUnits> for Parameters<'a> {
    fn from(units: &'a DeviceUnits) -> Self {
        Self { index: units.index(), plain: units, compressed: &NOTHING_COMPRESSED }
    }
}

impl<'a> From<&'a FrozenUnits> for Parameters<'a> {
    fn from(units: &'a FrozenUnits) -> Self {
        Self { index: &units.index, plain: &units.plain, compressed: &units.compressed }
    }
}

impl<'a> Parameters<'a> {
    /// Where all units lie, as [`PackedWeights`](crate::PackedWeights) wants to know.
    pub fn index(&self) -> &'a UnitIndex {
        self.index
    }

    /// Those that are not compressed.
    pub(crate) fn plain(&self) -> &'a DeviceUnits {
        self.plain
    }

    /// A unit that is compressed.
    pub(crate) fn compressed(&self, unit: UnitId) -> Option<&'a Compressed> {
        self.compressed.get(&unit)
    }

    /// Hands `work` the numbers of units that lie side by side at `run` of the index, expanded if they are compressed.
    pub(crate) fn with_run<R>(
        &self,
        stream: &Stream,
        units: &[UnitId],
        run: &Range<usize>,
        work: impl FnOnce(View<'_>) -> R,
    ) -> R {
        if units.first().is_none_or(|unit| self.compressed(*unit).is_none()) {
            let start =
                units.first().and_then(|unit| self.plain.index().range(*unit)).map_or(0, |at| at.start);
            return work(self.plain.slice(start..start + run.len()));
        }
        let mut expanded = stream.uninit(run.len());
        let mut rest = expanded.view_mut();
        for compressed in units.iter().filter_map(|unit| self.compressed(*unit)) {
            let (own, after) = rest.split_at(compressed.len());
            stream.expand(compressed, own);
            rest = after;
        }
        work(expanded.view())
    }
}
