//! Reads what stands before the numbers of a safetensors file.

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, SafeTensorError};

use crate::encoding::Encoding;
use crate::error::{Fault, FormatError};
use crate::mapped_file::MappedFile;
use crate::model::{Arrangement, Tensor};

/// Bytes of the length that a file begins with.
const LENGTH_BYTES: usize = 8;

/// The tensors of a file, in the order of their numbers; `number` is the file's among the model's.
///
/// # Errors
/// [`FormatError::Damaged`] where header and length do not fit each other, or numbers are of a kind that is not read.
pub(crate) fn read(file: &MappedFile, number: usize) -> Result<Vec<Tensor>, FormatError> {
    let bytes = file.bytes();
    let (header_bytes, metadata) =
        SafeTensors::read_metadata(bytes).map_err(|error| describe(&error, bytes).in_file(file.path()))?;
    let begin = LENGTH_BYTES + header_bytes;
    let mut tensors = Vec::new();
    for name in metadata.offset_keys() {
        let Some(info) = metadata.info(&name) else { continue };
        let Some(encoding) = encoding_of(info.dtype) else {
            // Masks and counters; where a model needs the tensor it will be missed.
            continue;
        };
        let (from, to) = info.data_offsets;
        let shape = info.shape.clone();
        tensors.push(Tensor {
            name,
            shape,
            encoding,
            file: number,
            bytes: begin + from..begin + to,
            arrangement: Arrangement::Same,
            described_at: LENGTH_BYTES,
        });
    }
    Ok(tensors)
}

fn encoding_of(dtype: Dtype) -> Option<Encoding> {
    match dtype {
        Dtype::F32 => Some(Encoding::F32),
        Dtype::F16 => Some(Encoding::F16),
        Dtype::BF16 => Some(Encoding::Bf16),
        _ => None,
    }
}

/// Where in a file the library found it wanting.
fn describe(error: &SafeTensorError, bytes: &[u8]) -> Fault {
    let (field, offset) = match error {
        SafeTensorError::HeaderTooSmall | SafeTensorError::HeaderTooLarge => ("header length", 0),
        SafeTensorError::InvalidHeaderLength => ("header length", 0),
        SafeTensorError::MetadataIncompleteBuffer => ("data", bytes.len()),
        SafeTensorError::InvalidOffset(name) => (name.as_str(), LENGTH_BYTES),
        _ => ("header", LENGTH_BYTES),
    };
    Fault::at(field, offset, format!("is not readable: {error}"))
}
