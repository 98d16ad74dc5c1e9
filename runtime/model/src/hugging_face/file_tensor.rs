//! How the tensors of a model lie in Hugging Face's files: [`FileTensor`].

use crate::family::Family;
use crate::packed::QUERY_KEY_VALUE;
use crate::unit::{Geometry, Place, Tensor, UnitId};

/// A tensor of a file: one of the model's, or several whose outputs lie side by side.
pub(super) struct FileTensor {
    pub(super) name: String,
    pub(super) place: Place,
    pub(super) parts: Vec<Tensor>,
    /// Whether the file has `[inputs, outputs]` and not `[outputs, inputs]`.
    transposed: bool,
}

/// Where the elements of a model's tensor lie among those of a file's.
pub(super) struct Layout {
    first_row: usize,
    row_stride: usize,
    column_stride: usize,
}

impl Layout {
    pub(super) fn at(&self, row: usize, column: usize) -> usize {
        (self.first_row + row) * self.row_stride + column * self.column_stride
    }
}

impl FileTensor {
    /// The one that `tensor` is or is a part of.
    pub(super) fn of(family: Family, place: Place, tensor: Tensor) -> Self {
        match family {
            Family::Llama => named(place, tensor),
            Family::Gpt2 => gpt2(place, tensor),
        }
    }

    /// All of a model, or of its adapters where it has any, in canonical order.
    pub(super) fn all(geometry: &Geometry) -> Vec<Self> {
        let config = &geometry.config;
        if let Some(lora) = &geometry.lora {
            let layers = (0..config.num_hidden_layers as u32).map(Place::Layer);
            let all = layers.flat_map(|place| lora.layer_tensors().into_iter().map(move |one| (place, one)));
            return all.map(|(place, tensor)| Self::of(config.family, place, tensor)).collect();
        }
        let layers = (0..config.num_hidden_layers as u32)
            .map(|layer| (Place::Layer(layer), config.family.layer_tensors()));
        let input = (Place::Input, config.family.input_tensors());
        let output = (Place::Output, config.family.output_tensors(config.tie_word_embeddings));
        let places = [input].into_iter().chain(layers).chain([output]);
        let tensors = places.flat_map(|(place, tensors)| tensors.iter().map(move |tensor| (place, *tensor)));
        let first_parts = tensors.filter_map(|(place, tensor)| {
            let file = Self::of(config.family, place, tensor);
            (file.parts[0] == tensor).then_some(file)
        });
        first_parts.collect()
    }

    /// Outputs of all parts together, and inputs.
    fn rows_and_columns(&self, geometry: &Geometry) -> (usize, usize) {
        let rows = self.parts.iter().map(|part| geometry.whole(*part).0).sum();
        (rows, geometry.whole(self.parts[0]).1)
    }

    /// The shape in the file.
    pub(super) fn shape(&self, geometry: &Geometry) -> Vec<usize> {
        let (rows, columns) = self.rows_and_columns(geometry);
        match self.parts[0] {
            tensor if tensor.is_vector() => vec![rows * columns],
            _ if self.transposed => vec![columns, rows],
            _ => vec![rows, columns],
        }
    }

    /// Where the elements of one of the parts lie.
    pub(super) fn layout(&self, geometry: &Geometry, part: Tensor) -> Layout {
        let (rows, columns) = self.rows_and_columns(geometry);
        let before = self.parts.iter().take_while(|other| **other != part);
        let first_row = before.map(|part| geometry.whole(*part).0).sum();
        let (row_stride, column_stride) = if self.transposed { (1, rows) } else { (columns, 1) };
        Layout { first_row, row_stride, column_stride }
    }
}

/// A tensor by itself, under its name in Llama; those of adapters under PEFT's names.
fn named(place: Place, tensor: Tensor) -> FileTensor {
    let name = UnitId { place, tensor, shard: 0 }.tensor_name();
    let name = if tensor.adapts().is_some() { format!("base_model.model.{name}") } else { name };
    FileTensor { name, place, parts: vec![tensor], transposed: false }
}

/// GPT-2 has queries, keys and values as one projection, and projections transposed.
fn gpt2(place: Place, tensor: Tensor) -> FileTensor {
    const QUERY_KEY_VALUE_BIAS: [Tensor; 3] = [Tensor::QueryBias, Tensor::KeyBias, Tensor::ValueBias];
    let whole = |name: &'static str| (name, vec![tensor], false);
    let projection = |name: &'static str| (name, vec![tensor], true);
    let (inner, parts, transposed) = match tensor {
        Tensor::Embedding => whole("wte.weight"),
        Tensor::PositionEmbedding => whole("wpe.weight"),
        Tensor::AttentionNorm => whole("ln_1.weight"),
        Tensor::AttentionNormBias => whole("ln_1.bias"),
        Tensor::Query | Tensor::Key | Tensor::Value => ("attn.c_attn.weight", QUERY_KEY_VALUE.to_vec(), true),
        Tensor::QueryBias | Tensor::KeyBias | Tensor::ValueBias => {
            ("attn.c_attn.bias", QUERY_KEY_VALUE_BIAS.to_vec(), false)
        }
        Tensor::AttentionOutput => projection("attn.c_proj.weight"),
        Tensor::AttentionOutputBias => whole("attn.c_proj.bias"),
        Tensor::FeedForwardNorm => whole("ln_2.weight"),
        Tensor::FeedForwardNormBias => whole("ln_2.bias"),
        Tensor::Gate => projection("mlp.c_gate.weight"),
        Tensor::Up => projection("mlp.c_fc.weight"),
        Tensor::UpBias => whole("mlp.c_fc.bias"),
        Tensor::Down => projection("mlp.c_proj.weight"),
        Tensor::DownBias => whole("mlp.c_proj.bias"),
        Tensor::FinalNorm => whole("ln_f.weight"),
        Tensor::FinalNormBias => whole("ln_f.bias"),
        Tensor::Head => whole("lm_head.weight"),
        _ => return named(place, tensor),
    };
    let name = match place {
        Place::Layer(layer) => format!("transformer.h.{layer}.{inner}"),
        Place::Output if tensor == Tensor::Head => inner.to_owned(),
        Place::Input | Place::Output => format!("transformer.{inner}"),
    };
    FileTensor { name, place, parts, transposed }
}
