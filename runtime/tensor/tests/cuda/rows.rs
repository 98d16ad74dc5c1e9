//! Operations over rows, attention and the loss.

use std::num::NonZeroUsize;

use sixfold_tensor::{
    AdamW, AttentionSaved, AttentionShape, Counter, Gelu, IGNORED_TARGET, KEY_BLOCK, KvBlocks,
    LayerNormSaved, Mat, MatMut, Purpose, RmsNormSaved, Segment, Stream, VocabularyShard,
};

use crate::rig::{Random, Rig};

/// What an operation wrote.
type Outputs = Vec<Vec<f32>>;

/// Each operation over some random shapes, larger ones where the device is fast.
pub(crate) fn compare(rig: &mut Rig) {
    let (cases, size) = if rig.is_fast { (24, 4) } else { (8, 1) };
    for (name, case) in OPERATIONS {
        rig.operation(name, cases, |stream, random| case(stream, random, size));
    }
}

/// What an operation writes for random shapes up to a size.
type Operation = fn(&Stream, &mut Random, usize) -> Outputs;

const OPERATIONS: [(&str, Operation); 18] = [
    ("swiglu", swiglu),
    ("gelu", gelu),
    ("rms_norm", rms_norm),
    ("layer_norm", layer_norm),
    ("rope", rope),
    ("attention", attention),
    ("attention_wide", attention_wide),
    ("attention_backward", attention_backward),
    ("attention_backward_wide", attention_backward_wide),
    ("attention_blocks", attention_blocks),
    ("embed", embed),
    ("embed_backward", embed_backward),
    ("embed_backward_groups", embed_backward_groups),
    ("loss", loss),
    ("add_bias", add_bias),
    ("bias_gradient", bias_gradient),
    ("dropout", dropout),
    ("adamw_step", adamw_step),
];

fn swiglu(stream: &Stream, random: &mut Random, size: usize) -> Outputs {
    let (rows, columns) = (random.within(1..20 * size), random.within(1..700 * size));
    let gate_up = stream.upload(&random.numbers(2 * rows * columns, 6.0));
    let d_out = stream.upload(&random.numbers(rows * columns, 1.0));
    let (mut out, mut d_gate_up) = (stream.uninit(rows * columns), stream.uninit(2 * rows * columns));
    stream.swiglu(gate_up.view(), columns, out.view_mut());
    stream.swiglu_backward(d_out.view(), gate_up.view(), columns, d_gate_up.view_mut());
    vec![stream.to_vec(out.view()), stream.to_vec(d_gate_up.view())]
}

fn gelu(stream: &Stream, random: &mut Random, size: usize) -> Outputs {
    let len = random.within(1..5000 * size);
    let (x, d_out) = (stream.upload(&random.numbers(len, 8.0)), stream.upload(&random.numbers(len, 1.0)));
    let mut outputs = Vec::new();
    for form in [Gelu::Erf, Gelu::Tanh] {
        let (mut out, mut dx) = (stream.uninit(len), stream.uninit(len));
        stream.gelu(form, x.view(), out.view_mut());
        stream.gelu_backward(form, d_out.view(), x.view(), dx.view_mut());
        outputs.extend([stream.to_vec(out.view()), stream.to_vec(dx.view())]);
    }
    outputs
}

/// Segments that cover the rows, with leaves in any order, some more than once and some never.
fn segments(random: &mut Random, rows: usize, leaves: usize) -> Vec<Segment> {
    let mut segments = Vec::new();
    let mut end = 0;
    while end < rows {
        end = (end + random.within(1..9)).min(rows);
        segments.push(Segment { end, leaf: random.within(0..leaves) });
    }
    segments
}

fn rms_norm(stream: &Stream, random: &mut Random, size: usize) -> Outputs {
    let (rows, width, leaves) =
        (random.within(1..70 * size), random.within(1..400 * size), random.within(1..5));
    let segments = segments(random, rows, leaves);
    let mut upload = |len| stream.upload(&random.numbers(len, 1.0));
    let (x, w, dy) = (upload(rows * width), upload(width), upload(rows * width));
    let (mut out, mut rstd) = (stream.uninit(rows * width), stream.uninit(rows));
    stream.rms_norm(x.view(), w.view(), 1e-5, out.view_mut(), rstd.view_mut());
    let (mut dx, mut dw) = (stream.uninit(rows * width), upload(leaves * width));
    let saved = RmsNormSaved { x: x.view(), w: w.view(), rstd: rstd.view() };
    stream.rms_norm_backward(dy.view(), saved, &segments, dx.view_mut(), dw.view_mut());
    [&out, &rstd, &dx, &dw].map(|buffer| stream.to_vec(buffer.view())).into()
}

fn layer_norm(stream: &Stream, random: &mut Random, size: usize) -> Outputs {
    let (rows, width, leaves) =
        (random.within(1..70 * size), random.within(1..400 * size), random.within(1..5));
    let segments = segments(random, rows, leaves);
    let mut upload = |len| stream.upload(&random.numbers(len, 1.0));
    let (x, w, bias, dy) = (upload(rows * width), upload(width), upload(width), upload(rows * width));
    let (mut out, mut mean, mut rstd) =
        (stream.uninit(rows * width), stream.uninit(rows), stream.uninit(rows));
    let found = [mean.view_mut(), rstd.view_mut()];
    stream.layer_norm(x.view(), [w.view(), bias.view()], 1e-5, out.view_mut(), found);
    let (mut dx, mut dw, mut d_bias) =
        (stream.uninit(rows * width), upload(leaves * width), upload(leaves * width));
    let saved = LayerNormSaved { x: x.view(), w: w.view(), mean: mean.view(), rstd: rstd.view() };
    let d_parameters = [dw.view_mut(), d_bias.view_mut()];
    stream.layer_norm_backward(dy.view(), saved, &segments, dx.view_mut(), d_parameters);
    [&out, &mean, &rstd, &dx, &dw, &d_bias].map(|buffer| stream.to_vec(buffer.view())).into()
}

fn rope(stream: &Stream, random: &mut Random, size: usize) -> Outputs {
    let (tokens, heads, half) = (random.within(1..40 * size), random.within(1..6), random.within(1..70));
    let frequencies: Vec<f32> = (0..half).map(|pair| 1.0 / (1 + pair) as f32).collect();
    let table = stream.rope_table(&frequencies, 1.25, 300);
    let positions: Vec<u32> = (0..tokens).map(|_| random.within(0..300) as u32).collect();
    let positions = stream.upload_indices(&positions);
    // Some columns of a wider matrix.
    let (cols, extra) = (2 * half * heads, random.within(0..9));
    let mut x = stream.upload(&random.numbers(tokens * (cols + 2 * extra), 1.0));
    let mut outputs = Vec::new();
    for inverse in [false, true] {
        let mat = MatMut::row_major(x.view_mut(), tokens, cols + 2 * extra).columns(extra..extra + cols);
        stream.rope(mat, positions.view(), &table, inverse);
        outputs.push(stream.to_vec(x.view()));
    }
    outputs
}

/// Dims of attention, and where its documents begin.
fn attention_shape(
    random: &mut Random,
    size: usize,
    head_dim: usize,
    has_offset: bool,
) -> (AttentionShape, Vec<usize>) {
    let (tokens, kv_heads) = (random.within(1..180 * size), random.within(1..3));
    let query_offset = if has_offset { random.within(0..150 * size) } else { 0 };
    let window = [0, 0, 1, 7, 64, 65, 100][random.within(0..7)];
    let shape = AttentionShape {
        tokens,
        q_heads: kv_heads * random.within(1..4),
        kv_heads,
        head_dim,
        keys: query_offset + tokens,
        query_offset,
        window: NonZeroUsize::new(window),
    };
    let mut starts = vec![0];
    for _ in 0..random.within(0..4) {
        starts.push(random.within(0..shape.keys));
    }
    starts.sort_unstable();
    (shape, starts)
}

fn attention(stream: &Stream, random: &mut Random, size: usize) -> Outputs {
    let head_dim = random.within(1..80);
    attention_with(stream, random, size, head_dim)
}

fn attention_wide(stream: &Stream, random: &mut Random, size: usize) -> Outputs {
    let head_dim = random.within(100..257);
    attention_with(stream, random, size, head_dim)
}

fn attention_with(stream: &Stream, random: &mut Random, size: usize, head_dim: usize) -> Outputs {
    let (shape, starts) = attention_shape(random, size, head_dim, true);
    let AttentionShape { tokens, q_heads, kv_heads, keys, .. } = shape;
    let (width, kv_width) = (q_heads * head_dim, kv_heads * head_dim);
    let q = stream.upload(&random.numbers(tokens * width, 1.0));
    let kv = stream.upload(&random.numbers(keys * 2 * kv_width, 1.0));
    let (mut out, mut lse) = (stream.uninit(tokens * width), stream.uninit(tokens * q_heads));
    let kv = Mat::row_major(kv.view(), keys, 2 * kv_width);
    let qkv = [
        Mat::row_major(q.view(), tokens, width),
        kv.columns(0..kv_width),
        kv.columns(kv_width..2 * kv_width),
    ];
    let out_mat = MatMut::row_major(out.view_mut(), tokens, width);
    stream.attention(qkv, &shape, &starts, out_mat, lse.view_mut());
    vec![stream.to_vec(out.view()), stream.to_vec(lse.view())]
}

fn attention_backward(stream: &Stream, random: &mut Random, size: usize) -> Outputs {
    let head_dim = random.within(1..80);
    attention_backward_with(stream, random, size, head_dim)
}

fn attention_backward_wide(stream: &Stream, random: &mut Random, size: usize) -> Outputs {
    let head_dim = random.within(100..257);
    attention_backward_with(stream, random, size, head_dim)
}

fn attention_backward_with(stream: &Stream, random: &mut Random, size: usize, head_dim: usize) -> Outputs {
    let (shape, starts) = attention_shape(random, size, head_dim, false);
    let AttentionShape { tokens, q_heads, kv_heads, .. } = shape;
    let (width, kv_width) = (q_heads * head_dim, kv_heads * head_dim);
    let columns = [0..width, width..width + kv_width, width + kv_width..width + 2 * kv_width];
    let all = width + 2 * kv_width;
    let qkv = stream.upload(&random.numbers(tokens * all, 1.0));
    let d_out = stream.upload(&random.numbers(tokens * width, 1.0));
    let (mut out, mut lse) = (stream.uninit(tokens * width), stream.uninit(tokens * q_heads));
    let [q, k, v] = columns.clone().map(|columns| Mat::row_major(qkv.view(), tokens, all).columns(columns));
    let out_mat = MatMut::row_major(out.view_mut(), tokens, width);
    stream.attention([q, k, v], &shape, &starts, out_mat, lse.view_mut());
    let saved =
        AttentionSaved { q, k, v, out: Mat::row_major(out.view(), tokens, width), lse_th: lse.view() };
    let mut d_qkv = stream.uninit(tokens * all);
    let d_mat = MatMut::row_major(d_qkv.view_mut(), tokens, all);
    let d_out = Mat::row_major(d_out.view(), tokens, width);
    stream.attention_backward(d_out, &saved, &shape, &starts, d_mat, columns);
    vec![stream.to_vec(out.view()), stream.to_vec(lse.view()), stream.to_vec(d_qkv.view())]
}

fn attention_blocks(stream: &Stream, random: &mut Random, size: usize) -> Outputs {
    let head_dim = random.within(1..140);
    let (shape, _) = attention_shape(random, size, head_dim, true);
    // Every other sequence decodes one token.
    let tokens = if random.is() { 1 } else { shape.tokens };
    let shape = AttentionShape { tokens, query_offset: shape.keys - tokens, ..shape };
    let AttentionShape { q_heads, kv_heads, keys, .. } = shape;
    let (width, kv_width) = (q_heads * head_dim, kv_heads * head_dim);
    let layout = KvBlocks { layers: 2, kv_heads, head_dim };
    let mut blocks: Vec<_> =
        (0..keys.div_ceil(KEY_BLOCK)).map(|_| stream.filled(layout.block_len(), f32::NAN)).collect();
    let mut outputs = Vec::new();
    for layer in 0..2 {
        let first = random.within(0..keys);
        let mut upload = |len| stream.upload(&random.numbers(len, 1.0));
        let (q, k, v) = (upload(tokens * width), upload(keys * kv_width), upload(keys * kv_width));
        for part in [0..first, first..keys] {
            let elements = part.start * kv_width..part.end * kv_width;
            let kv = [k.slice(elements.clone()), v.slice(elements)];
            stream.write_blocks(layout, layer, part.start, kv, &mut blocks);
        }
        let (mut out, mut lse) = (stream.uninit(tokens * width), stream.uninit(tokens * q_heads));
        let out_mat = MatMut::row_major(out.view_mut(), tokens, width);
        let q = Mat::row_major(q.view(), tokens, width);
        stream.attention_blocks(q, (layout, layer), &blocks, &shape, out_mat, lse.view_mut());
        outputs.extend([stream.to_vec(out.view()), stream.to_vec(lse.view())]);
    }
    outputs.extend(blocks.iter().map(|block| stream.to_vec(block.view())));
    outputs
}

/// Rows of a table from `first_id` on, width, and ids of which some are outside.
fn embedding(random: &mut Random, size: usize) -> (usize, usize, usize, Vec<u32>) {
    let (rows, width, first_id) = (random.within(1..30), random.within(1..300 * size), random.within(0..10));
    let tokens = random.within(1..100 * size);
    let ids = (0..tokens).map(|_| random.within(0..first_id + rows + 5) as u32).collect();
    (rows, width, first_id, ids)
}

fn embed(stream: &Stream, random: &mut Random, size: usize) -> Outputs {
    let (rows, width, first_id, ids) = embedding(random, size);
    let table = stream.upload(&random.numbers(rows * width, 1.0));
    let mut out = stream.upload(&random.numbers(ids.len() * width, 1.0));
    let ids = stream.upload_indices(&ids);
    stream.embed(table.view(), width, first_id, ids.view(), out.view_mut());
    let embedded = stream.to_vec(out.view());
    stream.embed_add(table.view(), width, first_id, ids.view(), out.view_mut());
    vec![embedded, stream.to_vec(out.view())]
}

fn embed_backward(stream: &Stream, random: &mut Random, size: usize) -> Outputs {
    let (rows, width, first_id, ids) = embedding(random, size);
    let mut d_table = stream.upload(&random.numbers(rows * width, 1.0));
    let d_out = stream.upload(&random.numbers(ids.len() * width, 1.0));
    let ids = stream.upload_indices(&ids);
    stream.embed_backward(d_out.view(), width, first_id, ids.view(), None, d_table.view_mut());
    vec![stream.to_vec(d_table.view())]
}

fn embed_backward_groups(stream: &Stream, random: &mut Random, size: usize) -> Outputs {
    let (rows, width, first_id, mut ids) = embedding(random, size);
    let groups = random.within(1..ids.len() + 1);
    ids.truncate(ids.len() / groups * groups);
    let mut d_table = stream.upload(&random.numbers(rows * width, 1.0));
    let d_out = stream.upload(&random.numbers(ids.len() * width, 1.0));
    let ids = stream.upload_indices(&ids);
    stream.embed_backward(d_out.view(), width, first_id, ids.view(), Some(groups), d_table.view_mut());
    vec![stream.to_vec(d_table.view())]
}

fn loss(stream: &Stream, random: &mut Random, size: usize) -> Outputs {
    let (rows, words, first_id) =
        (random.within(1..50 * size), random.within(1..400 * size), random.within(0..20));
    let columns = words + random.within(0..20);
    let shard = VocabularyShard { first_id, columns, words };
    let targets = (0..rows).map(|_| match random.within(0..first_id + words + 10) {
        0 => IGNORED_TARGET,
        target => target as u32,
    });
    let targets = stream.upload_indices(&targets.collect::<Vec<_>>());
    let mut logits = stream.upload(&random.numbers(rows * columns, 6.0));
    let (mut maxima, mut sums, mut losses) = (stream.uninit(rows), stream.uninit(rows), stream.uninit(rows));
    let mut at_target = stream.zeros(rows);
    stream.logit_maxima(logits.view(), shard, maxima.view_mut());
    stream.logit_exp_sums(logits.view(), shard, maxima.view(), sums.view_mut());
    stream.target_logits(logits.view(), shard, targets.view(), at_target.view_mut());
    let found = (maxima.view(), sums.view(), at_target.view());
    stream.cross_entropy_losses(found.0, found.1, found.2, targets.view(), losses.view_mut());
    stream.cross_entropy_gradient(logits.view_mut(), shard, targets.view(), maxima.view(), sums.view(), 0.3);
    [&maxima, &sums, &at_target, &losses, &logits].map(|buffer| stream.to_vec(buffer.view())).into()
}

fn add_bias(stream: &Stream, random: &mut Random, size: usize) -> Outputs {
    let (rows, width) = (random.within(1..50 * size), random.within(1..400 * size));
    let mut x = stream.upload(&random.numbers(rows * width, 1.0));
    let bias = stream.upload(&random.numbers(width, 1.0));
    stream.add_bias(x.view_mut(), bias.view());
    vec![stream.to_vec(x.view())]
}

fn bias_gradient(stream: &Stream, random: &mut Random, size: usize) -> Outputs {
    let (rows, width, leaves) =
        (random.within(1..50 * size), random.within(1..400 * size), random.within(1..5));
    let segments = segments(random, rows, leaves);
    let dy = stream.upload(&random.numbers(rows * width, 1.0));
    let mut sums = stream.upload(&random.numbers(leaves * width, 1.0));
    stream.bias_gradient(dy.view(), width, &segments, sums.view_mut());
    vec![stream.to_vec(sums.view())]
}

fn dropout(stream: &Stream, random: &mut Random, size: usize) -> Outputs {
    let mut values = {
        let len = random.within(1..3000 * size);
        stream.upload(&random.numbers(len, 1.0))
    };
    let counter = Counter::new(random.within(0..1000) as u64, 3, 4, 5, Purpose::MLP_DROPOUT);
    // Also beyond what 32 bits count.
    let first = random.within(0..9) as u64 + [0, (1 << 34) - 6][random.within(0..2)];
    stream.dropout(values.view_mut(), &counter, first, [0.0, 0.1, 0.5][random.within(0..3)]);
    vec![stream.to_vec(values.view())]
}

fn adamw_step(stream: &Stream, random: &mut Random, size: usize) -> Outputs {
    let len = random.within(1..3000 * size);
    let squares: Vec<f32> = random.numbers(len, 1.0).iter().map(|value| value * value).collect();
    let mut upload = || stream.upload(&random.numbers(len, 1.0));
    let (mut param, mut m, mut v, grad) = (upload(), upload(), stream.upload(&squares), upload());
    let adam = AdamW {
        learning_rate: 0.01,
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        weight_decay: 0.1,
        step: 1 + random.within(0..1000) as u64,
        gradient_scale: 0.7,
    };
    stream.adamw_step(param.view_mut(), m.view_mut(), v.view_mut(), grad.view(), &adam);
    [&param, &m, &v].map(|buffer| stream.to_vec(buffer.view())).into()
}
