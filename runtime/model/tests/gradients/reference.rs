//! A decoder of any family in f64, written for plainness and from the formulas, not from the crate.

use std::collections::BTreeMap;
use std::ops::Range;

use sixfold_model::{
    Family, Geometry, MicroBatch, ModelConfig, Place, RopeScaling, Tensor, UnitBuffer, UnitId,
};
use sixfold_tensor::IGNORED_TARGET;

type Matrix = Vec<Vec<f64>>;

pub(crate) struct Reference {
    config: ModelConfig,
    tensors: BTreeMap<(Place, Tensor), Vec<f64>>,
}

impl Reference {
    pub(crate) fn new(geometry: &Geometry, parameters: &UnitBuffer) -> Self {
        let mut tensors = BTreeMap::new();
        for (unit, values) in parameters.iter() {
            let (rows, columns) = geometry.whole(unit.tensor);
            let whole = tensors.entry((unit.place, unit.tensor)).or_insert_with(|| vec![0.0; rows * columns]);
            for (place, value) in geometry.region(unit).row_ranges().flatten().zip(values) {
                whole[place] = f64::from(*value);
            }
        }
        Self { config: geometry.config.clone(), tensors }
    }

    pub(crate) fn derivative(&mut self, unit: UnitId, place: usize, batch: &MicroBatch) -> f64 {
        const STEP: f64 = 1e-5;
        let mut loss_at = |difference: f64| {
            let key = (unit.place, unit.tensor);
            let before = self.tensors[&key][place];
            self.tensors.get_mut(&key).unwrap()[place] = before + difference;
            let loss = self.loss(batch);
            self.tensors.get_mut(&key).unwrap()[place] = before;
            loss
        };
        (loss_at(STEP) - loss_at(-STEP)) / (2.0 * STEP)
    }

    pub(crate) fn loss(&self, batch: &MicroBatch) -> f64 {
        let of_rows =
            |rows: Range<usize>| self.document_loss(&batch.tokens[rows.clone()], &batch.targets[rows]);
        let total: f64 = batch.documents().map(of_rows).sum();
        total / batch.targets.iter().filter(|target| **target != IGNORED_TARGET).count() as f64
    }

    /// The loss of a document that is alone in the world.
    fn document_loss(&self, tokens: &[u32], targets: &[u32]) -> f64 {
        let d = self.config.hidden_size;
        let embedding = self.tensor(Place::Input, Tensor::Embedding);
        let mut x: Matrix =
            tokens.iter().map(|t| embedding[*t as usize * d..(*t as usize + 1) * d].to_vec()).collect();
        if let Some(table) = self.tensors.get(&(Place::Input, Tensor::PositionEmbedding)) {
            add(&mut x, &table.chunks(d).take(tokens.len()).map(<[f64]>::to_vec).collect());
        }
        for layer in 0..self.config.num_hidden_layers as u32 {
            let place = Place::Layer(layer);
            let h = self.norm(&x, place, Tensor::AttentionNorm);
            add(&mut x, &self.attention(&h, place));
            let h = self.norm(&x, place, Tensor::FeedForwardNorm);
            let up = self.apply(&h, place, Tensor::Up);
            let product: Matrix = match self.config.family {
                Family::Llama | Family::Qwen2 | Family::Qwen3 => {
                    let gate = self.apply(&h, place, Tensor::Gate);
                    let swiglu = |(g, u): (&f64, &f64)| g / (1.0 + (-g).exp()) * u;
                    gate.iter().zip(&up).map(|(g, u)| g.iter().zip(u).map(swiglu).collect()).collect()
                }
                Family::Gpt2 => up.iter().map(|row| row.iter().map(|x| gelu(*x)).collect()).collect(),
            };
            add(&mut x, &self.apply(&product, place, Tensor::Down));
        }
        let h = self.norm(&x, Place::Output, Tensor::FinalNorm);
        let logits = if self.config.tie_word_embeddings {
            self.apply(&h, Place::Input, Tensor::Embedding)
        } else {
            self.apply(&h, Place::Output, Tensor::Head)
        };
        logits
            .iter()
            .zip(targets)
            .filter(|(_, target)| **target != IGNORED_TARGET)
            .map(|(row, target)| row.iter().map(|l| l.exp()).sum::<f64>().ln() - row[*target as usize])
            .sum()
    }

    fn attention(&self, h: &Matrix, place: Place) -> Matrix {
        let head_dim = self.config.head_dim;
        let group = self.config.heads_per_group();
        let q = self.rotate(&self.norm_heads(self.apply(h, place, Tensor::Query), place, Tensor::QueryNorm));
        let k = self.rotate(&self.norm_heads(self.apply(h, place, Tensor::Key), place, Tensor::KeyNorm));
        let v = self.apply(h, place, Tensor::Value);
        let mut out = vec![vec![0.0; self.config.num_attention_heads * head_dim]; h.len()];
        for (t, row) in out.iter_mut().enumerate() {
            let first = match (self.config.sliding_window, place) {
                (Some(window), Place::Layer(layer))
                    if layer as usize >= self.config.full_attention_layers =>
                {
                    (t + 1).saturating_sub(window.get())
                }
                _ => 0,
            };
            for head in 0..self.config.num_attention_heads {
                let (of_q, of_kv) = (head * head_dim, head / group * head_dim);
                let score = |s: usize| {
                    (0..head_dim).map(|i| q[t][of_q + i] * k[s][of_kv + i]).sum::<f64>()
                        / (head_dim as f64).sqrt()
                };
                let weights: Vec<f64> = (first..=t).map(|s| score(s).exp()).collect();
                let total: f64 = weights.iter().sum();
                for i in 0..head_dim {
                    row[of_q + i] =
                        weights.iter().zip(first..).map(|(weight, s)| weight * v[s][of_kv + i]).sum::<f64>()
                            / total;
                }
            }
        }
        self.apply(&out, place, Tensor::AttentionOutput)
    }

    /// Rotary positions as Hugging Face pairs them: element `i` with element `i + head / 2`.
    fn rotate(&self, x: &Matrix) -> Matrix {
        if self.config.family == Family::Gpt2 {
            return x.clone();
        }
        let head_dim = self.config.head_dim;
        let mut turned = x.clone();
        for (position, row) in turned.iter_mut().enumerate() {
            for head in row.chunks_mut(head_dim) {
                for i in 0..head_dim / 2 {
                    let (frequency, scale) = self.frequency(i);
                    let angle = position as f64 * frequency;
                    let (a, b) = (head[i], head[i + head_dim / 2]);
                    head[i] = scale * (a * angle.cos() - b * angle.sin());
                    head[i + head_dim / 2] = scale * (b * angle.cos() + a * angle.sin());
                }
            }
        }
        turned
    }

    /// How far pair `i` turns with a position, and by what it grows.
    fn frequency(&self, i: usize) -> (f64, f64) {
        let (head_dim, theta) = (self.config.head_dim as f64, f64::from(self.config.rope_theta));
        let plain = theta.powf(-2.0 * i as f64 / head_dim);
        match self.config.rope_scaling {
            None => (plain, 1.0),
            Some(RopeScaling::Linear { factor }) => (plain / factor, 1.0),
            Some(RopeScaling::Llama3 {
                factor,
                low_freq_factor: low,
                high_freq_factor: high,
                original_max_position_embeddings: original,
            }) => {
                let length = std::f64::consts::TAU / plain;
                let (original, smooth) = (original as f64, (original as f64 / length - low) / (high - low));
                if length < original / high {
                    (plain, 1.0)
                } else if length > original / low {
                    (plain / factor, 1.0)
                } else {
                    ((1.0 - smooth) * plain / factor + smooth * plain, 1.0)
                }
            }
            Some(RopeScaling::Yarn {
                factor,
                original_max_position_embeddings: original,
                beta_fast,
                beta_slow,
                attention_factor,
                truncate,
            }) => {
                let pair = |turns: f64| {
                    head_dim * (original as f64 / turns / std::f64::consts::TAU).ln() / theta.ln() / 2.0
                };
                let (mut first, mut last) = (pair(beta_fast), pair(beta_slow));
                if truncate {
                    (first, last) = (first.floor(), last.ceil());
                }
                let (first, last) = (first.max(0.0), last.min(head_dim - 1.0));
                let ramp = ((i as f64 - first) / (last - first)).clamp(0.0, 1.0);
                (plain / factor * ramp + plain * (1.0 - ramp), attention_factor)
            }
        }
    }

    /// Heads of `x`, each normed, in a family that has a weight for that.
    fn norm_heads(&self, mut x: Matrix, place: Place, norm: Tensor) -> Matrix {
        if self.tensors.contains_key(&(place, norm)) {
            for row in &mut x {
                let heads: Matrix = row.chunks(self.config.head_dim).map(<[f64]>::to_vec).collect();
                *row = self.norm(&heads, place, norm).concat();
            }
        }
        x
    }

    fn norm(&self, x: &Matrix, place: Place, tensor: Tensor) -> Matrix {
        let weight = self.tensor(place, tensor);
        if let Some(bias) = self.bias(place, tensor) {
            return x.iter().map(|row| self.layer_norm(row, weight, bias)).collect();
        }
        x.iter()
            .map(|row| {
                let mean_square = row.iter().map(|x| x * x).sum::<f64>() / row.len() as f64;
                let scale = 1.0 / (mean_square + f64::from(self.config.rms_norm_eps)).sqrt();
                row.iter().zip(weight).map(|(x, w)| x * scale * w).collect()
            })
            .collect()
    }

    fn layer_norm(&self, row: &[f64], weight: &[f64], bias: &[f64]) -> Vec<f64> {
        let mean = row.iter().sum::<f64>() / row.len() as f64;
        let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / row.len() as f64;
        let deviation = (variance + f64::from(self.config.rms_norm_eps)).sqrt();
        row.iter().zip(weight).zip(bias).map(|((x, w), b)| (x - mean) / deviation * w + b).collect()
    }

    fn apply(&self, x: &Matrix, place: Place, tensor: Tensor) -> Matrix {
        let rows: Vec<&[f64]> = self.tensor(place, tensor).chunks(x[0].len()).collect();
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum();
        let mut y: Matrix = x.iter().map(|x| rows.iter().map(|row| dot(x, row)).collect()).collect();
        if let Some(bias) = self.bias(place, tensor) {
            y.iter_mut().for_each(|row| row.iter_mut().zip(bias).for_each(|(y, bias)| *y += bias));
        }
        y
    }

    /// The bias that goes with a weight, in the family that has it.
    fn bias(&self, place: Place, weight: Tensor) -> Option<&[f64]> {
        let bias = match weight {
            Tensor::AttentionNorm => Tensor::AttentionNormBias,
            Tensor::Query => Tensor::QueryBias,
            Tensor::Key => Tensor::KeyBias,
            Tensor::Value => Tensor::ValueBias,
            Tensor::AttentionOutput => Tensor::AttentionOutputBias,
            Tensor::FeedForwardNorm => Tensor::FeedForwardNormBias,
            Tensor::Up => Tensor::UpBias,
            Tensor::Down => Tensor::DownBias,
            Tensor::FinalNorm => Tensor::FinalNormBias,
            _ => return None,
        };
        self.tensors.get(&(place, bias)).map(Vec::as_slice)
    }

    fn tensor(&self, place: Place, tensor: Tensor) -> &[f64] {
        &self.tensors[&(place, tensor)]
    }
}

fn gelu(x: f64) -> f64 {
    0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
}

fn add(x: &mut Matrix, y: &Matrix) {
    for (x, y) in x.iter_mut().zip(y) {
        x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
    }
}
