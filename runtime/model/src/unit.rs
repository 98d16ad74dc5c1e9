//! Units: the pieces that parameters, gradients and moments are held in.
//!
//! A unit is (tensor, layer, logical shard). A rank owns a set of units ([`ModelSlice`]); a
//! checkpoint is a set of units; so any plan reads what any other wrote. [`UnitIndex`] says where
//! each lies where the numbers of a set of units are one piece, in canonical order.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use crate::config::{ConfigError, ModelConfig};
use crate::families::Family;
use crate::lora::{Factor, Lora, LoraError, Projection};
use crate::sharding::{Sharding, ShardingError, even_part};

/// Where in the model a unit lies. The order is the canonical one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// Before the first layer: the embedding.
    Input,
    /// A decoder layer, counted from 0.
    Layer(u32),
    /// After the last layer: the final norm and the head.
    Output,
}

/// Which parameter a unit is a part of. The order is the canonical one; initial values follow from it, so new
/// tensors come last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tensor {
    /// `[vocabulary, d]`, cut by rows.
    Embedding,
    /// `[d]`, whole on every shard.
    AttentionNorm,
    /// `[query heads * head, d]`, cut by rows.
    Query,
    /// `[kv heads * head, d]`, cut by rows.
    Key,
    /// `[kv heads * head, d]`, cut by rows.
    Value,
    /// `[d, query heads * head]`, cut by columns.
    AttentionOutput,
    /// `[d]`, whole on every shard.
    FeedForwardNorm,
    /// `[feed-forward, d]`, cut by rows.
    Gate,
    /// `[feed-forward, d]`, cut by rows.
    Up,
    /// `[d, feed-forward]`, cut by columns.
    Down,
    /// `[d]`, whole on every shard.
    FinalNorm,
    /// `[vocabulary, d]`, cut by rows.
    Head,
    /// `[positions, d]`, cut by rows.
    PositionEmbedding,
    /// `[d]`, whole on every shard.
    AttentionNormBias,
    /// `[query heads * head]`, cut as the rows of the weight.
    QueryBias,
    /// `[kv heads * head]`, cut as the rows of the weight.
    KeyBias,
    /// `[kv heads * head]`, cut as the rows of the weight.
    ValueBias,
    /// `[d]`, whole on every shard, since it is added after the sum over shards.
    AttentionOutputBias,
    /// `[d]`, whole on every shard.
    FeedForwardNormBias,
    /// `[feed-forward]`, cut as the rows of the weight.
    UpBias,
    /// `[d]`, whole on every shard, since it is added after the sum over shards.
    DownBias,
    /// `[d]`, whole on every shard.
    FinalNormBias,
    /// `[head]`, of every query head, whole on every shard.
    QueryNorm,
    /// `[head]`, of every key head, whole on every shard.
    KeyNorm,
    /// `[rank, d]`, whole on every shard.
    QueryLoraA,
    /// `[rank, d]`, whole on every shard.
    KeyLoraA,
    /// `[rank, d]`, whole on every shard.
    ValueLoraA,
    /// `[rank, query heads * head]`, cut by columns.
    AttentionOutputLoraA,
    /// `[rank, d]`, whole on every shard.
    GateLoraA,
    /// `[rank, d]`, whole on every shard.
    UpLoraA,
    /// `[rank, feed-forward]`, cut by columns.
    DownLoraA,
    /// `[query heads * head, rank]`, cut by rows.
    QueryLoraB,
    /// `[kv heads * head, rank]`, cut by rows.
    KeyLoraB,
    /// `[kv heads * head, rank]`, cut by rows.
    ValueLoraB,
    /// `[d, rank]`, whole on every shard.
    AttentionOutputLoraB,
    /// `[feed-forward, rank]`, cut by rows.
    GateLoraB,
    /// `[feed-forward, rank]`, cut by rows.
    UpLoraB,
    /// `[d, rank]`, whole on every shard.
    DownLoraB,
}

impl Tensor {
    /// Whether this is the weight of a norm, which begins at 1.
    pub fn is_norm(self) -> bool {
        matches!(self, Self::AttentionNorm | Self::FeedForwardNorm | Self::FinalNorm) || self.is_head_norm()
    }

    /// Whether this is the weight of a norm of single heads: its gradient is summed by logical shard.
    pub fn is_head_norm(self) -> bool {
        matches!(self, Self::QueryNorm | Self::KeyNorm)
    }

    /// Whether this is whole on every rank of a tensor-parallel group: norms, biases that are added after a
    /// sum over shards, and the factor of an adapter on the side of a weight that shards do not cut.
    pub fn is_whole(self) -> bool {
        self.is_whole_vector() || self.is_whole_factor()
    }

    fn is_whole_factor(self) -> bool {
        self.adapts().is_some_and(|(weight, factor)| (factor == Factor::A) != weight.is_cut_by_inputs())
    }

    fn is_whole_bias(self) -> bool {
        matches!(
            self,
            Self::AttentionNormBias
                | Self::AttentionOutputBias
                | Self::FeedForwardNormBias
                | Self::DownBias
                | Self::FinalNormBias
        )
    }

    /// Whether shards cut the inputs of this projection, or this factor of one that is cut so.
    pub(crate) fn is_cut_by_inputs(self) -> bool {
        match self.adapts() {
            Some((weight, factor)) => factor == Factor::A && weight.is_cut_by_inputs(),
            None => matches!(self, Self::AttentionOutput | Self::Down),
        }
    }

    /// Whether this is a vector that is whole on every rank of a group.
    pub(crate) fn is_whole_vector(self) -> bool {
        self.is_norm() || self.is_whole_bias()
    }

    /// Whether this is a norm or a bias: its gradient is summed by sequence block, or for norms of heads by logical shard,
    /// and it is not subject to weight decay.
    pub fn is_vector(self) -> bool {
        self.is_whole_vector()
            || matches!(self, Self::QueryBias | Self::KeyBias | Self::ValueBias | Self::UpBias)
    }

    /// The bias that goes with a weight, in families that have it.
    pub(crate) fn bias(self) -> Option<Self> {
        Some(match self {
            Self::AttentionNorm => Self::AttentionNormBias,
            Self::Query => Self::QueryBias,
            Self::Key => Self::KeyBias,
            Self::Value => Self::ValueBias,
            Self::AttentionOutput => Self::AttentionOutputBias,
            Self::FeedForwardNorm => Self::FeedForwardNormBias,
            Self::Up => Self::UpBias,
            Self::Down => Self::DownBias,
            Self::FinalNorm => Self::FinalNormBias,
            _ => return None,
        })
    }

    /// Whether this belongs to the key-value heads, which shards may hold copies of.
    pub fn is_key_value(self) -> bool {
        matches!(
            self,
            Self::Key | Self::Value | Self::KeyBias | Self::ValueBias | Self::KeyLoraB | Self::ValueLoraB
        )
    }

    fn name(self) -> &'static str {
        match self {
            Self::Embedding => "embedding",
            Self::AttentionNorm => "attention.norm",
            Self::Query => "attention.wq",
            Self::Key => "attention.wk",
            Self::Value => "attention.wv",
            Self::AttentionOutput => "attention.wo",
            Self::FeedForwardNorm => "feed_forward.norm",
            Self::Gate => "feed_forward.gate",
            Self::Up => "feed_forward.up",
            Self::Down => "feed_forward.down",
            Self::FinalNorm => "final_norm",
            Self::Head => "head",
            Self::PositionEmbedding => "position_embedding",
            Self::AttentionNormBias => "attention.norm.bias",
            Self::QueryBias => "attention.wq.bias",
            Self::KeyBias => "attention.wk.bias",
            Self::ValueBias => "attention.wv.bias",
            Self::AttentionOutputBias => "attention.wo.bias",
            Self::FeedForwardNormBias => "feed_forward.norm.bias",
            Self::UpBias => "feed_forward.up.bias",
            Self::DownBias => "feed_forward.down.bias",
            Self::FinalNormBias => "final_norm.bias",
            Self::QueryLoraA => "attention.wq.lora_a",
            Self::KeyLoraA => "attention.wk.lora_a",
            Self::ValueLoraA => "attention.wv.lora_a",
            Self::AttentionOutputLoraA => "attention.wo.lora_a",
            Self::GateLoraA => "feed_forward.gate.lora_a",
            Self::UpLoraA => "feed_forward.up.lora_a",
            Self::DownLoraA => "feed_forward.down.lora_a",
            Self::QueryLoraB => "attention.wq.lora_b",
            Self::KeyLoraB => "attention.wk.lora_b",
            Self::ValueLoraB => "attention.wv.lora_b",
            Self::AttentionOutputLoraB => "attention.wo.lora_b",
            Self::GateLoraB => "feed_forward.gate.lora_b",
            Self::UpLoraB => "feed_forward.up.lora_b",
            Self::DownLoraB => "feed_forward.down.lora_b",
            Self::QueryNorm => "attention.wq.norm",
            Self::KeyNorm => "attention.wk.norm",
        }
    }
}

/// The name of a unit, displayed and parsed as `layers.3.attention.wq.2` or `embedding.0` (the
/// last number is the logical shard; what is not cut is shard 0).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnitId {
    /// Where in the model.
    pub place: Place,
    /// Which parameter.
    pub tensor: Tensor,
    /// Which logical shard of it.
    pub shard: u32,
}

impl UnitId {
    /// A unit of a decoder layer.
    pub fn of_layer(layer: usize, tensor: Tensor, shard: usize) -> Self {
        Self { place: Place::Layer(layer as u32), tensor, shard: shard as u32 }
    }

    /// A shard of the embedding.
    pub fn embedding(shard: usize) -> Self {
        Self { place: Place::Input, tensor: Tensor::Embedding, shard: shard as u32 }
    }

    /// A shard of the embedding of positions.
    pub fn position_embedding(shard: usize) -> Self {
        Self { place: Place::Input, tensor: Tensor::PositionEmbedding, shard: shard as u32 }
    }

    /// A shard of the head.
    pub fn head(shard: usize) -> Self {
        Self { place: Place::Output, tensor: Tensor::Head, shard: shard as u32 }
    }

    /// The norm before the head.
    pub const FINAL_NORM: Self = Self { place: Place::Output, tensor: Tensor::FinalNorm, shard: 0 };
}

impl fmt::Display for UnitId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Place::Layer(layer) = self.place {
            write!(f, "layers.{layer}.")?;
        }
        write!(f, "{}.{}", self.tensor.name(), self.shard)
    }
}

/// The text does not name a unit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` does not name a unit of a model")]
pub struct ParseUnitError(String);

impl FromStr for UnitId {
    type Err = ParseUnitError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse_unit(text).ok_or_else(|| ParseUnitError(text.chars().take(80).collect()))
    }
}

fn parse_unit(text: &str) -> Option<UnitId> {
    let (name, shard) = text.rsplit_once('.')?;
    let shard = shard.parse().ok()?;
    if let Some(rest) = name.strip_prefix("layers.") {
        let (layer, name) = rest.split_once('.')?;
        let of_families = Family::ALL.into_iter().flat_map(Family::layer_tensors).copied();
        let of_adapters = Projection::ALL.into_iter().flat_map(Projection::tensors);
        let tensor = of_families.chain(of_adapters).find(|tensor| tensor.name() == name)?;
        return Some(UnitId { place: Place::Layer(layer.parse().ok()?), tensor, shard });
    }
    let of_inputs = Family::ALL.into_iter().flat_map(Family::input_tensors);
    let of_outputs = Family::ALL.into_iter().flat_map(|family| family.output_tensors(false));
    let mut outer = of_inputs
        .map(|tensor| (Place::Input, *tensor))
        .chain(of_outputs.map(|tensor| (Place::Output, tensor)));
    let (place, tensor) = outer.find(|(_, tensor)| tensor.name() == name)?;
    Some(UnitId { place, tensor, shard })
}

/// Which part of a whole tensor a unit is. The unit's numbers are this part's rows, one after
/// another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Region {
    /// Rows of the whole tensor that the unit holds.
    pub rows: Range<usize>,
    /// Columns of the whole tensor that the unit holds.
    pub columns: Range<usize>,
    /// Columns of the whole tensor.
    pub width: usize,
}

impl Region {
    /// Numbers in the unit.
    pub fn len(&self) -> usize {
        self.rows.len() * self.columns.len()
    }

    /// Whether the shard holds nothing of the tensor.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The places of the unit's rows in the whole tensor, each a range of element indices.
    pub fn row_ranges(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        self.rows
            .clone()
            .map(|row| row * self.width + self.columns.start..row * self.width + self.columns.end)
    }
}

/// The geometry of a model: its configuration, which has been checked, its cut into logical
/// shards, and the adapters that are trained in place of its weights.
#[derive(Debug, Clone, PartialEq)]
pub struct Geometry {
    /// Sizes.
    pub config: ModelConfig,
    /// Logical shards.
    pub sharding: Sharding,
    /// Adapters; without them the weights are trained.
    pub lora: Option<Lora>,
}

/// A model cannot be made or cut as asked.
#[derive(Debug, thiserror::Error)]
pub enum GeometryError {
    /// The sizes do not fit.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The number of logical shards is not usable.
    #[error(transparent)]
    Sharding(#[from] ShardingError),
    /// The adapters do not fit the model.
    #[error(transparent)]
    Lora(#[from] LoraError),
}

impl Geometry {
    /// The model of `config` cut into `logical` shards.
    ///
    /// # Errors
    /// [`GeometryError`] if the sizes do not fit each other or the shards have no balanced tree.
    pub fn new(config: ModelConfig, logical: usize) -> Result<Self, GeometryError> {
        config.validate()?;
        let sharding = Sharding::new(&config, logical)?;
        Ok(Self { config, sharding, lora: None })
    }

    /// The same model with adapters, which are trained in place of its weights.
    ///
    /// # Errors
    /// [`LoraError`] if they do not fit it.
    pub fn with_lora(self, lora: Lora) -> Result<Self, LoraError> {
        lora.validate(&self.config)?;
        Ok(Self { lora: Some(lora), ..self })
    }

    /// The model without its adapters, whose weights they stand beside.
    pub fn base(&self) -> Self {
        Self { lora: None, ..self.clone() }
    }

    /// As [`ModelConfig::training_flop_per_token`]; of weights beside adapters, whose own gradients are not wanted, a third
    /// less, and of adapters as of other weights.
    pub fn training_flop_per_token(&self, tokens: usize) -> f64 {
        let all = self.config.training_flop_per_token(tokens);
        let Some(lora) = &self.lora else { return all };
        let numbers = |tensor: Tensor| {
            let (rows, columns) = self.whole(tensor);
            if tensor.is_vector() { 0.0 } else { (rows * columns) as f64 }
        };
        let of_layers = |tensors: &mut dyn Iterator<Item = Tensor>| {
            self.config.num_hidden_layers as f64 * tensors.map(numbers).sum::<f64>()
        };
        let weights = of_layers(&mut self.config.layer_tensors()) + numbers(Tensor::Head);
        all - 2.0 * weights + 6.0 * of_layers(&mut lora.layer_tensors().into_iter())
    }

    /// The tensors of every layer that are trained, in canonical order.
    pub(crate) fn trained_layer_tensors(&self) -> Vec<Tensor> {
        match &self.lora {
            Some(lora) => lora.layer_tensors(),
            None => self.config.layer_tensors().collect(),
        }
    }

    /// Whether a weight has an adapter.
    pub(crate) fn adapts(&self, weight: Tensor) -> bool {
        self.lora.as_ref().is_some_and(|lora| lora.adapts(weight))
    }

    /// Whether gradients are wanted of one of these weights, or of an adapter of one.
    pub(crate) fn trains_any(&self, weights: &[Tensor]) -> bool {
        self.lora.as_ref().is_none_or(|lora| weights.iter().any(|weight| lora.adapts(*weight)))
    }

    /// Whether the head is the embedding and is trained.
    pub fn trains_tied_head(&self) -> bool {
        self.config.tie_word_embeddings && self.lora.is_none()
    }

    /// What part of the whole tensor `unit` is.
    pub fn region(&self, unit: UnitId) -> Region {
        let (config, d) = (&self.config, self.config.hidden_size);
        let shard = self.sharding.shard(unit.shard as usize);
        let heads = |heads: &Range<usize>| heads.start * config.head_dim..heads.end * config.head_dim;
        let rows = |rows: Range<usize>| Region { rows, columns: 0..d, width: d };
        let columns = |columns, width| Region { rows: 0..d, columns, width };
        let elements = |rows: Range<usize>| Region { rows, columns: 0..1, width: 1 };
        if let Some((weight, factor)) = unit.tensor.adapts() {
            return self.factor_region(UnitId { tensor: weight, ..unit }, factor);
        }
        match unit.tensor {
            tensor if tensor.is_head_norm() => {
                Region { rows: 0..1, columns: 0..config.head_dim, width: config.head_dim }
            }
            tensor if tensor.is_whole() => rows(0..1),
            Tensor::PositionEmbedding => rows(self.positions(unit.shard as usize)),
            Tensor::Query => rows(heads(&shard.query_heads)),
            Tensor::Key | Tensor::Value => rows(heads(&shard.kv_heads)),
            Tensor::AttentionOutput => {
                columns(heads(&shard.query_heads), config.num_attention_heads * config.head_dim)
            }
            Tensor::Gate | Tensor::Up => rows(shard.feed_forward.clone()),
            Tensor::Down => columns(shard.feed_forward.clone(), config.intermediate_size),
            Tensor::QueryBias => elements(heads(&shard.query_heads)),
            Tensor::KeyBias | Tensor::ValueBias => elements(heads(&shard.kv_heads)),
            Tensor::UpBias => elements(shard.feed_forward.clone()),
            _ => rows(shard.vocabulary.clone()),
        }
    }

    fn factor_region(&self, weight: UnitId, factor: Factor) -> Region {
        let (of_weight, (rows, columns)) = (self.region(weight), self.factor_whole(weight.tensor, factor));
        let whole = Region { rows: 0..rows, columns: 0..columns, width: columns };
        match (factor, weight.tensor.is_cut_by_inputs()) {
            (Factor::A, true) => Region { columns: of_weight.columns, ..whole },
            (Factor::B, false) => Region { rows: of_weight.rows, ..whole },
            _ => whole,
        }
    }

    /// Rows and columns of a factor of a weight's adapter.
    fn factor_whole(&self, weight: Tensor, factor: Factor) -> (usize, usize) {
        let ((outputs, inputs), rank) = (self.whole(weight), self.lora.as_ref().map_or(0, |lora| lora.rank));
        match factor {
            Factor::A => (rank, inputs),
            Factor::B => (outputs, rank),
        }
    }

    /// The positions whose rows of the position embedding lie in a shard.
    pub(crate) fn positions(&self, shard: usize) -> Range<usize> {
        even_part(self.config.max_position_embeddings, self.sharding.logical(), shard)
    }

    /// Rows and columns of the whole tensor that `tensor` names.
    pub fn whole(&self, tensor: Tensor) -> (usize, usize) {
        match tensor.adapts() {
            Some((weight, factor)) => self.factor_whole(weight, factor),
            None => self.config.shape(tensor),
        }
    }
}

/// What one rank owns: a run of layers (with the embedding, the head, or both, at the ends) and an
/// aligned run of logical shards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelSlice {
    /// Decoder layers.
    pub layers: Range<usize>,
    /// Whether the embedding is part of the slice.
    pub input: bool,
    /// Whether the final norm and the head are part of the slice.
    pub output: bool,
    /// Logical shards; a power of two of them, starting at a multiple of their number.
    pub shards: Range<usize>,
}

impl ModelSlice {
    /// The whole model.
    pub fn whole(geometry: &Geometry) -> Self {
        Self {
            layers: 0..geometry.config.num_hidden_layers,
            input: true,
            output: true,
            shards: 0..geometry.sharding.logical(),
        }
    }

    /// Whether `unit` is part of the slice; what is whole ([`Tensor::is_whole`]) is part of every rank's slice of a group.
    pub fn holds(&self, unit: UnitId) -> bool {
        let place = match unit.place {
            Place::Input => self.input,
            Place::Layer(layer) => self.layers.contains(&(layer as usize)),
            Place::Output => self.output,
        };
        place && (unit.tensor.is_whole() || self.shards.contains(&(unit.shard as usize)))
    }

    /// The non-empty units of the slice that are trained, in canonical order: those of adapters alone, where there are
    /// any; those of the weights beside them are the units of [`Geometry::base`]. A tied head is the embedding and has no
    /// units of its own: both ends of a pipeline have the embedding then, and [`holds`](Self::holds)
    /// is true of the first.
    pub fn units(&self, geometry: &Geometry) -> Vec<UnitId> {
        let mut units = Vec::new();
        let mut all_shards = |place, tensor: Tensor| {
            let shards = if tensor.is_whole() { 0..1 } else { self.shards.clone() };
            let unit = |shard| UnitId { place, tensor, shard: shard as u32 };
            units.extend(shards.map(unit).filter(|unit| !geometry.region(*unit).is_empty()));
        };
        let (family, tied) = (geometry.config.family, geometry.config.tie_word_embeddings);
        let (of_layers, are_outer) = (geometry.trained_layer_tensors(), geometry.lora.is_none());
        let held = |tensor: &&Tensor| {
            are_outer && (self.input || (self.output && tied && **tensor == Tensor::Embedding))
        };
        for &tensor in family.input_tensors().iter().filter(held) {
            all_shards(Place::Input, tensor);
        }
        for layer in self.layers.clone() {
            let place = Place::Layer(layer as u32);
            of_layers.iter().for_each(|tensor| all_shards(place, *tensor));
        }
        if self.output && are_outer {
            family.output_tensors(tied).for_each(|tensor| all_shards(Place::Output, tensor));
        }
        units
    }
}

/// Where each unit of a set lies in one contiguous buffer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct UnitIndex {
    ranges: BTreeMap<UnitId, Range<usize>>,
    len: usize,
}

impl UnitIndex {
    /// Lays the units out one after another, in the order given, with the lengths given.
    pub fn new(units: impl IntoIterator<Item = (UnitId, usize)>) -> Self {
        let mut index = Self::default();
        for (unit, len) in units {
            index.ranges.insert(unit, index.len..index.len + len);
            index.len += len;
        }
        index
    }

    /// The index of the parameters of `slice`.
    pub fn of_parameters(geometry: &Geometry, slice: &ModelSlice) -> Self {
        Self::new(slice.units(geometry).into_iter().map(|unit| (unit, geometry.region(unit).len())))
    }

    /// The units in canonical order, each with its place in the buffer.
    pub fn iter(&self) -> impl Iterator<Item = (UnitId, Range<usize>)> + '_ {
        self.ranges.iter().map(|(unit, range)| (*unit, range.clone()))
    }

    /// Where `unit` lies, if it is one of the set.
    pub fn range(&self, unit: UnitId) -> Option<Range<usize>> {
        self.ranges.get(&unit).cloned()
    }

    /// Where the units of `tensors` of one place and of `shards` lie, which must be neighbours in the buffer, as
    /// the canonical order has them; those that are not of the set are left out.
    ///
    /// # Panics
    /// If other units lie between them.
    pub(crate) fn run(&self, place: Place, tensors: &[Tensor], shards: &Range<usize>) -> Range<usize> {
        let units = tensors.iter().flat_map(|&tensor| {
            shards.clone().map(move |shard| UnitId { place, tensor, shard: shard as u32 })
        });
        units.filter_map(|unit| self.range(unit)).fold(0..0, |run, next| {
            assert!(
                run.is_empty() || run.end == next.start,
                "{place:?}: {tensors:?} do not lie side by side"
            );
            if run.is_empty() { next } else { run.start..next.end }
        })
    }

    /// Numbers in the whole buffer.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no numbers at all.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{geometry, gpt2, qwen3};

    #[test]
    fn names_of_all_units_parse_back() {
        for geometry in [geometry(), gpt2(), qwen3()] {
            for unit in ModelSlice::whole(&geometry).units(&geometry) {
                assert_eq!(unit.to_string().parse(), Ok(unit));
            }
        }
        assert_eq!(UnitId::of_layer(3, Tensor::Query, 2).to_string(), "layers.3.attention.wq.2");
        for wrong in ["", "layers", "layers.1.head.0", "head", "head.x", "layers.99999999999.attention.wq.0"]
        {
            assert!(wrong.parse::<UnitId>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn units_of_all_slices_make_up_the_model() {
        [geometry(), gpt2(), qwen3()].iter().for_each(assert_slices_make_up_the_model);
    }

    fn assert_slices_make_up_the_model(geometry: &Geometry) {
        let whole = ModelSlice::whole(geometry);
        let layers = geometry.config.num_hidden_layers;
        let mut parts = Vec::new();
        for (from, to) in [(0, 1), (1, layers)] {
            for shards in [0..2, 2..4] {
                let slice = ModelSlice { layers: from..to, input: from == 0, output: to == layers, shards };
                parts.extend(slice.units(geometry));
            }
        }
        parts.sort();
        parts.dedup();
        assert_eq!(parts, whole.units(geometry));
        assert!(parts.is_sorted());
        let numbers = UnitIndex::of_parameters(geometry, &whole).len();
        assert_eq!(numbers, geometry.config.parameters());
    }
}
