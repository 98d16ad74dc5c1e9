//! Parameters to and from `model.safetensors`, under the names of Hugging Face's Llama.
//!
//! A file holds whole tensors; a rank reads only its units of them. Read [`read_parameters`] and
//! [`write_parameters`] first.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use safetensors::tensor::{Dtype, SafeTensorError, SafeTensors, TensorView, View, serialize};

use crate::unit::{Geometry, LAYER_TENSORS, ModelSlice, Place, Tensor, UnitBuffer, UnitId, UnitIndex};

/// Why weights cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// The file is not safetensors, or is cut short.
    #[error("the weights are not readable: {0}")]
    Format(#[from] SafeTensorError),
    /// A tensor has another shape than the configuration says.
    #[error("`{name}` has the shape {shape:?}; the configuration says {rows} x {columns}")]
    Shape {
        /// The tensor.
        name: String,
        /// Its shape in the file.
        shape: Vec<usize>,
        /// Rows by the configuration (1 for a vector).
        rows: usize,
        /// Columns by the configuration.
        columns: usize,
    },
    /// A tensor's numbers are of a kind that is not read.
    #[error("`{name}` holds {dtype:?}; F32, F16 and BF16 are read")]
    Dtype {
        /// The tensor.
        name: String,
        /// Its kind of numbers.
        dtype: Dtype,
    },
}

/// Reads the units of `slice` from the bytes of a `model.safetensors`.
///
/// # Errors
/// [`WeightsError`] if the file is broken, or a tensor is missing or does not fit `geometry`.
pub fn read_parameters(
    geometry: &Geometry,
    slice: &ModelSlice,
    file: &[u8],
) -> Result<UnitBuffer, WeightsError> {
    let tensors = SafeTensors::deserialize(file)?;
    // The shapes first: what is allocated then is in proportion to the file.
    let units = slice.units(geometry);
    let views = units.iter().map(|unit| view_of(geometry, *unit, &tensors)).collect::<Result<Vec<_>, _>>()?;
    let mut parameters = UnitBuffer::zeros(Arc::new(UnitIndex::of_parameters(geometry, slice)));
    for (unit, (view, decode)) in units.into_iter().zip(views) {
        copy_region(geometry, unit, view.data(), decode, parameters.unit_mut(unit));
    }
    Ok(parameters)
}

/// The tensor that `unit` is a part of, once its shape and kind of numbers are known to fit.
fn view_of<'a>(
    geometry: &Geometry,
    unit: UnitId,
    tensors: &SafeTensors<'a>,
) -> Result<(TensorView<'a>, Decode), WeightsError> {
    let name = tensor_name(unit.place, unit.tensor);
    let view = tensors.tensor(&name)?;
    let (rows, columns) = geometry.whole(unit.tensor);
    let shape = view.shape();
    let fits = if unit.tensor.is_norm() { shape == [columns] } else { shape == [rows, columns] };
    if !fits {
        return Err(WeightsError::Shape { name, shape: shape.to_vec(), rows, columns });
    }
    let decode = decoder_of(view.dtype()).ok_or(WeightsError::Dtype { name, dtype: view.dtype() })?;
    Ok((view, decode))
}

/// Bytes of one number, and how it becomes an `f32`.
type Decode = (usize, fn(&[u8]) -> f32);

fn decoder_of(dtype: Dtype) -> Option<Decode> {
    Some(match dtype {
        Dtype::F32 => (4, |bytes| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])),
        Dtype::F16 => (2, |bytes| half::f16::from_le_bytes([bytes[0], bytes[1]]).to_f32()),
        Dtype::BF16 => (2, |bytes| half::bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32()),
        _ => return None,
    })
}

fn copy_region(geometry: &Geometry, unit: UnitId, data: &[u8], decode: Decode, values: &mut [f32]) {
    let (size, decode) = decode;
    let region = geometry.region(unit);
    for (range, row) in region.row_ranges().zip(values.chunks_exact_mut(region.columns.len())) {
        let numbers = data[range.start * size..range.end * size].chunks_exact(size);
        row.iter_mut().zip(numbers).for_each(|(value, number)| *value = decode(number));
    }
}

/// The bytes of a `model.safetensors` with every tensor of the model, in f32.
///
/// # Errors
/// [`WeightsError::Format`] if the library refuses.
pub fn write_parameters(geometry: &Geometry, parameters: &UnitBuffer) -> Result<Vec<u8>, WeightsError> {
    let tensors = tensors(geometry).into_iter().map(|(place, tensor)| {
        let (rows, columns) = geometry.whole(tensor);
        let whole = WholeTensor { geometry, parameters, place, tensor, shape: [rows, columns] };
        (tensor_name(place, tensor), whole)
    });
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    Ok(serialize(tensors, Some(metadata))?)
}

/// The hash by which two trained models are told apart: BLAKE3 over the name and the
/// little-endian numbers of every whole tensor in canonical order.
///
/// # Panics
/// If `parameters` does not hold the whole model.
pub fn weights_blake3(geometry: &Geometry, parameters: &UnitBuffer) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    for (place, tensor) in tensors(geometry) {
        hasher.update(tensor_name(place, tensor).as_bytes());
        hasher.update(&little_endian(&assemble(geometry, parameters, place, tensor)));
    }
    hasher.finalize()
}

/// Every tensor of the model, in canonical order.
fn tensors(geometry: &Geometry) -> Vec<(Place, Tensor)> {
    let layers = 0..geometry.config.num_hidden_layers as u32;
    let of_layer = |layer| LAYER_TENSORS.into_iter().map(move |tensor| (Place::Layer(layer), tensor));
    let mut tensors = vec![(Place::Input, Tensor::Embedding)];
    tensors.extend(layers.flat_map(of_layer));
    tensors.push((Place::Output, Tensor::FinalNorm));
    if !geometry.config.tie_word_embeddings {
        tensors.push((Place::Output, Tensor::Head));
    }
    tensors
}

pub(crate) fn assemble(
    geometry: &Geometry,
    parameters: &UnitBuffer,
    place: Place,
    tensor: Tensor,
) -> Vec<f32> {
    let (rows, columns) = geometry.whole(tensor);
    let mut whole = vec![0.0; rows * columns];
    let shards = if tensor.is_norm() { 1 } else { geometry.sharding.logical() };
    for shard in 0..shards {
        let unit = UnitId { place, tensor, shard: shard as u32 };
        let region = geometry.region(unit);
        if region.is_empty() {
            continue;
        }
        let values = parameters.unit(unit).chunks_exact(region.columns.len());
        region.row_ranges().zip(values).for_each(|(range, row)| whole[range].copy_from_slice(row));
    }
    whole
}

fn little_endian(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

struct WholeTensor<'a> {
    geometry: &'a Geometry,
    parameters: &'a UnitBuffer,
    place: Place,
    tensor: Tensor,
    shape: [usize; 2],
}

impl View for WholeTensor<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.shape[usize::from(self.tensor.is_norm())..]
    }

    fn data(&self) -> Cow<'_, [u8]> {
        little_endian(&assemble(self.geometry, self.parameters, self.place, self.tensor)).into()
    }

    fn data_len(&self) -> usize {
        self.shape.iter().product::<usize>() * size_of::<f32>()
    }
}

impl UnitId {
    /// The name under which Hugging Face's Llama has the tensor that the unit is a part of.
    pub fn hugging_face_name(&self) -> String {
        tensor_name(self.place, self.tensor)
    }
}

fn tensor_name(place: Place, tensor: Tensor) -> String {
    let inner = match tensor {
        Tensor::Embedding => return "model.embed_tokens.weight".into(),
        Tensor::FinalNorm => return "model.norm.weight".into(),
        Tensor::Head => return "lm_head.weight".into(),
        Tensor::AttentionNorm => "input_layernorm",
        Tensor::Query => "self_attn.q_proj",
        Tensor::Key => "self_attn.k_proj",
        Tensor::Value => "self_attn.v_proj",
        Tensor::AttentionOutput => "self_attn.o_proj",
        Tensor::FeedForwardNorm => "post_attention_layernorm",
        Tensor::Gate => "mlp.gate_proj",
        Tensor::Up => "mlp.up_proj",
        Tensor::Down => "mlp.down_proj",
    };
    match place {
        Place::Layer(layer) => format!("model.layers.{layer}.{inner}.weight"),
        Place::Input | Place::Output => format!("{inner}.weight"),
    }
}
