//! How the tensors of a model lie in Hugging Face's files: [`FileTensor`].

use crate::unit::{Geometry, Place, Tensor, UnitId};

/// A tensor of a file: one of the model's, or several whose outputs lie side by side.
pub(crate) struct FileTensor {
    pub(crate) name: String,
    pub(crate) place: Place,
    pub(crate) parts: Vec<Tensor>,
    /// Whether the file has `[inputs, outputs]` and not `[outputs, inputs]`.
    pub(crate) transposed: bool,
}

/// Where the elements of a model's tensor lie among those of a file's.
pub(crate) struct Layout {
    first_row: usize,
    row_stride: usize,
    column_stride: usize,
}

impl Layout {
    pub(crate) fn at(&self, row: usize, column: usize) -> usize {
        (self.first_row + row) * self.row_stride + column * self.column_stride
    }
}

impl FileTensor {
    /// A factor of an adapter, under PEFT's name of it.
    pub(crate) fn of_adapter(place: Place, tensor: Tensor) -> Self {
        let name = format!("base_model.model.{}", UnitId { place, tensor, shard: 0 }.tensor_name());
        Self { name, place, parts: vec![tensor], transposed: false }
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
            let file = family.file_tensor(place, tensor);
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
        let (rows, columns) = self.rows_and_columns(geometry);
        let before = self.parts.iter().take_while(|other| **other != part);
        let first_row = before.map(|part| geometry.whole(*part).0).sum();
        let (row_stride, column_stride) = if self.transposed { (1, rows) } else { (columns, 1) };
        Layout { first_row, row_stride, column_stride }
    }
}
