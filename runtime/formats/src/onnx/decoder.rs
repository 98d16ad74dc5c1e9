//! A whole decoder as a graph: [`decoder`].
//!
//! Dims in comments: B sequences, S new tokens, T tokens with those of the past, H query heads, K key and value heads, D
//! numbers of a head. Between layers the tokens of all sequences are the rows of one matrix `[B * S, width]`, so that each
//! projection is one `Gemm`, bias included, of the weight as it lies in the file.

use std::collections::HashMap;

use super::computation::Computation;
use super::graph::{Dim, Graph, Told, Value};
use super::proto::{self, DataType};
use crate::architecture::{Architecture, Sizes};

const BATCH: Dim = Dim::Named("batch_size");
const NEW: Dim = Dim::Named("sequence_length");
const PAST: Dim = Dim::Named("past_sequence_length");
const ALL: Dim = Dim::Named("past_sequence_length + sequence_length");

/// What a family calls its tensors, in Hugging Face's folders.
pub(super) struct Names {
    embedding: &'static str,
    pub(super) layers: &'static str,
    pub(super) attention_norm: &'static str,
    pub(super) feed_forward_norm: &'static str,
    final_norm: &'static str,
}

const LLAMA: Names = Names {
    embedding: "model.embed_tokens.weight",
    layers: "model.layers",
    attention_norm: "input_layernorm",
    feed_forward_norm: "post_attention_layernorm",
    final_norm: "model.norm",
};
const GPT2: Names = Names {
    embedding: "transformer.wte.weight",
    layers: "transformer.h",
    attention_norm: "ln_1",
    feed_forward_norm: "ln_2",
    final_norm: "transformer.ln_f",
};

/// A decoder, as far as it is put together.
pub(super) struct Decoder<'a> {
    pub(super) graph: Graph,
    pub(super) sizes: &'a Sizes,
    pub(super) computation: &'a Computation,
    pub(super) names: &'static Names,
    /// By their names, in f32.
    pub(super) weights: HashMap<String, Value>,
    /// `[B, S, H, D]` and `[B, S, K, D]`, as values.
    pub(super) head_shapes: [Value; 2],
    /// Cosines and sines, `[B, 1, S, D]`.
    pub(super) rotation: Option<[Value; 2]>,
    /// By the window: what is added to scores, `[B, 1, S, T]`.
    pub(super) masks: HashMap<Option<usize>, Value>,
}

/// Puts the graph of a model together. `add_weights` adds the constants with the weights, and gives them by their names, in
/// f32.
pub(super) fn decoder(
    sizes: &Sizes,
    computation: &Computation,
    add_weights: impl FnOnce(&mut Graph) -> HashMap<String, Value>,
) -> proto::Graph {
    let mut graph = Graph::default();
    let weights = add_weights(&mut graph);
    let tokens = graph.input("input_ids", DataType::Int64, &[BATCH, NEW]);
    let seen = graph.input("attention_mask", DataType::Int64, &[BATCH, ALL]);
    let positions = graph.input("position_ids", DataType::Int64, &[BATCH, NEW]);
    graph.enter("inputs".to_owned());
    let shape = graph.apply("Shape", &[&tokens]);
    let shaped = |graph: &mut Graph, more: &[usize]| {
        let more: Vec<i64> = more.iter().map(|size| *size as i64).collect();
        let more = graph.ints(&more);
        graph.apply_with("Concat", &[&shape, &more], &[("axis", Told::Int(0))])
    };
    let head_shapes = [sizes.heads, sizes.kv_heads].map(|heads| shaped(&mut graph, &[heads, sizes.head_dim]));
    let logits_shape = shaped(&mut graph, &[sizes.vocab]);
    let rotation = computation.rotary.as_ref().map(|rotary| rotation(&mut graph, &positions, rotary));
    let masks = masks(&mut graph, &shape, &seen, &computation.windows);
    let names = if sizes.architecture == Architecture::Gpt2 { &GPT2 } else { &LLAMA };
    let mut decoder = Decoder { graph, sizes, computation, names, weights, head_shapes, rotation, masks };
    let mut rows = decoder.embedded(&tokens, &positions);
    for layer in 0..sizes.layers {
        rows = decoder.layer(layer, &rows);
    }
    decoder.graph.enter("head".to_owned());
    let rows = decoder.norm(&rows, names.final_norm);
    let head = decoder.weight(if sizes.tied { names.embedding } else { "lm_head.weight" });
    let logits = decoder.graph.apply_with("Gemm", &[&rows, &head], &[("transB", Told::Int(1))]);
    let logits = decoder.graph.apply_as("logits", "Reshape", &[&logits, &logits_shape], &[]);
    decoder.graph.output(&logits, DataType::Float, &[BATCH, NEW, Dim::Fixed(sizes.vocab)]);
    for layer in 0..sizes.layers {
        for kind in ["key", "value"] {
            decoder.cache_output(&format!("present.{layer}.{kind}"));
        }
    }
    decoder.graph.finish(sizes.architecture.model_type())
}

impl Decoder<'_> {
    /// Keys or values of the tokens that came before, `[B, K, past, D]`.
    pub(super) fn cache_input(&mut self, name: &str) -> Value {
        let dims = [BATCH, Dim::Fixed(self.sizes.kv_heads), PAST, Dim::Fixed(self.sizes.head_dim)];
        self.graph.input(name, DataType::Float, &dims)
    }

    fn cache_output(&mut self, name: &str) {
        let dims = [BATCH, Dim::Fixed(self.sizes.kv_heads), ALL, Dim::Fixed(self.sizes.head_dim)];
        self.graph.output(&Value::named(name), DataType::Float, &dims);
    }

    pub(super) fn weight(&self, name: &str) -> Value {
        // A model that was opened has every tensor of its family.
        self.weights[name].clone()
    }

    /// Rows of the embedding, with those of learned positions.
    fn embedded(&mut self, tokens: &Value, positions: &Value) -> Value {
        self.graph.enter("embedding".to_owned());
        let embedding = self.weight(self.names.embedding);
        let mut rows = self.graph.apply("Gather", &[&embedding, tokens]);
        if self.sizes.architecture == Architecture::Gpt2 {
            let learned = self.weight("transformer.wpe.weight");
            let learned = self.graph.apply("Gather", &[&learned, positions]);
            rows = self.graph.apply("Add", &[&rows, &learned]);
        }
        let shape = self.graph.ints(&[-1, self.sizes.hidden as i64]);
        self.graph.apply("Reshape", &[&rows, &shape])
    }
}

/// Cosines and sines of the positions, `[B, 1, S, D]`: those of a head's first half, and the same again.
fn rotation(graph: &mut Graph, positions: &Value, (frequencies, scale): &(Vec<f32>, f32)) -> [Value; 2] {
    let frequencies = graph.floats(frequencies);
    let axes = graph.ints(&[1, 3]);
    let positions = graph.apply_with("Cast", &[positions], &[("to", Told::Int(DataType::Float as i64))]);
    let positions = graph.apply("Unsqueeze", &[&positions, &axes]);
    let angles = graph.apply("Mul", &[&positions, &frequencies]);
    let angles = graph.apply_with("Concat", &[&angles, &angles], &[("axis", Told::Int(-1))]);
    ["Cos", "Sin"].map(|operation| {
        let values = graph.apply(operation, &[&angles]);
        if *scale == 1.0 {
            return values;
        }
        let scale = graph.float(*scale);
        graph.apply("Mul", &[&values, &scale])
    })
}

/// For each kind of window what is added to scores, `[B, 1, S, T]`: nothing where a query sees a key, and else the least
/// number of f32. A query that sees no key, which is padding, attends to all of them alike instead of dividing by zero.
fn masks(
    graph: &mut Graph,
    shape: &Value,
    seen: &Value,
    windows: &[Option<usize>],
) -> HashMap<Option<usize>, Value> {
    let (zero, one) = (graph.int(0), graph.int(1));
    let all_shape = graph.apply("Shape", &[seen]);
    let all = graph.apply("Gather", &[&all_shape, &one]);
    let new = graph.apply("Gather", &[shape, &one]);
    let past = graph.apply("Sub", &[&all, &new]);
    let keys = graph.apply("Range", &[&zero, &all, &one]);
    let queries = graph.apply("Range", &[&past, &all, &one]);
    let (column, among_heads) = (graph.ints(&[1]), graph.ints(&[1, 2]));
    let queries = graph.apply("Unsqueeze", &[&queries, &column]);
    let causal = graph.apply("LessOrEqual", &[&keys, &queries]);
    let seen = graph.apply_with("Cast", &[seen], &[("to", Told::Int(DataType::Bool as i64))]);
    let seen = graph.apply("Unsqueeze", &[&seen, &among_heads]);
    let seen = graph.apply("And", &[&causal, &seen]);
    let (nothing, least) = (graph.float(0.0), graph.float(f32::MIN));
    let mut masks = HashMap::new();
    for window in windows {
        masks.entry(*window).or_insert_with(|| {
            let seen = match window {
                None => seen.clone(),
                Some(window) => {
                    let window = graph.int(*window as i64);
                    let before = graph.apply("Sub", &[&queries, &window]);
                    let within = graph.apply("Greater", &[&keys, &before]);
                    graph.apply("And", &[&seen, &within])
                }
            };
            graph.apply("Where", &[&seen, &nothing, &least])
        });
    }
    masks
}
