//! Checkpoints of llama2.c (`export.py` and `run.c` of karpathy/llama2.c): the first format, whose header is seven
//! numbers, and version 1, whose header has a magic word. Its `tokenizer.bin` becomes tokenizer.json.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};

use crate::architecture::Sizes;
use crate::encoding::Encoding;
use crate::error::{Fault, FormatError};
use crate::folder::read_bounded;
use crate::mapped_file::MappedFile;
use crate::model::{Arrangement, Format, Model, Naming, Tensor};
use crate::tokenizer::{self, Algorithm, SpecialTokens, Token, TokenKind, Vocabulary, byte_of};

/// `ak42`, as a little-endian number.
const MAGIC: [u8; 4] = 0x616b_3432_u32.to_le_bytes();
const LEGACY_HEADER_BYTES: usize = 28;
const HEADER_BYTES: usize = 256;
/// Tokens of SentencePiece's vocabulary that are no text, in their order, then a token for each byte.
const SPECIAL: [(&str, TokenKind); 3] =
    [("<unk>", TokenKind::Unknown), ("<s>", TokenKind::Control), ("</s>", TokenKind::Control)];
/// Most bytes of a token.
const TOKEN_BYTES_MAX: usize = 512;

/// The name of the file with a checkpoint's tokenizer, if it lies beside it.
pub(crate) const TOKENIZER_FILE: &str = "tokenizer.bin";

/// Whether bytes are those of a checkpoint. The first format has no magic word; its length follows from its header.
pub(crate) fn is_checkpoint(bytes: &[u8]) -> bool {
    bytes.starts_with(&MAGIC) || Header::legacy(bytes).is_ok_and(|header| header.end() == Some(bytes.len()))
}

/// Opens a checkpoint, with its tokenizer if there is one.
///
/// # Errors
/// [`FormatError`] names the field that cannot be, and its offset.
pub(crate) fn open(path: &Path, tokenizer_file: Option<&Path>) -> Result<Model, FormatError> {
    let file = MappedFile::open(path)?;
    let bytes = file.bytes();
    let header = if bytes.starts_with(&MAGIC) { Header::version_1(bytes) } else { Header::legacy(bytes) };
    let header = header.map_err(|fault| fault.in_file(path))?;
    if header.end() != Some(bytes.len()) {
        let problem = match header.end() {
            Some(end) => format!("has {} bytes; the sizes of its header say {end}", bytes.len()),
            None => "is shorter than the sizes of its header say".to_owned(),
        };
        return Err(Fault::at("length", bytes.len(), problem).in_file(path));
    }
    let special = SpecialTokens {
        bos: Some(1),
        eos: Some(2),
        unknown: Some(0),
        padding: None,
        // `run.c` ends at the token that begins the next text.
        also_ends: vec![1],
        add_bos: true,
        add_eos: false,
    };
    let config = header.config(&special).as_object().cloned().unwrap_or_default();
    let sizes = Sizes::of(&config).map_err(|fault| fault.in_file(path))?;
    let texts = match tokenizer_file {
        Some(file) => read_tokenizer(file, header.vocab, special)?.to_texts(),
        None => BTreeMap::new(),
    };
    let tensors = header.tensors(bytes.len());
    let path = path.to_owned();
    let mut model =
        Model { path, format: Format::Llama2c, files: vec![file], config, sizes: Ok(sizes), tensors, texts };
    model.arrange(Naming::Gguf)?;
    tokenizer::check(&model)?;
    Ok(model)
}

/// The sizes of a checkpoint.
struct Header {
    dim: usize,
    hidden: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    vocab: usize,
    positions: usize,
    shared: bool,
    /// Where its numbers begin.
    begin: usize,
    legacy: bool,
}

impl Header {
    fn legacy(bytes: &[u8]) -> Result<Self, Fault> {
        // A negative vocabulary says that the head is a matrix of its own.
        let shared = word(bytes, 20).is_none_or(|vocab| vocab > 0);
        Self::read(bytes, 0, shared, LEGACY_HEADER_BYTES, true)
    }

    fn version_1(bytes: &[u8]) -> Result<Self, Fault> {
        match word(bytes, 4) {
            Some(1) => {}
            version => {
                return Err(Fault::at(
                    "version",
                    4,
                    format!("is {version:?}; 1 is read, and the first format"),
                ));
            }
        }
        let shared = match bytes.get(36) {
            Some(byte @ 0..=1) => *byte == 1,
            byte => return Err(Fault::at("shared_classifier", 36, format!("is {byte:?}; 0 and 1 exist"))),
        };
        Self::read(bytes, 8, shared, HEADER_BYTES, false)
    }

    fn read(bytes: &[u8], at: usize, shared: bool, begin: usize, legacy: bool) -> Result<Self, Fault> {
        const FIELDS: [&str; 7] =
            ["dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "seq_len"];
        let mut sizes = [0; 7];
        for (number, (size, field)) in sizes.iter_mut().zip(FIELDS).enumerate() {
            let offset = at + 4 * number;
            let value =
                word(bytes, offset).ok_or_else(|| Fault::at(field, offset, "is past the end of the file"))?;
            let value =
                if field == "vocab_size" && legacy { value.unsigned_abs().cast_signed() } else { value };
            let positive = usize::try_from(value).ok().filter(|value| *value > 0);
            *size = positive
                .ok_or_else(|| Fault::at(field, offset, format!("is {value}; it must be positive")))?;
        }
        let [dim, hidden, layers, heads, kv_heads, vocab, positions] = sizes;
        if !dim.is_multiple_of(heads) {
            return Err(Fault::at(
                "n_heads",
                at + 12,
                format!("is {heads}, into which dim {dim} does not divide"),
            ));
        }
        // Each layer has more bytes than that: what is made for each is in proportion to the file.
        if layers > bytes.len() / 4 {
            return Err(Fault::at(
                "n_layers",
                at + 8,
                format!("is {layers}, more than the file has numbers"),
            ));
        }
        Ok(Self { dim, hidden, layers, heads, kv_heads, vocab, positions, shared, begin, legacy })
    }

    fn head_dim(&self) -> usize {
        self.dim / self.heads
    }

    /// The kinds of tensors in the order of the file: a name of GGUF, rows, columns (0 for a vector), and whether each
    /// layer has one.
    fn kinds(&self) -> Vec<(&'static str, usize, usize, bool)> {
        let (d, kv, inner) = (self.dim, self.kv_heads.saturating_mul(self.head_dim()), self.hidden);
        let embedding = ("token_embd.weight", self.vocab, d, false);
        let norms = [("attn_norm.weight", d, 0, true), ("ffn_norm.weight", d, 0, true)];
        let last_norm = ("output_norm.weight", d, 0, false);
        let attention = [
            ("attn_q.weight", d, d, true),
            ("attn_k.weight", kv, d, true),
            ("attn_v.weight", kv, d, true),
            ("attn_output.weight", d, d, true),
        ];
        let feed_forward = [
            ("ffn_gate.weight", inner, d, true),
            ("ffn_down.weight", d, inner, true),
            ("ffn_up.weight", inner, d, true),
        ];
        let mut kinds = Vec::new();
        if self.legacy {
            kinds.extend([embedding, norms[0]].into_iter().chain(attention).chain([norms[1]]));
            kinds.extend(feed_forward.into_iter().chain([last_norm]));
            // Cosines and sines, which everybody computes.
            kinds.extend([("", self.positions, self.head_dim() / 2, false); 2]);
        } else {
            kinds.extend(norms.into_iter().chain([last_norm, embedding]));
            kinds.extend(attention.into_iter().chain(feed_forward));
        }
        if !self.shared {
            kinds.push(("output.weight", self.vocab, d, false));
        }
        kinds
    }

    /// Where the last number ends, if that can be counted.
    fn end(&self) -> Option<usize> {
        self.kinds().into_iter().try_fold(self.begin, |end, (_, rows, columns, by_layer)| {
            let bytes = rows.checked_mul(columns.max(1))?.checked_mul(4)?;
            end.checked_add(bytes.checked_mul(if by_layer { self.layers } else { 1 })?)
        })
    }

    /// The tensors of a file whose length fits.
    fn tensors(&self, file_bytes: usize) -> Vec<Tensor> {
        let mut tensors = Vec::new();
        let mut begin = self.begin;
        for (name, rows, columns, by_layer) in self.kinds() {
            for layer in 0..if by_layer { self.layers } else { 1 } {
                let end = begin + rows * columns.max(1) * 4;
                debug_assert!(end <= file_bytes);
                let name = if by_layer { format!("blk.{layer}.{name}") } else { name.to_owned() };
                if !name.is_empty() {
                    let shape = if columns == 0 { vec![rows] } else { vec![rows, columns] };
                    tensors.push(Tensor {
                        name,
                        shape,
                        encoding: Encoding::F32,
                        file: 0,
                        bytes: begin..end,
                        arrangement: Arrangement::Same,
                        described_at: begin,
                    });
                }
                begin = end;
            }
        }
        tensors
    }

    fn config(&self, special: &SpecialTokens) -> Value {
        json!({
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_act": "silu",
            "attention_bias": false,
            "mlp_bias": false,
            "vocab_size": self.vocab,
            "hidden_size": self.dim,
            "intermediate_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim(),
            "max_position_embeddings": self.positions,
            // What `run.c` has in it.
            "rms_norm_eps": 1e-5,
            "rope_theta": 10_000.0,
            "tie_word_embeddings": self.shared,
            "bos_token_id": special.bos,
            "eos_token_id": special.ends(),
        })
    }
}

/// The i32 at an offset.
fn word(bytes: &[u8], at: usize) -> Option<i32> {
    let word = bytes.get(at..at.checked_add(4)?)?;
    Some(i32::from_le_bytes([word[0], word[1], word[2], word[3]]))
}

/// Reads a `tokenizer.bin`: the length of the longest token, then for each its score, its length and its bytes.
fn read_tokenizer(path: &Path, vocab: usize, special: SpecialTokens) -> Result<Vocabulary, FormatError> {
    let bytes = read_bounded(path)?;
    let damaged = |field: String, at: usize, problem: String| Fault::at(field, at, problem).in_file(path);
    let (mut tokens, mut scores, mut at) = (Vec::new(), Vec::new(), 4);
    while tokens.len() < vocab {
        let id = tokens.len();
        let field = |name: &str| format!("{name}[{id}]");
        let (Some(score), Some(length)) = (bytes.get(at..at + 4), word(&bytes, at + 4)) else {
            let problem = format!("is past the end of the file; the model has {vocab} tokens");
            return Err(damaged(field("token"), at, problem));
        };
        let score = f32::from_le_bytes([score[0], score[1], score[2], score[3]]);
        if score.is_nan() {
            return Err(damaged(field("score"), at, "is no number".to_owned()));
        }
        let length = usize::try_from(length).ok().filter(|length| *length <= TOKEN_BYTES_MAX);
        let text = length.and_then(|length| bytes.get(at + 8..at + 8 + length));
        let Some(text) = text else {
            let problem = format!("leads past the end of the file, or is none of 0 to {TOKEN_BYTES_MAX}");
            return Err(damaged(field("length"), at + 4, problem));
        };
        let shown = std::str::from_utf8(text);
        let shown =
            shown.map_err(|error| damaged(field("token"), at + 8, format!("is not UTF-8: {error}")))?;
        tokens.push(token_of(id, shown));
        scores.push(score);
        at += 8 + text.len();
    }
    if at != bytes.len() {
        let problem = format!("has {} bytes after the last of {vocab} tokens", bytes.len() - at);
        return Err(damaged("length".to_owned(), at, problem));
    }
    let mut seen = std::collections::HashSet::new();
    if let Some(id) = tokens.iter().position(|token| !seen.insert(token.text.as_str())) {
        return Err(damaged(format!("token[{id}]"), at, format!("is {:?} once more", tokens[id].text)));
    }
    let algorithm = Algorithm::SentencePiece { scores, space_before: true };
    Ok(Vocabulary { tokens, algorithm, special, chat_template: None })
}

/// A token as SentencePiece has it: `tokenizer.bin` has spaces for what it writes as a mark.
fn token_of(id: usize, shown: &str) -> Token {
    if let Some((text, kind)) = SPECIAL.get(id) {
        return Token { text: (*text).to_owned(), kind: *kind };
    }
    let kind = if byte_of(shown).is_some() { TokenKind::Byte } else { TokenKind::Normal };
    Token { text: shown.replace(' ', "\u{2581}"), kind }
}
