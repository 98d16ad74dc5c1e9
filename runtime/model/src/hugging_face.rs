//! Parameters to and from `model.safetensors`, under the names that Hugging Face has for each family, and adapters to and from
//! `adapter_model.safetensors`, under PEFT's.
//!
//! A file holds whole tensors; a rank reads only its units of them. Read [`read_parameters`] and
//! [`write_parameters`] first.

mod adapted;
mod file_tensor;
mod peft;
mod weight_files;

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

pub use adapted::AdaptedWeights;
pub(crate) use file_tensor::FileTensor;
use file_tensor::Layout;
pub use peft::PeftAdapter;
use safetensors::tensor::{Dtype, SafeTensorError, TensorView, View, serialize};
pub use weight_files::WeightFiles;

use crate::lora::LoraError;
use crate::unit::{Geometry, ModelSlice, Place, Tensor, UnitId, UnitIndex};
use crate::unit_buffer::{HostUnits, UnitBuffer};

/// Why weights cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// The file is not safetensors, or is cut short.
    #[error("the weights are not readable: {0}")]
    Format(#[from] SafeTensorError),
    /// A tensor is in two files of a model.
    #[error("`{0}` is in two files")]
    Twice(String),
    /// A tensor has another shape than the configuration says.
    #[error("`{name}` has the shape {shape:?}; the configuration says {expected:?}")]
    Shape {
        /// The tensor.
        name: String,
        /// Its shape in the file.
        shape: Vec<usize>,
        /// The shape by the configuration.
        expected: Vec<usize>,
    },
    /// A tensor's numbers are of a kind that is not read.
    #[error("`{name}` holds {dtype:?}; F32, F16 and BF16 are read")]
    Dtype {
        /// The tensor.
        name: String,
        /// Its kind of numbers.
        dtype: Dtype,
    },
    /// What adapters say of themselves is broken, or asks for another kind of adapters.
    #[error(transparent)]
    Adapters(#[from] LoraError),
}

/// Reads the units of `slice` from the bytes of a `model.safetensors`, or those of adapters from what [`write_parameters`] made of
/// them; whatever PEFT saved is read by a [`PeftAdapter`].
///
/// # Errors
/// [`WeightsError`] if the file is broken, or a tensor is missing or does not fit `geometry`.
pub fn read_parameters(
    geometry: &Geometry,
    slice: &ModelSlice,
    file: &[u8],
) -> Result<UnitBuffer, WeightsError> {
    read_sharded_parameters(geometry, slice, &[file])
}

/// As [`read_parameters`], of a model whose tensors are in several files.
///
/// # Errors
/// As [`read_parameters`]; also if a tensor is in two files.
pub fn read_sharded_parameters(
    geometry: &Geometry,
    slice: &ModelSlice,
    files: &[&[u8]],
) -> Result<UnitBuffer, WeightsError> {
    WeightFiles::parse(files)?.read_slice(geometry, slice)
}

impl WeightFiles<'_> {
    /// Reads the units of `slice`.
    ///
    /// # Errors
    /// [`WeightsError`] if a tensor is missing or does not fit `geometry`.
    pub fn read_slice(&self, geometry: &Geometry, slice: &ModelSlice) -> Result<UnitBuffer, WeightsError> {
        // The shapes first: what is allocated then is in proportion to the file.
        let units = slice.units(geometry);
        units.iter().try_for_each(|unit| view_of(geometry, *unit, self).map(|_| ()))?;
        let mut parameters = UnitBuffer::zeros(Arc::new(UnitIndex::of_parameters(geometry, slice)));
        units.iter().try_for_each(|unit| self.read(geometry, *unit, parameters.unit_mut(*unit)))?;
        Ok(parameters)
    }

    /// Reads one unit.
    ///
    /// # Errors
    /// [`WeightsError`] if its tensor is missing or does not fit `geometry`.
    ///
    /// # Panics
    /// If `values` are not as many as the unit has.
    pub fn read(&self, geometry: &Geometry, unit: UnitId, values: &mut [f32]) -> Result<(), WeightsError> {
        let Stored { view, decode, layout } = view_of(geometry, unit, self)?;
        copy_region(geometry, unit, view.data(), &layout, decode, values);
        Ok(())
    }
}

/// A tensor of a file, and where a model's tensor lies in it.
struct Stored<'a> {
    view: TensorView<'a>,
    decode: Decode,
    layout: Layout,
}

/// The tensor that `unit` is a part of, once its shape and kind of numbers are known to fit.
fn view_of<'a>(
    geometry: &Geometry,
    unit: UnitId,
    tensors: &WeightFiles<'a>,
) -> Result<Stored<'a>, WeightsError> {
    let file = FileTensor::of(geometry, unit.place, unit.tensor);
    let (layout, expected) = (file.layout(geometry, unit.tensor), file.shape(geometry));
    let name = file.name;
    let view = tensors.tensor(&name)?;
    if view.shape() != expected {
        return Err(WeightsError::Shape { name, shape: view.shape().to_vec(), expected });
    }
    let decode = decoder_of(view.dtype()).ok_or(WeightsError::Dtype { name, dtype: view.dtype() })?;
    Ok(Stored { view, decode, layout })
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

fn copy_region(
    geometry: &Geometry,
    unit: UnitId,
    data: &[u8],
    layout: &Layout,
    (size, decode): Decode,
    values: &mut [f32],
) {
    let region = geometry.region(unit);
    for (row, values) in region.rows.clone().zip(values.chunks_exact_mut(region.columns.len())) {
        for (column, value) in region.columns.clone().zip(values) {
            *value = decode(&data[layout.at(row, column) * size..][..size]);
        }
    }
}

/// The bytes of a `model.safetensors` with every tensor of the model, in f32.
///
/// # Errors
/// [`WeightsError::Format`] if the library refuses.
pub fn write_parameters(geometry: &Geometry, parameters: &HostUnits<'_>) -> Result<Vec<u8>, WeightsError> {
    let tensors = FileTensor::all(geometry).into_iter().map(|file| {
        let shape = file.shape(geometry);
        (file.name.clone(), WholeTensor { geometry, parameters, file, shape })
    });
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    Ok(serialize(tensors, Some(metadata))?)
}

/// The hash by which two trained models are told apart: BLAKE3 over the name and the
/// little-endian numbers of every tensor of its file in canonical order.
///
/// # Panics
/// If `parameters` does not hold the whole model.
pub fn weights_blake3(geometry: &Geometry, parameters: &HostUnits<'_>) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    for file in FileTensor::all(geometry) {
        hasher.update(file.name.as_bytes());
        hasher.update(&little_endian(&content(geometry, parameters, &file)));
    }
    hasher.finalize()
}

/// The numbers of a tensor of a file.
fn content(geometry: &Geometry, parameters: &HostUnits<'_>, file: &FileTensor) -> Vec<f32> {
    let mut whole = vec![0.0; file.shape(geometry).iter().product()];
    for &part in &file.parts {
        let (layout, (_, columns)) = (file.layout(geometry, part), geometry.whole(part));
        let rows = assemble(geometry, parameters, file.place, part);
        for (row, values) in rows.chunks_exact(columns).enumerate() {
            for (column, value) in values.iter().enumerate() {
                whole[layout.at(row, column)] = *value;
            }
        }
    }
    whole
}

/// One of the model's tensors, put together from its units.
pub(crate) fn assemble(
    geometry: &Geometry,
    parameters: &HostUnits<'_>,
    place: Place,
    tensor: Tensor,
) -> Vec<f32> {
    let (rows, columns) = geometry.whole(tensor);
    let mut whole = vec![0.0; rows * columns];
    let shards = if tensor.is_whole() { 1 } else { geometry.sharding.logical() };
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
    parameters: &'a HostUnits<'a>,
    file: FileTensor,
    shape: Vec<usize>,
}

impl View for WholeTensor<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        little_endian(&content(self.geometry, self.parameters, &self.file)).into()
    }

    fn data_len(&self) -> usize {
        self.shape.iter().product::<usize>() * size_of::<f32>()
    }
}

impl UnitId {
    /// The name by which people are told of the tensor that the unit is a part of: Hugging Face's for Llama, and
    /// for what only other families have a name of the same kind.
    pub fn tensor_name(&self) -> String {
        if let Some((weight, factor)) = self.tensor.adapts() {
            let weight = Self { tensor: weight, ..*self }.tensor_name();
            return format!("{}.lora_{factor:?}.weight", weight.trim_end_matches(".weight"));
        }
        let inner = match self.tensor {
            Tensor::Embedding => "model.embed_tokens.weight",
            Tensor::PositionEmbedding => "model.embed_positions.weight",
            Tensor::FinalNorm => "model.norm.weight",
            Tensor::FinalNormBias => "model.norm.bias",
            Tensor::Head => "lm_head.weight",
            Tensor::AttentionNorm => "input_layernorm.weight",
            Tensor::AttentionNormBias => "input_layernorm.bias",
            Tensor::Query => "self_attn.q_proj.weight",
            Tensor::QueryBias => "self_attn.q_proj.bias",
            Tensor::Key => "self_attn.k_proj.weight",
            Tensor::KeyBias => "self_attn.k_proj.bias",
            Tensor::Value => "self_attn.v_proj.weight",
            Tensor::ValueBias => "self_attn.v_proj.bias",
            Tensor::AttentionOutput => "self_attn.o_proj.weight",
            Tensor::AttentionOutputBias => "self_attn.o_proj.bias",
            Tensor::FeedForwardNorm => "post_attention_layernorm.weight",
            Tensor::FeedForwardNormBias => "post_attention_layernorm.bias",
            Tensor::Gate => "mlp.gate_proj.weight",
            Tensor::Up => "mlp.up_proj.weight",
            Tensor::UpBias => "mlp.up_proj.bias",
            Tensor::Down => "mlp.down_proj.weight",
            Tensor::DownBias => "mlp.down_proj.bias",
            Tensor::QueryNorm => "self_attn.q_norm.weight",
            Tensor::KeyNorm => "self_attn.k_norm.weight",
            // Those of adapters have been named.
            _ => "",
        };
        match self.place {
            Place::Layer(layer) => format!("model.layers.{layer}.{inner}"),
            Place::Input | Place::Output => inner.to_owned(),
        }
    }
}
