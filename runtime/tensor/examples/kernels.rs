//! Prints the speed of the kernels on this machine: `kernels [threads] [products|attention|element-wise]`,
//! by default with 1 thread and all of them.
//!
//! Each line is the best of several runs. `SIXFOLD_SIMD` chooses the instructions.

use std::time::{Duration, Instant};

use sixfold_tensor::cpu::{
    AttentionGradients, AttentionSaved, Leaves, Mat, MatMut, Panels, RowsMut, adamw_step, attention,
    attention_backward, gelu, gelu_backward, layer_norm, logit_exp_sums, matmul_panels, matmul_tree,
    rms_norm, round_to_bf16, swiglu, widen_bf16,
};
use sixfold_tensor::{
    AdamW, AttentionShape, Counter, Dtype, Gelu, Purpose, Start, VocabularyShard, keep_freed_memory,
    set_threads, simd_level,
};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let count = std::env::args().nth(1).map_or(Ok(1), |argument| argument.parse())?;
    set_threads(count)?;
    keep_freed_memory();
    println!("{} instructions, {count} threads", simd_level().name());
    let part = std::env::args().nth(2);
    let wanted = |name| part.as_deref().is_none_or(|part| part == name);
    if wanted("products") {
        products();
    }
    if wanted("attention") {
        attentions();
    }
    if wanted("element-wise") {
        element_wise();
    }
    Ok(())
}

fn products() {
    for (m, n, k) in
        [(512, 512, 512), (2048, 1024, 384), (2048, 8192, 384), (1024, 2048, 2048), (384, 1024, 2048)]
    {
        for dtype in [Dtype::F32, Dtype::Bf16] {
            product(m, n, k, dtype);
        }
    }
    for (m, n, k, leaves) in [(1024, 384, 2048, 8), (2048, 384, 2048, 4)] {
        for dtype in [Dtype::F32, Dtype::Bf16] {
            tree(m, n, k, leaves, dtype);
        }
    }
    for m in [1, 4, 12, 48] {
        for dtype in [Dtype::F32, Dtype::Bf16] {
            rows(m, 8192, 2048, dtype);
        }
    }
}

fn random(sample: u64, len: usize) -> Vec<f32> {
    let mut values = vec![0.0; len];
    Counter::new(1, 0, sample, 0, Purpose::INITIALISATION).fill_uniform(0, &mut values);
    values
}

/// The shortest time of `run`, over at least 5 runs and .3 s.
fn best(mut run: impl FnMut()) -> Duration {
    let begin = Instant::now();
    let mut shortest = Duration::MAX;
    let mut runs = 0;
    while runs < 5 || begin.elapsed() < Duration::from_millis(300) {
        let start = Instant::now();
        run();
        shortest = shortest.min(start.elapsed());
        runs += 1;
    }
    shortest
}

fn giga(count: usize, time: Duration) -> f64 {
    count as f64 / time.as_secs_f64() / 1e9
}

fn product(m: usize, n: usize, k: usize, dtype: Dtype) {
    let (a, b) = (random(1, m * k), random(2, k * n));
    let (a, weight) = (Mat::row_major(&a, m, k), Mat::row_major(&b, n, k).transposed());
    let mut c = vec![0.0; m * n];
    let mut panels = Panels::pack(weight, dtype);
    let packed = best(|| matmul_panels(a, &panels, &mut MatMut::row_major(&mut c, m, n), Start::Zero));
    let pack = best(|| panels.pack_from(weight, dtype));
    let flops = 2 * m * n * k;
    println!(
        "product m {m} n {n} k {k} {}: packed {:.0} GFLOP/s, packing first {:.0}; packing a weight {:.2} Gelement/s",
        dtype.name(),
        giga(flops, packed),
        giga(flops, packed + pack),
        giga(n * k, pack),
    );
}

/// The gradient of a weight: the left operand by columns, the sum over rows in a tree.
fn tree(m: usize, n: usize, k: usize, leaves: usize, dtype: Dtype) {
    let (a, b) = (random(1, m * k), random(2, k * n));
    let (a, b) = (Mat::row_major(&a, k, m).transposed(), Mat::row_major(&b, k, n));
    let cut = |leaf: usize| leaf * k / leaves..(leaf + 1) * k / leaves;
    let leaves = Leaves::new((0..leaves).map(|leaf| Vec::from([cut(leaf)])));
    let (mut c, mut panels) = (vec![0.0; m * n], Panels::pack(b, dtype));
    let packed = best(|| matmul_tree(a, &panels, &leaves, &mut MatMut::row_major(&mut c, m, n), Start::Zero));
    let pack = best(|| panels.pack_from(b, dtype));
    println!(
        "gradient m {m} n {n} k {k} in {} leaves {}: packed {:.0} GFLOP/s, packing first {:.0}",
        leaves.count(),
        dtype.name(),
        giga(2 * m * n * k, packed),
        giga(2 * m * n * k, packed + pack),
    );
}

fn rows(m: usize, n: usize, k: usize, dtype: Dtype) {
    let (a, b) = (random(1, m * k), random(2, k * n));
    let panels = Panels::pack(Mat::row_major(&b, k, n), dtype);
    let mut c = vec![0.0; m * n];
    let time = best(|| {
        matmul_panels(Mat::row_major(&a, m, k), &panels, &mut MatMut::row_major(&mut c, m, n), Start::Zero)
    });
    println!(
        "{m} rows by n {n} k {k} {}: {:.1} GB/s of weights, {:.0} GFLOP/s",
        dtype.name(),
        giga(panels.bytes(), time),
        giga(2 * m * n * k, time)
    );
}

fn attentions() {
    for (tokens, documents) in [(2048, 8), (2048, 1)] {
        let shape = AttentionShape {
            tokens,
            q_heads: 6,
            kv_heads: 6,
            head_dim: 64,
            keys: tokens,
            query_offset: 0,
            window: None,
        };
        let starts: Vec<usize> = (0..documents).map(|index| index * tokens / documents).collect();
        let len = tokens * shape.q_heads * shape.head_dim;
        let (q, k, v, d_out) = (random(1, len), random(2, len), random(3, len), random(4, len));
        let (mut out, mut lse) = (vec![0.0; len], vec![0.0; tokens * shape.q_heads]);
        let width = shape.q_heads * shape.head_dim;
        let [q, k, v, d_out] = [&q, &k, &v, &d_out].map(|data| Mat::row_major(data, tokens, width));
        let forward = best(|| {
            attention(q, k, v, &shape, &starts, MatMut::row_major(&mut out, tokens, width), &mut lse);
        });
        let (mut d_q, mut d_k, mut d_v) = (vec![0.0; len], vec![0.0; len], vec![0.0; len]);
        let saved = AttentionSaved { q, k, v, out: Mat { data: &out, ..q }, lse_th: &lse };
        let backward = best(|| {
            let [d_q, d_k, d_v] = [&mut d_q, &mut d_k, &mut d_v].map(|data| RowsMut::row_major(data, width));
            let gradients = AttentionGradients { d_q, d_k, d_v };
            attention_backward(d_out, &saved, &shape, &starts, gradients);
        });
        // Causal: half of the square, 2 products forward, 5 backward.
        let square = tokens * tokens / documents * shape.q_heads * shape.head_dim;
        println!(
            "attention of {documents} documents in {tokens} tokens, 6 heads of 64: forward {:.2} ms, {:.0} GFLOP/s; backward {:.2} ms, {:.0} GFLOP/s",
            forward.as_secs_f64() * 1e3,
            giga(2 * square, forward),
            backward.as_secs_f64() * 1e3,
            giga(5 * square, backward),
        );
    }
}

fn element_wise() {
    let len = 2048 * 1024;
    let (gate_up, mut out) = (random(1, 2 * len), vec![0.0; len]);
    println!("swiglu {:.2} Gelement/s", giga(len, best(|| swiglu(&gate_up, 1024, &mut out))));
    let mut rstd = vec![0.0; 2048];
    println!(
        "rms_norm {:.2} Gelement/s",
        giga(len, best(|| rms_norm(&gate_up[..len], &gate_up[len..][..1024], 1e-5, &mut out, &mut rstd)))
    );
    let (mut mean, bias) = (vec![0.0; 2048], vec![0.5; 1024]);
    let norm = best(|| {
        layer_norm(&gate_up[..len], &gate_up[len..][..1024], &bias, 1e-5, &mut out, &mut mean, &mut rstd);
    });
    println!("layer_norm {:.2} Gelement/s", giga(len, norm));
    for form in [Gelu::Erf, Gelu::Tanh] {
        let forward = giga(len, best(|| gelu(form, &gate_up[..len], &mut out)));
        let backward = giga(len, best(|| gelu_backward(form, &gate_up[..len], &gate_up[len..], &mut out)));
        println!("gelu {form:?} {forward:.2} Gelement/s, backward {backward:.2}");
    }
    let mut narrow = vec![half::bf16::ZERO; len];
    let to = giga(len, best(|| round_to_bf16(&gate_up[..len], &mut narrow)));
    let from = giga(len, best(|| widen_bf16(&narrow, &mut out)));
    println!("to bf16 {to:.2} Gelement/s, from it {from:.2}");
    let shard = VocabularyShard { first_id: 0, columns: 8192, words: 8192 };
    let mut sums = vec![0.0; len / 8192];
    let maxima = vec![1.0; len / 8192];
    println!(
        "exp sums {:.2} Gelement/s",
        giga(len, best(|| logit_exp_sums(&gate_up[..len], shard, &maxima, &mut sums)))
    );
    let (mut param, mut m, mut v) = (random(3, len), random(4, len), random(5, len));
    let adam = AdamW {
        learning_rate: 1e-3,
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        weight_decay: 0.1,
        step: 10,
        gradient_scale: 1.0,
    };
    println!(
        "adamw {:.2} Gelement/s",
        giga(len, best(|| adamw_step(&mut param, &mut m, &mut v, &gate_up[..len], &adam)))
    );
    println!(
        "random words {:.2} G/s",
        giga(len, best(|| Counter::new(1, 0, 0, 0, Purpose::ORDER).fill_uniform(0, &mut out)))
    );
}
