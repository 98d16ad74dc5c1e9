//! The weights of a model that is in files of weights and files of adapters: [`AdaptedWeights`].

use super::{PeftAdapter, WeightFiles, WeightsError};
use crate::lora::Factors;
use crate::unit::{Geometry, ModelSlice, UnitId};
use crate::unit_buffer::UnitBuffer;

/// Weights, and adapters that come to them one after the other, as [`merge_adapters`](crate::merge_adapters) adds them. The
/// weights are read where they are wanted: no more than the adapters is kept in memory.
#[derive(Debug)]
pub struct AdaptedWeights<'a> {
    weights: WeightFiles<'a>,
    adapters: Vec<Factors>,
}

impl<'a> AdaptedWeights<'a> {
    /// Of files of weights, and of the contents of `adapter_config.json` and `adapter_model.safetensors` of each adapter.
    ///
    /// # Errors
    /// [`WeightsError`] if a file is broken, or adapters do not fit `geometry`.
    pub fn parse<'b>(
        geometry: &Geometry,
        weights: &[&'a [u8]],
        adapters: impl IntoIterator<Item = (&'b [u8], &'b [u8])>,
    ) -> Result<Self, WeightsError> {
        let weights = WeightFiles::parse(weights)?;
        let factors = |(config, file)| {
            let peft = PeftAdapter::parse(config, &geometry.config)?;
            let geometry = geometry.base().with_lora(peft.lora().clone())?;
            let adapters = peft.read(&geometry, file)?;
            Ok(Factors::new(&geometry, &adapters))
        };
        let adapters = adapters.into_iter().map(factors).collect::<Result<Vec<_>, WeightsError>>()?;
        Ok(Self { weights, adapters: adapters.into_iter().flatten().collect() })
    }

    /// Reads one unit of `geometry`, which has no adapters of its own.
    ///
    /// # Errors
    /// [`WeightsError`] if its tensor is missing or does not fit `geometry`.
    ///
    /// # Panics
    /// If `values` are not as many as the unit has.
    pub fn read(&self, geometry: &Geometry, unit: UnitId, values: &mut [f32]) -> Result<(), WeightsError> {
        self.weights.read(geometry, unit, values)?;
        self.adapters.iter().for_each(|factors| factors.add_to(geometry, unit, values));
        Ok(())
    }

    /// Reads the units of `slice`.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn read_slice(&self, geometry: &Geometry, slice: &ModelSlice) -> Result<UnitBuffer, WeightsError> {
        let mut parameters = self.weights.read_slice(geometry, slice)?;
        for unit in slice.units(geometry) {
            self.adapters.iter().for_each(|one| one.add_to(geometry, unit, parameters.unit_mut(unit)));
        }
        Ok(parameters)
    }
}
