//! Which part of the model a rank holds: [`RankSlice`].

use std::sync::Arc;

use sixfold_model::{
    Geometry, ModelSlice, Tensor, UnitBuffer, UnitId, UnitIndex, gradient_index, initialize,
};
use sixfold_topology::{LayoutError, ParallelPlan, PipelineLayout, Rank, StageCosts};

/// The chunks of layers that a rank holds, each with the rank's logical shards of them, in the order of the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RankSlice {
    pub(crate) chunks: Vec<ModelSlice>,
}

impl RankSlice {
    /// What `rank` holds under `plan`, whose pipeline is laid out by `layout`.
    pub fn new(geometry: &Geometry, plan: &ParallelPlan, layout: &PipelineLayout, rank: Rank) -> Self {
        let virtual_stages = layout.stage_layers().len();
        let shards = plan.shards(rank, geometry.sharding.logical());
        let chunk = |(virtual_stage, layers)| ModelSlice {
            layers,
            input: virtual_stage == 0,
            output: virtual_stage + 1 == virtual_stages,
            shards: shards.clone(),
        };
        layout.of_stage(plan.coordinates(rank).pipeline).map(chunk).collect()
    }

    /// The whole model.
    pub fn whole(geometry: &Geometry) -> Self {
        Self::from_iter([ModelSlice::whole(geometry)])
    }

    /// The chunks, in the order of the model.
    pub fn chunks(&self) -> &[ModelSlice] {
        &self.chunks
    }

    /// Whether `unit` is part of the slice ([`ModelSlice::holds`]).
    pub fn holds(&self, unit: UnitId) -> bool {
        self.chunks.iter().any(|chunk| chunk.holds(unit))
    }

    /// The non-empty units of the slice, in canonical order ([`ModelSlice::units`]).
    pub fn units(&self, geometry: &Geometry) -> Vec<UnitId> {
        let mut units: Vec<UnitId> = self.chunks.iter().flat_map(|chunk| chunk.units(geometry)).collect();
        units.sort_unstable();
        units
    }

    /// How the rank's parameters lie in one buffer.
    pub fn parameter_index(&self, geometry: &Geometry) -> UnitIndex {
        let units = self.units(geometry).into_iter();
        UnitIndex::new(units.map(|unit| (unit, geometry.region(unit).len())))
    }

    /// How gradients lie in one buffer while they are summed: chunk after chunk, each as [`gradient_index`] lays
    /// it out.
    pub(crate) fn gradient_index(&self, geometry: &Geometry) -> UnitIndex {
        let units = self.chunks.iter().flat_map(|chunk| {
            let mut units: Vec<_> = gradient_index(geometry, chunk).iter().collect();
            units.sort_unstable_by_key(|(_, range)| range.start);
            units.into_iter().map(|(unit, range)| (unit, range.len())).collect::<Vec<_>>()
        });
        UnitIndex::new(units)
    }

    /// The initial parameters ([`initialize`]).
    pub(crate) fn initialize(&self, geometry: &Geometry, seed: u64) -> UnitBuffer {
        let mut parameters = UnitBuffer::zeros(Arc::new(self.parameter_index(geometry)));
        for chunk in &self.chunks {
            for (unit, values) in initialize(geometry, chunk, seed).iter() {
                parameters.unit_mut(unit).copy_from_slice(values);
            }
        }
        parameters
    }
}

impl FromIterator<ModelSlice> for RankSlice {
    fn from_iter<T: IntoIterator<Item = ModelSlice>>(chunks: T) -> Self {
        Self { chunks: chunks.into_iter().collect() }
    }
}

/// What the parts of a model cost: the operations of their matrix products, for one token. The embedding is looked up
/// and costs none; attention, which depends on a document's length, is not counted.
pub fn stage_costs(geometry: &Geometry) -> StageCosts {
    let of = |tensor: Tensor| {
        let (rows, columns) = geometry.whole(tensor);
        if tensor.is_vector() { 0 } else { 2 * rows as u64 * columns as u64 }
    };
    let layer = geometry.config.layer_tensors().map(of).sum();
    StageCosts { input: 0, layer, output: of(Tensor::Head) }
}

/// The layout of `plan`'s pipeline in which stages have about as much to do.
///
/// # Errors
/// [`LayoutError`] if there are fewer layers than virtual stages.
pub fn balanced_layout(
    geometry: &Geometry,
    plan: &ParallelPlan,
    virtual_stages: usize,
) -> Result<PipelineLayout, LayoutError> {
    let layers = geometry.config.num_hidden_layers;
    PipelineLayout::balanced(plan.pipeline_parallel, virtual_stages, layers, stage_costs(geometry))
}

#[cfg(test)]
mod tests {
    use sixfold_model::ModelConfig;

    use super::*;
    use crate::verify::small::config;

    #[test]
    fn the_chunks_of_all_ranks_make_up_the_model() {
        for tie_word_embeddings in [false, true] {
            let geometry = Geometry::new(ModelConfig { tie_word_embeddings, ..config() }, 4).unwrap();
            let whole = ModelSlice::whole(&geometry).units(&geometry);
            let plan: ParallelPlan = "tp2.pp2".parse().unwrap();
            let layout = balanced_layout(&geometry, &plan, 2).unwrap();
            let slices: Vec<_> =
                plan.ranks().map(|rank| RankSlice::new(&geometry, &plan, &layout, rank)).collect();
            for unit in &whole {
                let holders = slices.iter().filter(|slice| slice.holds(*unit)).count();
                assert_eq!(holders, if unit.tensor.is_whole() { 2 } else { 1 }, "{unit}");
            }
            for slice in &slices {
                let (units, chunks) = (slice.units(&geometry), slice.chunks());
                assert!(chunks.len() == 2 && units.is_sorted_by(|a, b| a < b));
                assert!(units.iter().all(|unit| whole.contains(unit)));
                let gradients = slice.gradient_index(&geometry);
                let of_chunks: usize =
                    chunks.iter().map(|chunk| gradient_index(&geometry, chunk).len()).sum();
                assert_eq!(gradients.len(), of_chunks);
                let parameters = slice.initialize(&geometry, 7);
                let all = initialize(&geometry, &ModelSlice::whole(&geometry), 7);
                assert!(parameters.iter().all(|(unit, values)| values == all.unit(unit)));
            }
        }
    }

    #[test]
    fn a_large_vocabulary_leaves_the_last_stage_fewer_layers() {
        let plan: ParallelPlan = "pp2".parse().unwrap();
        let lengths = |vocab_size| {
            let config = ModelConfig { vocab_size, num_hidden_layers: 8, ..config() };
            let geometry = Geometry::new(config, 4).unwrap();
            balanced_layout(&geometry, &plan, 1).unwrap().stage_layers().to_vec()
        };
        assert_eq!((lengths(41), lengths(500)), (vec![4, 4], vec![5, 3]));
    }
}
