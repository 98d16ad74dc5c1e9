//! A layer of a decoder: norms, projections, attention, feed-forward. Dims as in [`decoder`](super::decoder).

use super::decoder::Decoder;
use super::graph::{Told, Value};
use crate::architecture::Architecture;

/// The factor of the cube in the form of GELU that has a hyperbolic tangent (Hendrycks and Gimpel, "Gaussian Error Linear
/// Units", 2016).
const GELU_CUBE: f32 = 0.044715;

impl Decoder<'_> {
    /// What a layer makes of the rows, `[B * S, width]`.
    pub(super) fn layer(&mut self, layer: usize, rows: &Value) -> Value {
        let prefix = format!("{}.{layer}", self.names.layers);
        self.graph.enter(format!("layer.{layer}/attention"));
        let normed = self.norm(rows, &format!("{prefix}.{}", self.names.attention_norm));
        let attended = self.attention(layer, &prefix, &normed);
        let rows = self.graph.apply("Add", &[rows, &attended]);
        self.graph.enter(format!("layer.{layer}/feed_forward"));
        let normed = self.norm(&rows, &format!("{prefix}.{}", self.names.feed_forward_norm));
        let fed = match self.sizes.architecture {
            Architecture::Gpt2 => {
                let inner = self.projection(&normed, &format!("{prefix}.mlp.c_fc"));
                let inner = self.gelu(&inner);
                self.projection(&inner, &format!("{prefix}.mlp.c_proj"))
            }
            _ => {
                let gate = self.projection(&normed, &format!("{prefix}.mlp.gate_proj"));
                let up = self.projection(&normed, &format!("{prefix}.mlp.up_proj"));
                let sigmoid = self.graph.apply("Sigmoid", &[&gate]);
                let gate = self.graph.apply("Mul", &[&gate, &sigmoid]);
                let inner = self.graph.apply("Mul", &[&gate, &up]);
                self.projection(&inner, &format!("{prefix}.mlp.down_proj"))
            }
        };
        self.graph.apply("Add", &[&rows, &fed])
    }

    /// The norm of the family over the last dim.
    pub(super) fn norm(&mut self, rows: &Value, name: &str) -> Value {
        let weight = self.weight(&format!("{name}.weight"));
        if self.sizes.architecture == Architecture::Gpt2 {
            let bias = self.weight(&format!("{name}.bias"));
            let told = [("axis", Told::Int(-1)), ("epsilon", Told::Float(self.computation.epsilon))];
            return self.graph.apply_with("LayerNormalization", &[rows, &weight, &bias], &told);
        }
        let (two, epsilon) = (self.graph.float(2.0), self.graph.float(self.computation.epsilon));
        let squares = self.graph.apply("Pow", &[rows, &two]);
        let told = [("axes", Told::Ints(&[-1])), ("keepdims", Told::Int(1))];
        let mean = self.graph.apply_with("ReduceMean", &[&squares], &told);
        let mean = self.graph.apply("Add", &[&mean, &epsilon]);
        let root = self.graph.apply("Sqrt", &[&mean]);
        let normed = self.graph.apply("Div", &[rows, &root]);
        self.graph.apply("Mul", &[&normed, &weight])
    }

    /// A projection, with its bias if it has one. GPT-2's weights are `[inputs, outputs]`, all others' the other way round.
    fn projection(&mut self, rows: &Value, name: &str) -> Value {
        let weight = self.weight(&format!("{name}.weight"));
        let bias = self.weights.get(&format!("{name}.bias")).cloned();
        let inputs: Vec<&Value> = [rows, &weight].into_iter().chain(bias.as_ref()).collect();
        let turned = self.sizes.architecture != Architecture::Gpt2;
        self.graph.apply_with("Gemm", &inputs, &[("transB", Told::Int(i64::from(turned)))])
    }

    fn gelu(&mut self, rows: &Value) -> Value {
        let [half, one, three] = [0.5, 1.0, 3.0].map(|number| self.graph.float(number));
        let cube_factor = self.graph.float(GELU_CUBE);
        let slope = self.graph.float((2.0 / std::f64::consts::PI).sqrt() as f32);
        let cubes = self.graph.apply("Pow", &[rows, &three]);
        let cubes = self.graph.apply("Mul", &[&cubes, &cube_factor]);
        let inner = self.graph.apply("Add", &[rows, &cubes]);
        let inner = self.graph.apply("Mul", &[&inner, &slope]);
        let bent = self.graph.apply("Tanh", &[&inner]);
        let bent = self.graph.apply("Add", &[&bent, &one]);
        let halves = self.graph.apply("Mul", &[rows, &half]);
        self.graph.apply("Mul", &[&halves, &bent])
    }

    /// What each query makes of the values that it sees, projected.
    fn attention(&mut self, layer: usize, prefix: &str, rows: &Value) -> Value {
        let (heads, kv_heads, head_dim) = (self.sizes.heads, self.sizes.kv_heads, self.sizes.head_dim);
        let [queries, keys, values] = self.queries_keys_values(prefix, rows);
        let queries = self.heads(&queries, 0, &format!("{prefix}.self_attn.q_norm"));
        let keys = self.heads(&keys, 1, &format!("{prefix}.self_attn.k_norm"));
        let (queries, keys) = (self.rotated(&queries), self.rotated(&keys));
        let values = self.split_heads(&values, 1);
        let values = self.turned(&values, &[0, 2, 1, 3]);
        let keys = self.with_past(layer, "key", &keys);
        let values = self.with_past(layer, "value", &values);

        let scale = self.graph.float((1.0 / (head_dim as f64).sqrt()) as f32);
        let queries = self.graph.apply("Mul", &[&queries, &scale]);
        let keys = self.turned(&keys, &[0, 1, 3, 2]);
        // Queries that share a key head are its rows, so that keys and values are not repeated.
        let is_grouped = heads != kv_heads;
        let (kv_heads, heads, head_dim) = (kv_heads as i64, heads as i64, head_dim as i64);
        let grouped = |this: &mut Self, value: Value, shape: [i64; 4]| {
            if is_grouped { this.reshaped(&value, &shape) } else { value }
        };
        let queries = grouped(self, queries, [0, kv_heads, -1, head_dim]);
        let scores = self.graph.apply("MatMul", &[&queries, &keys]);
        let scores = grouped(self, scores, [0, heads, -1, 0]);
        let mask = self.masks[&self.computation.windows[layer]].clone();
        let scores = self.graph.apply("Add", &[&scores, &mask]);
        let shares = self.graph.apply_with("Softmax", &[&scores], &[("axis", Told::Int(-1))]);
        let shares = grouped(self, shares, [0, kv_heads, -1, 0]);
        let mixed = self.graph.apply("MatMul", &[&shares, &values]);
        let mixed = grouped(self, mixed, [0, heads, -1, head_dim]);
        let mixed = self.turned(&mixed, &[0, 2, 1, 3]);
        let mixed = self.reshaped(&mixed, &[-1, heads * head_dim]);
        let output =
            if self.sizes.architecture == Architecture::Gpt2 { "attn.c_proj" } else { "self_attn.o_proj" };
        self.projection(&mixed, &format!("{prefix}.{output}"))
    }

    /// Each `[B * S, heads * D]`.
    fn queries_keys_values(&mut self, prefix: &str, rows: &Value) -> [Value; 3] {
        if self.sizes.architecture == Architecture::Gpt2 {
            let all = self.projection(rows, &format!("{prefix}.attn.c_attn"));
            return self.graph.split(&all, 1, self.sizes.hidden);
        }
        ["q", "k", "v"].map(|kind| self.projection(rows, &format!("{prefix}.self_attn.{kind}_proj")))
    }

    /// `[B, S, heads, D]`, with the heads of queries (0) or of keys and values (1).
    fn split_heads(&mut self, rows: &Value, kind: usize) -> Value {
        let shape = self.head_shapes[kind].clone();
        self.graph.apply("Reshape", &[rows, &shape])
    }

    /// `[B, heads, S, D]`, each head normed where the family does so.
    fn heads(&mut self, rows: &Value, kind: usize, norm: &str) -> Value {
        let mut heads = self.split_heads(rows, kind);
        if self.sizes.architecture == Architecture::Qwen3 {
            heads = self.norm(&heads, norm);
        }
        self.turned(&heads, &[0, 2, 1, 3])
    }

    /// Queries or keys turned by their positions: each number of a head's first half with that of the second.
    fn rotated(&mut self, heads: &Value) -> Value {
        let Some([cosines, sines]) = self.rotation.clone() else { return heads.clone() };
        let [first, second] = self.graph.split(heads, 3, self.sizes.head_dim / 2);
        let second = self.graph.apply("Neg", &[&second]);
        let crossed = self.graph.apply_with("Concat", &[&second, &first], &[("axis", Told::Int(-1))]);
        let crossed = self.graph.apply("Mul", &[&crossed, &sines]);
        let straight = self.graph.apply("Mul", &[heads, &cosines]);
        self.graph.apply("Add", &[&straight, &crossed])
    }

    /// Keys or values, `[B, K, T, D]`, behind those of the past.
    fn with_past(&mut self, layer: usize, kind: &str, new: &Value) -> Value {
        let past = self.cache_input(&format!("past_key_values.{layer}.{kind}"));
        let present = format!("present.{layer}.{kind}");
        self.graph.apply_as(&present, "Concat", &[&past, new], &[("axis", Told::Int(2))])
    }

    fn turned(&mut self, value: &Value, axes: &[i64]) -> Value {
        self.graph.apply_with("Transpose", &[value], &[("perm", Told::Ints(axes))])
    }

    /// With another shape, in which 0 stands for the dim that is there and -1 for what is left.
    fn reshaped(&mut self, value: &Value, shape: &[i64]) -> Value {
        let shape = self.graph.ints(shape);
        self.graph.apply("Reshape", &[value, &shape])
    }
}
