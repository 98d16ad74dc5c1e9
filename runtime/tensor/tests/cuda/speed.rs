//! How fast products, attention and operations over rows are on a GPU.

use std::ops::Range;
use std::time::Instant;

use sixfold_tensor::{
    AttentionSaved, AttentionShape, Device, Dtype, Leaves, Mat, MatMut, RmsNormSaved, Segment, Start, Stream,
    VocabularyShard, visible_pairs,
};

/// Prints the speed of products of some shapes.
pub(crate) fn of_products(device: &Device) {
    let stream = device.stream();
    for dtype in [Dtype::F32, Dtype::Bf16] {
        for [m, n, k] in
            [[4096, 4096, 4096], [8192, 3072, 768], [8192, 768, 3072], [1024, 1024, 1024], [1, 4096, 4096]]
        {
            let (a, b) = (stream.filled(m * k, 0.5), stream.filled(n * k, 0.25));
            let mut c = stream.zeros(m * n);
            let a = Mat::row_major(a.view(), m, k);
            let panels = stream.pack(Mat::row_major(b.view(), n, k).transposed(), dtype);
            let leaves =
                Leaves::new((0..8).map(|leaf| vec![Range { start: leaf * k / 8, end: (leaf + 1) * k / 8 }]));
            let mut run = |repeats: usize, is_tree: bool| {
                let begin = Instant::now();
                for _ in 0..repeats {
                    let c = MatMut::row_major(c.view_mut(), m, n);
                    match is_tree {
                        false => stream.matmul_panels(a, &panels, c, Start::Zero),
                        true => stream.matmul_tree(a, &panels, &leaves, c, Start::Zero),
                    }
                }
                stream.to_host(c.slice(0..1), &mut [0.0]);
                begin.elapsed().as_secs_f64() / repeats as f64
            };
            let speed = [false, true].map(|is_tree| {
                run(2, is_tree);
                2.0 * (m * n * k) as f64 / run(20, is_tree) * 1e-12
            });
            println!(
                "{} {m}x{n}x{k}: {:.1} TFLOP/s, in eight leaves {:.1}",
                dtype.name(),
                speed[0],
                speed[1]
            );
        }
    }
}

/// Seconds of one of 20 runs of `work`, after two others.
fn seconds(stream: &Stream, mut work: impl FnMut()) -> f64 {
    let finish = || stream.to_host(stream.zeros(1).view(), &mut [0.0]);
    (0..2).for_each(|_| work());
    finish();
    let begin = Instant::now();
    (0..20).for_each(|_| work());
    finish();
    begin.elapsed().as_secs_f64() / 20.0
}

/// Prints the speed of attention over eight documents of 1024 tokens; of backward as if it had five products, not seven.
pub(crate) fn of_attention(device: &Device) {
    let stream = device.stream();
    for (q_heads, kv_heads, head_dim) in [(9, 3, 64), (16, 8, 128)] {
        let (tokens, document) = (8192, 1024);
        let starts: Vec<usize> = (0..tokens).step_by(document).collect();
        let shape = AttentionShape {
            tokens,
            q_heads,
            kv_heads,
            head_dim,
            keys: tokens,
            query_offset: 0,
            window: None,
        };
        let (width, kv_width) = (q_heads * head_dim, kv_heads * head_dim);
        let all = width + 2 * kv_width;
        let columns = [0..width, width..width + kv_width, width + kv_width..all];
        let (qkv, d_out) = (stream.filled(tokens * all, 0.5), stream.filled(tokens * width, 0.25));
        let (mut out, mut lse) = (stream.zeros(tokens * width), stream.zeros(tokens * q_heads));
        let mut d_qkv = stream.zeros(tokens * all);
        let [q, k, v] =
            columns.clone().map(|columns| Mat::row_major(qkv.view(), tokens, all).columns(columns));
        let forward = seconds(&stream, || {
            let out = MatMut::row_major(out.view_mut(), tokens, width);
            stream.attention([q, k, v], &shape, &starts, out, lse.view_mut());
        });
        let out = Mat::row_major(out.view(), tokens, width);
        let saved = AttentionSaved { q, k, v, out, lse_th: lse.view() };
        let d_out = Mat::row_major(d_out.view(), tokens, width);
        let backward = seconds(&stream, || {
            let d_qkv = MatMut::row_major(d_qkv.view_mut(), tokens, all);
            stream.attention_backward(d_out, &saved, &shape, &starts, d_qkv, columns.clone());
        });
        let product = (2 * visible_pairs(document, None) * starts.len() * q_heads * head_dim) as f64 * 1e-12;
        println!(
            "attention, {q_heads} heads of {head_dim}: {:.1} TFLOP/s forward ({:.2} ms), {:.1} backward ({:.2} ms)",
            2.0 * product / forward,
            forward * 1e3,
            5.0 * product / backward,
            backward * 1e3
        );
    }
}

/// Prints how many bytes a second some operations over rows read and write, each element once.
pub(crate) fn of_rows(device: &Device) {
    let stream = device.stream();
    let print = |name: &str, elements: usize, seconds: f64| {
        let speed = (4 * elements) as f64 / seconds * 1e-9;
        println!("{name}: {speed:.0} GB/s ({:.3} ms)", seconds * 1e3);
    };
    let (rows, width) = (8192, 768);
    let (x, w, dy) =
        (stream.filled(rows * width, 0.5), stream.filled(width, 0.5), stream.filled(rows * width, 0.5));
    let (mut out, mut rstd) = (stream.zeros(rows * width), stream.zeros(rows));
    let time =
        seconds(&stream, || stream.rms_norm(x.view(), w.view(), 1e-5, out.view_mut(), rstd.view_mut()));
    print("rms_norm", 2 * rows * width, time);
    let segments: Vec<Segment> = (0..8).map(|leaf| Segment { end: (leaf + 1) * rows / 8, leaf }).collect();
    let mut dw = stream.zeros(8 * width);
    let saved = RmsNormSaved { x: x.view(), w: w.view(), rstd: rstd.view() };
    let time = seconds(&stream, || {
        stream.rms_norm_backward(dy.view(), saved, &segments, out.view_mut(), dw.view_mut());
    });
    print("rms_norm_backward", 3 * rows * width, time);
    let time = seconds(&stream, || {
        stream.bias_gradient(dy.view(), width, &segments, dw.view_mut());
    });
    print("bias_gradient", rows * width, time);
    let time = seconds(&stream, || stream.swiglu(x.view(), width / 2, out.slice_mut(0..rows * width / 2)));
    print("swiglu", rows * width * 3 / 2, time);
    let ids: Vec<u32> = (0..rows as u32).map(|row| row * row % 30_000).collect();
    let (ids, mut d_table) = (stream.upload_indices(&ids), stream.zeros(30_000 * width));
    let time = seconds(&stream, || {
        stream.embed_backward(dy.view(), width, 0, ids.view(), Some(8), d_table.view_mut());
    });
    print("embed_backward", 3 * rows * width, time);
    let (rows, words) = (1024, 50_000);
    let shard = VocabularyShard { first_id: 0, columns: words, words };
    let (mut logits, mut maxima, mut sums) =
        (stream.filled(rows * words, 0.5), stream.zeros(rows), stream.filled(rows, 1.0));
    let time = seconds(&stream, || stream.logit_maxima(logits.view(), shard, maxima.view_mut()));
    print("logit_maxima", rows * words, time);
    let time =
        seconds(&stream, || stream.logit_exp_sums(logits.view(), shard, maxima.view(), sums.view_mut()));
    print("logit_exp_sums", rows * words, time);
    let targets = stream.upload_indices(&vec![3; rows]);
    let time = seconds(&stream, || {
        let (maxima, sums) = (maxima.view(), sums.view());
        stream.cross_entropy_gradient(logits.view_mut(), shard, targets.view(), maxima, sums, 0.5);
    });
    print("cross_entropy_gradient", 2 * rows * words, time);
}
