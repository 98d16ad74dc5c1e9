//! Writes GGUF files, tensor by tensor: [`write_gguf`].

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use super::header::{ALIGNMENT, MAGIC, aligned};
use super::keys;
use super::metadata::{Metadata, put_text};
use super::rope::Positions;
use crate::architecture::{Architecture, Role, Sizes, refuse_others};
use crate::encoding::Encoding;
use crate::error::{Fault, FormatError};
use crate::folder::{CONFIG, unfinished, write_tensor};
use crate::model::{Arrangement, Model, Tensor, interleaved};
use crate::tokenizer::{Algorithm, SpecialTokens, Token, Vocabulary};

const VERSION: u32 = 3;
/// The version of ggml's quantised blocks (`GGML_QNT_VERSION`).
const QUANTISATION_VERSION: u32 = 2;
/// Fields that GGUF has no key for, with the values that nobody needs to be told of.
const WRITTEN: [(&str, &[&str]); 3] = [
    ("hidden_act", &["silu"]),
    ("activation_function", &["gelu_new", "gelu_pytorch_tanh"]),
    ("use_sliding_window", &["false"]),
];

/// Writes a model into a new GGUF file, which is there whole or not at all; says how many bytes it has written since it
/// said so last. Matrices have the given encoding, or F16 where their rows are no whole blocks; vectors are F32, as
/// llama.cpp wants them.
///
/// # Errors
/// [`FormatError`] where the file exists, the system refuses, or GGUF has no word for what the model is or how its
/// tokenizer works.
///
/// # Panics
/// If the encoding is none of [`Encoding::WRITTEN`].
pub fn write_gguf(
    model: &Model,
    target: &Path,
    encoding: Encoding,
    with_tokenizer: bool,
    mut written: impl FnMut(u64),
) -> Result<(), FormatError> {
    if target.exists() {
        return Err(FormatError::Exists { path: target.to_owned() });
    }
    let metadata = metadata_of(model, encoding, with_tokenizer)?;
    let entries = entries(model, encoding, &metadata.factors)?;
    let partial = unfinished(target);
    let done = write(model, &partial, &metadata, &entries, &mut written)
        .and_then(|()| std::fs::rename(&partial, target))
        .map_err(|reason| FormatError::Io { path: target.to_owned(), reason });
    if done.is_err() {
        // What is left of a failed try is of no use, and if it cannot be removed the first error says more.
        let _ = std::fs::remove_file(&partial);
    }
    done
}

/// A tensor of the file.
struct Entry<'a> {
    name: String,
    /// The slowest dimension first.
    shape: Vec<usize>,
    encoding: Encoding,
    content: Content<'a>,
}

/// Where a tensor's numbers come from.
enum Content<'a> {
    /// The model, in an order of its own.
    Model {
        tensor: &'a Tensor,
        order: Arrangement,
    },
    Numbers(&'a [f32]),
}

impl Entry<'_> {
    fn bytes(&self) -> usize {
        self.shape.iter().product::<usize>() / self.encoding.block_numbers() * self.encoding.block_bytes()
    }
}

fn entries<'a>(
    model: &'a Model,
    encoding: Encoding,
    factors: &'a Option<Vec<f32>>,
) -> Result<Vec<Entry<'a>>, FormatError> {
    let sizes = model.sizes()?;
    let interleaves = sizes.architecture.is_interleaved_in_gguf();
    let entry = |(expected, tensor): (crate::architecture::Expected, &'a Tensor)| {
        let order = match expected.role {
            Role::Rotated if interleaves => Arrangement::Interleaved { head_dim: sizes.head_dim },
            Role::Transposed => Arrangement::Transposed,
            Role::Plain | Role::Rotated => Arrangement::Same,
        };
        let mut shape = tensor.shape.clone();
        if order == Arrangement::Transposed {
            shape.reverse();
        }
        let columns = shape.last().copied().unwrap_or(1);
        let encoding = match (shape.len(), encoding.bytes_of(columns)) {
            (0 | 1, _) => Encoding::F32,
            (_, Some(_)) => encoding,
            (_, None) => Encoding::F16,
        };
        Entry { name: expected.gguf, shape, encoding, content: Content::Model { tensor, order } }
    };
    let factors = factors.as_ref().map(|factors| Entry {
        name: keys::ROPE_FREQUENCIES.to_owned(),
        shape: vec![factors.len()],
        encoding: Encoding::F32,
        content: Content::Numbers(factors),
    });
    // A model's tensors are in the order of those that are expected.
    Ok(sizes.expected().into_iter().zip(model.tensors()).map(entry).chain(factors).collect())
}

fn write(
    model: &Model,
    path: &Path,
    metadata: &Described,
    entries: &[Entry<'_>],
    written: &mut dyn FnMut(u64),
) -> io::Result<()> {
    let mut out = BufWriter::new(File::create_new(path)?);
    let mut header = Vec::from(MAGIC);
    header.extend(VERSION.to_le_bytes());
    header.extend((entries.len() as u64).to_le_bytes());
    header.extend(metadata.metadata.count.to_le_bytes());
    header.extend(&metadata.metadata.bytes);
    let mut begin = 0;
    for entry in entries {
        put_text(&mut header, &entry.name);
        header.extend((entry.shape.len() as u32).to_le_bytes());
        header.extend(entry.shape.iter().rev().flat_map(|dim| (*dim as u64).to_le_bytes()));
        header.extend(entry.encoding.ggml_type().to_le_bytes());
        header.extend((begin as u64).to_le_bytes());
        begin = aligned(begin + entry.bytes(), ALIGNMENT);
    }
    header.resize(aligned(header.len(), ALIGNMENT), 0);
    out.write_all(&header)?;
    for entry in entries {
        match &entry.content {
            Content::Model { tensor, order: Arrangement::Same } => {
                write_tensor(model, tensor, entry.encoding, &mut out, written)?;
            }
            Content::Model { tensor, order } => {
                write_ordered(model, tensor, *order, entry, &mut out, written)?;
            }
            Content::Numbers(numbers) => {
                let mut bytes = Vec::new();
                entry.encoding.encode(numbers, &mut bytes);
                out.write_all(&bytes)?;
            }
        }
        let padding = aligned(entry.bytes(), ALIGNMENT) - entry.bytes();
        out.write_all(&[0; ALIGNMENT][..padding])?;
    }
    out.into_inner()?.sync_all()
}

/// Writes a tensor whose rows, or numbers, are in another order in the file.
fn write_ordered(
    model: &Model,
    tensor: &Tensor,
    order: Arrangement,
    entry: &Entry<'_>,
    out: &mut impl Write,
    written: &mut dyn FnMut(u64),
) -> io::Result<()> {
    let rows = model.rows(tensor);
    let (count, columns) = (rows.len(), rows.columns());
    let mut bytes = Vec::new();
    let mut put = |numbers: &[f32]| {
        bytes.clear();
        entry.encoding.encode(numbers, &mut bytes);
        written(bytes.len() as u64);
        out.write_all(&bytes)
    };
    match order {
        Arrangement::Interleaved { head_dim } if tensor.shape.len() > 1 => {
            let mut numbers = vec![0.0; columns];
            (0..count).try_for_each(|row| {
                rows.read(halves(row, head_dim), &mut numbers);
                put(&numbers)
            })
        }
        Arrangement::Interleaved { head_dim } => {
            let mut numbers = vec![0.0; columns];
            rows.read(0, &mut numbers);
            let ordered: Vec<f32> = (0..columns).map(|at| numbers[halves(at, head_dim)]).collect();
            put(&ordered)
        }
        Arrangement::Transposed | Arrangement::Same => {
            let mut whole = vec![0.0; count * columns];
            whole.chunks_exact_mut(columns).enumerate().for_each(|(row, numbers)| rows.read(row, numbers));
            (0..columns).try_for_each(|column| {
                put(&whole.iter().skip(column).step_by(columns).copied().collect::<Vec<_>>())
            })
        }
    }
}

/// The row of Hugging Face's folders that is a row of an interleaved file: the inverse of [`interleaved`].
fn halves(row: usize, head_dim: usize) -> usize {
    let (head, within) = (row / head_dim * head_dim, row % head_dim);
    let place = head + within / 2 + within % 2 * (head_dim / 2);
    debug_assert_eq!(interleaved(place, head_dim), row);
    place
}

/// Metadata, and what of it is a tensor.
struct Described {
    metadata: Metadata,
    factors: Option<Vec<f32>>,
}

fn metadata_of(model: &Model, encoding: Encoding, with_tokenizer: bool) -> Result<Described, FormatError> {
    let sizes = model.sizes()?;
    let config = model.config();
    let in_config = |fault: Fault| fault.unsupported_in(&model.path().join(CONFIG));
    refuse_others(config, &WRITTEN, "GGUF").map_err(in_config)?;
    let positions = match sizes.architecture {
        Architecture::Gpt2 => Positions::default(),
        _ => Positions::of(config, sizes.head_dim).map_err(in_config)?,
    };
    let name = sizes.architecture.in_gguf();
    let mut metadata = Metadata::default();
    metadata.text(keys::ARCHITECTURE, name);
    let title = model.path().file_stem().map(|stem| stem.to_string_lossy().into_owned());
    metadata.text(keys::NAME, &title.unwrap_or_default());
    metadata.u32(keys::FILE_TYPE, file_type(encoding));
    if !encoding.is_plain() {
        metadata.u32(keys::QUANTISATION_VERSION, QUANTISATION_VERSION);
    }
    let key = |end: &str| format!("{name}{end}");
    for (end, size) in sizes_of(sizes, config).into_iter().chain(positions.sizes) {
        let value =
            u32::try_from(size).map_err(|_| in_config(Fault::new(end, format!("is {size}: too much"))))?;
        metadata.u32(&key(end), value);
    }
    let float = |key: &str| config.get(key).and_then(serde_json::Value::as_f64);
    let epsilon = match sizes.architecture {
        Architecture::Gpt2 => (keys::EPSILON, float("layer_norm_epsilon").unwrap_or(1e-5)),
        _ => (keys::RMS_EPSILON, float("rms_norm_eps").unwrap_or(1e-6)),
    };
    let base = positions.theta.map(|theta| (keys::ROPE_BASE, theta));
    for (end, value) in [epsilon].into_iter().chain(base).chain(positions.floats) {
        metadata.f32(&key(end), value as f32);
    }
    positions.texts.iter().for_each(|(end, value)| metadata.text(&key(end), value));
    let vocabulary = match with_tokenizer {
        true => Vocabulary::from_texts(model, sizes.vocab).map_err(|error| {
            let problem = format!("{}; --no-tokenizer writes the model without it", error.fault.problem);
            Fault { problem, ..error.fault }.unsupported_in(&model.path().join(error.file))
        })?,
        false => None,
    };
    match &vocabulary {
        Some(vocabulary) => put_vocabulary(&mut metadata, vocabulary),
        None => metadata.text(keys::TOKENIZER, "no_vocab"),
    }
    Ok(Described { metadata, factors: positions.factors })
}

/// `llama_ftype` of `llama.h`.
fn file_type(encoding: Encoding) -> u32 {
    match encoding {
        Encoding::F16 => 1,
        Encoding::Q4_0 => 2,
        Encoding::Q8_0 => 7,
        Encoding::Bf16 => 32,
        _ => 0,
    }
}

fn sizes_of(
    sizes: &Sizes,
    config: &serde_json::Map<String, serde_json::Value>,
) -> Vec<(&'static str, usize)> {
    let mut all = vec![
        (keys::VOCAB_SIZE, sizes.vocab),
        (keys::CONTEXT_LENGTH, sizes.positions),
        (keys::EMBEDDING_LENGTH, sizes.hidden),
        (keys::BLOCK_COUNT, sizes.layers),
        (keys::FEED_FORWARD_LENGTH, sizes.inner),
        (keys::HEAD_COUNT, sizes.heads),
    ];
    if sizes.architecture == Architecture::Gpt2 {
        return all;
    }
    all.extend([
        (keys::HEAD_COUNT_KV, sizes.kv_heads),
        (keys::KEY_LENGTH, sizes.head_dim),
        (keys::VALUE_LENGTH, sizes.head_dim),
        (keys::ROPE_DIMENSIONS, sizes.head_dim),
    ]);
    let window = config.get("sliding_window").and_then(serde_json::Value::as_u64);
    let window = window.filter(|_| sizes.architecture == Architecture::Mistral);
    all.extend(window.and_then(|window| Some((keys::SLIDING_WINDOW, usize::try_from(window).ok()?))));
    all
}

fn put_vocabulary(metadata: &mut Metadata, vocabulary: &Vocabulary) {
    let tokens = vocabulary.tokens.iter();
    match &vocabulary.algorithm {
        Algorithm::ByteLevel { merges, pre_tokenizer } => {
            metadata.text(keys::TOKENIZER, "gpt2");
            metadata.text(keys::PRE_TOKENIZER, pre_tokenizer.names[0]);
            let merges: Vec<String> = merges.iter().map(|(left, right)| format!("{left} {right}")).collect();
            metadata.texts(keys::MERGES, merges.iter().map(String::as_str));
        }
        Algorithm::SentencePiece { scores, space_before } => {
            metadata.text(keys::TOKENIZER, "llama");
            metadata.text(keys::PRE_TOKENIZER, "default");
            metadata.f32s(keys::SCORES, scores.iter().copied());
            metadata.flag(keys::ADD_SPACE, *space_before);
        }
    }
    metadata.texts(keys::TOKENS, tokens.clone().map(|token: &Token| token.text.as_str()));
    metadata.i32s(keys::TOKEN_TYPES, tokens.map(|token| token.kind as i32));
    let SpecialTokens { bos, eos, unknown, padding, also_ends, add_bos, add_eos } = &vocabulary.special;
    let ids = [
        (keys::BOS, bos.as_ref()),
        (keys::EOS, eos.as_ref()),
        (keys::EOT, also_ends.first()),
        (keys::UNKNOWN, unknown.as_ref()),
        (keys::PADDING, padding.as_ref()),
    ];
    for (key, id) in ids {
        if let Some(id) = id {
            metadata.u32(key, *id);
        }
    }
    metadata.flag(keys::ADD_BOS, *add_bos);
    metadata.flag(keys::ADD_EOS, *add_eos);
    if let Some(template) = &vocabulary.chat_template {
        metadata.text(keys::CHAT_TEMPLATE, template);
    }
}
