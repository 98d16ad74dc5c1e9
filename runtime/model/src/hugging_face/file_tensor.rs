//! How the tensors of a model lie in Hugging Face's files: [`FileTensor`].

use crate::lora::Factor;
use crate::unit::{Geometry, Place, Tensor};

/// A tensor of a file: one of the model's, or several whose outputs lie side by side.
pub(crate) struct FileTensor {
    pub(crate) name: String,
    pub(crate) place: Place,
    pub(crate) parts: Vec<Tensor>,
    /// Whether the file has `[inputs, outputs]` and not `[outputs, inputs]`.
    pub(crate) transposed: bool,
    /// Where parts are `B` of adapters: the weights that the file has as one, whose outputs lie below one another while what
    /// goes into each `B` lies side by side. Elements that belong to none of them are zero.
    pub(crate) diagonal: Vec<Tensor>,
}

/// Where the elements of a model's tensor lie among those of a file's.
pub(crate) struct Layout {
    first_row: usize,
    first_column: usize,
    row_stride: usize,
    column_stride: usize,
}

impl Layout {
    pub(crate) fn at(&self, row: usize, column: usize) -> usize {
        (self.first_row + row) * self.row_stride + (self.first_column + column) * self.column_stride
    }
}

impl FileTensor {
    /// The one in which a tensor of a model lies, or a factor of an adapter.
    pub(crate) fn of(geometry: &Geometry, place: Place, tensor: Tensor) -> Self {
        let family = geometry.config.family;
        match tensor.adapts() {
            None => family.file_tensor(place, tensor),
            Some((weight, factor)) => Self::of_adapter(geometry, family.file_tensor(place, weight), factor),
        }
    }

    /// Of the adapter of a weight of the file, under PEFT's name. Adapters of weights that the file has as one are one adapter of
    /// the rank that they have together.
    fn of_adapter(geometry: &Geometry, weight: Self, factor: Factor) -> Self {
        let name = adapter_name(&weight.name, factor);
        let adapted = weight.parts.iter().filter(|weight| geometry.adapts(**weight));
        let parts = adapted.filter_map(|weight| weight.factor(factor)).collect();
        let diagonal = if factor == Factor::B { weight.parts } else { Vec::new() };
        Self { name, place: weight.place, parts, transposed: false, diagonal }
    }

    /// All of a model, or of its adapters where it has any, in canonical order.
    pub(crate) fn all(geometry: &Geometry) -> Vec<Self> {
        let (config, family) = (&geometry.config, geometry.config.family);
        let in_layer = |layer| {
            let tensors = geometry.trained_layer_tensors().into_iter();
            tensors.map(move |tensor| (Place::Layer(layer), tensor))
        };
        let input = family.input_tensors().iter().map(|tensor| (Place::Input, *tensor));
        let output = family.output_tensors(config.tie_word_embeddings).map(|tensor| (Place::Output, tensor));
        let tensors = input.chain((0..config.num_hidden_layers as u32).flat_map(in_layer)).chain(output);
        let tensors =
            tensors.filter(|(place, _)| geometry.lora.is_none() || matches!(place, Place::Layer(_)));
        let first_parts = tensors.filter_map(|(place, tensor)| {
            let file = Self::of(geometry, place, tensor);
            (file.parts[0] == tensor).then_some(file)
        });
        first_parts.collect()
    }

    /// Outputs of all parts together, and inputs.
    fn rows_and_columns(&self, geometry: &Geometry) -> (usize, usize) {
        let columns = self.parts.iter().map(|part| geometry.whole(*part).1);
        match self.diagonal.as_slice() {
            [] => (rows(geometry, &self.parts), geometry.whole(self.parts[0]).1),
            weights => (rows(geometry, weights), columns.sum()),
        }
    }

    /// The shape in the file.
    pub(crate) fn shape(&self, geometry: &Geometry) -> Vec<usize> {
        let (rows, columns) = self.rows_and_columns(geometry);
        match self.parts[0] {
            tensor if tensor.is_vector() => vec![rows * columns],
            _ if self.transposed => vec![columns, rows],
            _ => vec![rows, columns],
        }
    }

    /// Where the elements of one of the parts lie.
    pub(crate) fn layout(&self, geometry: &Geometry, part: Tensor) -> Layout {
        let (all_rows, columns) = self.rows_and_columns(geometry);
        let before = self.parts.iter().position(|other| *other == part).unwrap_or(0);
        let before = &self.parts[..before];
        let weight = part.adapts().map(|(weight, _)| weight);
        let above = self.diagonal.iter().position(|other| Some(*other) == weight);
        let (first_row, first_column) = match above {
            None => (rows(geometry, before), 0),
            Some(above) => (
                rows(geometry, &self.diagonal[..above]),
                before.iter().map(|part| geometry.whole(*part).1).sum(),
            ),
        };
        let (row_stride, column_stride) = if self.transposed { (1, all_rows) } else { (columns, 1) };
        Layout { first_row, first_column, row_stride, column_stride }
    }
}

/// Rows of tensors together.
pub(super) fn rows(geometry: &Geometry, tensors: &[Tensor]) -> usize {
    tensors.iter().map(|tensor| geometry.whole(*tensor).0).sum()
}

/// PEFT's name for a factor of the adapter of a weight of the file.
pub(super) fn adapter_name(weight: &str, factor: Factor) -> String {
    format!("base_model.model.{}.lora_{factor:?}.weight", weight.trim_end_matches(".weight"))
}
