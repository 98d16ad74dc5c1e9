//! Writes a folder with a graph and its weights, tensor by tensor: [`write_onnx`].

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use prost::Message;

use super::computation::Computation;
use super::decoder::decoder;
use super::graph::{Graph, Place, Told, Value};
use super::proto::{self, DataType};
use crate::encoding::Encoding;
use crate::error::FormatError;
use crate::folder::{CONFIG, failed, put, put_texts, whole_folder, write_tensor};
use crate::model::{Model, Tensor};

/// The names of optimum and of its exporter.
pub(super) const GRAPH: &str = "model.onnx";
pub(super) const WEIGHTS: &str = "model.onnx_data";
/// The version of the format that came with operator set 17: what reads newer ones reads it.
const IR_VERSION: i64 = 8;
const OPERATOR_SET: i64 = 17;
/// Bytes at whose multiples tensors begin, so that they can be mapped: a page.
const ALIGNMENT: u64 = 4096;

/// A tensor of the model, and where it is written.
struct Stored<'a> {
    tensor: &'a Tensor,
    encoding: Encoding,
    place: Place,
}

/// Writes a model as ONNX into a new folder, which is there whole or not at all: `model.onnx` with the graph,
/// `model.onnx_data` with the weights, config.json and the files of the tokenizer. Matrices have the given encoding, vectors
/// are F32; whatever they have, they are computed with in f32. Says how many bytes of weights it has written since it said
/// so last.
///
/// # Errors
/// [`FormatError`] where the folder exists and is not empty, the system refuses, or config.json asks for something that is
/// not written as ONNX.
///
/// # Panics
/// If the encoding is neither F32 nor F16.
pub fn write_onnx(
    model: &Model,
    target: &Path,
    encoding: Encoding,
    mut written: impl FnMut(u64),
) -> Result<(), FormatError> {
    assert!(matches!(encoding, Encoding::F32 | Encoding::F16), "ONNX is written as F32 or F16");
    let sizes = model.sizes()?;
    let in_config = |fault: crate::Fault| fault.unsupported_in(&model.path().join(CONFIG));
    let computation = Computation::of(model.config(), sizes).map_err(in_config)?;
    let stored = layout(model, encoding);
    let file = proto::Model {
        ir_version: IR_VERSION,
        producer_name: "sixfold".to_owned(),
        producer_version: env!("CARGO_PKG_VERSION").to_owned(),
        graph: Some(decoder(sizes, &computation, |graph| add_weights(graph, &stored))),
        opset_import: vec![proto::OperatorSet { domain: Some(String::new()), version: OPERATOR_SET }],
    };
    whole_folder(target, |folder| {
        put_texts(model, sizes, folder, "float32")?;
        put(folder, GRAPH, &file.encode_to_vec())?;
        let path = folder.join(WEIGHTS);
        write_weights(model, &path, &stored, &mut written).map_err(failed(&path))
    })
}

/// Where each tensor goes, in the order in which the model uses them.
fn layout(model: &Model, encoding: Encoding) -> Vec<Stored<'_>> {
    let mut stored = Vec::new();
    let mut end = 0_u64;
    for tensor in model.tensors() {
        let encoding = if tensor.shape.len() > 1 { encoding } else { Encoding::F32 };
        let bytes = (tensor.numbers() * encoding.block_bytes()) as u64;
        let offset = end.next_multiple_of(ALIGNMENT);
        end = offset + bytes;
        stored.push(Stored { tensor, encoding, place: Place { offset, bytes } });
    }
    stored
}

/// Adds the weights as constants; gives them by their names, in f32.
fn add_weights(graph: &mut Graph, stored: &[Stored<'_>]) -> HashMap<String, Value> {
    graph.enter("weights".to_owned());
    let mut weights = HashMap::new();
    for Stored { tensor, encoding, place } in stored {
        let is_half = *encoding == Encoding::F16;
        let kind = if is_half { DataType::Float16 } else { DataType::Float };
        let mut value = graph.external(&tensor.name, kind, &tensor.shape, WEIGHTS, *place);
        if is_half {
            value = graph.apply_with("Cast", &[&value], &[("to", Told::Int(DataType::Float as i64))]);
        }
        weights.insert(tensor.name.clone(), value);
    }
    weights
}

fn write_weights(
    model: &Model,
    path: &Path,
    stored: &[Stored<'_>],
    written: &mut dyn FnMut(u64),
) -> io::Result<()> {
    let mut out = BufWriter::new(File::create_new(path)?);
    let mut end = 0;
    for Stored { tensor, encoding, place } in stored {
        // Less than a page.
        out.write_all(&vec![0; (place.offset - end) as usize])?;
        write_tensor(model, tensor, *encoding, &mut out, written)?;
        end = place.offset + place.bytes;
    }
    out.into_inner()?.sync_all()
}
