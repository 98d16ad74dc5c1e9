//! `sixfold bench`: what the engine does on this machine, beside which a peer's figures can be set.

use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use indicatif::ProgressBar;
use serde_json::{Value, json};
use sixfold_telemetry::usage;
use sixfold_tensor::cpu::{
    AttentionGradients, AttentionSaved, Mat, MatMut, Panels, RowsMut, attention, attention_backward,
    matmul_panels,
};
use sixfold_tensor::{
    AttentionShape, Counter, Device, Dtype, Purpose, Start, keep_freed_memory, pin_threads, set_threads,
    simd_level,
};
use sixfold_train::{BaseFormat, Course, Family, Recompute, TrainOptions};

use super::print_json;
use crate::cli::bench::{
    AttentionBenchArgs, BaseFormatArg, BenchArgs, BenchCommand, DeviceArg, DtypeArg, FamilyArg,
    GemmBenchArgs, RecomputeArg, TrainBenchArgs,
};

/// A kernel is repeated for so long ...
const REPEAT_FOR: Duration = Duration::from_millis(300);
/// ... and at least so often.
const REPEATS_MIN: usize = 4;

/// `sixfold bench train|gemm|attention`.
pub(crate) fn run(command: BenchCommand) -> Result<()> {
    keep_freed_memory();
    let (BenchCommand::Train(TrainBenchArgs { bench, .. })
    | BenchCommand::Gemm(GemmBenchArgs { bench, .. })
    | BenchCommand::Attention(AttentionBenchArgs { bench, .. })) = &command;
    if bench.pin_threads {
        pin_threads();
    }
    match command {
        BenchCommand::Train(args) => train(&args),
        BenchCommand::Gemm(args) => gemm(&args),
        BenchCommand::Attention(args) => attend(&args),
    }
}

fn train(args: &TrainBenchArgs) -> Result<()> {
    let defaults = TrainOptions::default();
    let recompute = match args.recompute {
        RecomputeArg::None => Recompute::None,
        RecomputeArg::Selective => Recompute::Selective,
        RecomputeArg::Full => Recompute::Full,
    };
    let family = match args.family {
        FamilyArg::Llama => Family::Llama,
        FamilyArg::Qwen2 => Family::Qwen2,
        FamilyArg::Qwen3 => Family::Qwen3,
        FamilyArg::Gpt2 => Family::Gpt2,
    };
    let options = TrainOptions {
        family,
        sliding_window: args.window,
        recompute,
        pass_tokens: if args.pass_tokens == 0 { defaults.pass_tokens } else { args.pass_tokens },
        layers: args.layers,
        hidden_size: args.dim,
        heads: args.heads,
        kv_heads: if args.kv_heads == 0 { args.heads } else { args.kv_heads },
        feed_forward_size: args.hidden,
        context_length: args.seq,
        tie_embeddings: args.tied,
        dtype: dtype(&args.bench),
        tensor_parallel: args.tensor,
        sequence_parallel: args.sequence_parallel,
        pipeline_parallel: args.pipeline,
        virtual_stages: args.virtual_stages,
        stage_layers: args.stage_layers.clone(),
        tensor_shards: args.shards,
        batch_sequences: args.batch,
        micro_batch_sequences: args.micro_batch,
        learning_rate: 3e-4,
        min_learning_rate: 3e-5,
        threads: args.bench.threads,
        ..defaults
    };
    let options = match args.lora_rank {
        0 => options,
        lora_rank => {
            let base = Some(options.geometry(args.vocab, None)?.config);
            let base_format = match args.base_format {
                BaseFormatArg::F32 => BaseFormat::F32,
                BaseFormatArg::Bf16 => BaseFormat::Bf16,
                BaseFormatArg::Int8 => BaseFormat::Int8,
                BaseFormatArg::Nf4 => BaseFormat::Nf4,
            };
            TrainOptions { base, lora_rank, base_format, ..options }
        }
    };
    let course = Course::new(&options, args.vocab, args.groups, (args.warmup, args.steps))?;
    let course = match args.device {
        DeviceArg::Cpu => course,
        DeviceArg::Cuda => course.on(Device::cuda(0)?),
    };
    let bar =
        if args.bench.json { ProgressBar::hidden() } else { ProgressBar::new(1 + args.warmup + args.steps) };
    let mut cpu = Vec::new();
    let measured = course.measure(|step| {
        bar.set_position(step);
        cpu.push(usage::cpu_seconds());
    })?;
    bar.finish_and_clear();
    let cpu = cpu.into_iter().collect::<Result<Vec<f64>, _>>()?;
    let cpu = cpu[args.warmup as usize..].windows(2).map(|two| two[1] - two[0]).collect();
    let cpu = Times::of(cpu).context("nothing was timed")?;
    let times = measured.steps.iter().map(Duration::as_secs_f64).collect();
    let times = Times::of(times).context("nothing was timed")?;
    let tokens = options.batch_tokens() as f64;
    let mut result = json!({
        "peer": concat!("sixfold ", env!("CARGO_PKG_VERSION")),
        "mode": dtype(&args.bench).name(),
        "simd": simd_level().name(),
        "threads": args.bench.threads,
        "device": match args.device {
            DeviceArg::Cpu => "cpu",
            DeviceArg::Cuda => "cuda",
        },
        "params": measured.parameters,
        "tok_s": (tokens / times.median).round(),
        "best_tok_s": (tokens / times.least).round(),
        "step_ms": tenths(times.median * 1e3),
        "min_ms": tenths(times.least * 1e3),
        "gflops": tenths(measured.flop / times.median / 1e9),
        "cpu_s_per_step": (cpu.median * 100.0).round() / 100.0,
        "loss0": (f64::from(measured.first_loss) * 1e3).round() / 1e3,
        "first_s": tenths(measured.first.as_secs_f64()),
        "buffers_mib": measured.ranks[0].buffer_bytes_max >> 20,
        "rss_mib": usage::peak_resident_bytes("self")? >> 20,
    });
    if args.lora_rank > 0 {
        result["base_mib"] = json!(measured.ranks[0].base_bytes >> 20);
    }
    if args.pipeline > 1 {
        let hundredths =
            |parts: &[f64]| parts.iter().map(|part| (part * 100.0).round() / 100.0).collect::<Vec<_>>();
        result["bubble"] = json!(hundredths(&measured.bubble));
        result["scheduled_bubble"] = json!(hundredths(&measured.scheduled_bubble));
    }
    show(&args.bench, &[result]);
    Ok(())
}

fn gemm(args: &GemmBenchArgs) -> Result<()> {
    set_threads(args.bench.threads)?;
    let shapes = args.shapes.iter().map(|shape| parse_shape(shape)).collect::<Result<Vec<_>>>()?;
    let results: Vec<Value> = shapes
        .into_iter()
        .map(|[m, n, k]| {
            let (a, b) = (random(0, m * k), random(1, n * k));
            let panels = Panels::pack(Mat::row_major(&b, n, k).transposed(), dtype(&args.bench));
            let mut c = vec![0.0; m * n];
            let times = repeat(|| {
                matmul_panels(
                    Mat::row_major(&a, m, k),
                    &panels,
                    &mut MatMut::row_major(&mut c, m, n),
                    Start::Zero,
                );
            });
            let flop = 2.0 * (m * n * k) as f64;
            json!({"m": m, "n": n, "k": k, "mode": dtype(&args.bench).name(), "threads": args.bench.threads,
                "gflops": tenths(flop / times.median / 1e9), "best_gflops": tenths(flop / times.least / 1e9)})
        })
        .collect();
    show(&args.bench, &results);
    Ok(())
}

fn attend(args: &AttentionBenchArgs) -> Result<()> {
    if dtype(&args.bench) != Dtype::F32 {
        bail!("attention is computed in f32, whatever products with weights are: leave --dtype out");
    }
    set_threads(args.bench.threads)?;
    let kv_heads = if args.kv_heads == 0 { args.heads } else { args.kv_heads };
    if kv_heads == 0 || args.head_dim == 0 || !args.heads.is_multiple_of(kv_heads) {
        bail!(
            "{} query heads, {kv_heads} KV heads of {}: heads must be a multiple of KV heads",
            args.heads,
            args.head_dim
        );
    }
    let results: Vec<Value> = args
        .lengths
        .iter()
        .map(|&tokens| {
            let shape = AttentionShape {
                tokens,
                q_heads: args.heads,
                kv_heads,
                head_dim: args.head_dim,
                keys: tokens,
                query_offset: 0,
                window: NonZeroUsize::new(args.window),
            };
            let width = tokens * args.head_dim;
            let (q, d_out) = (random(0, width * args.heads), random(1, width * args.heads));
            let (k, v) = (random(2, width * kv_heads), random(3, width * kv_heads));
            let (mut out, mut lse) = (vec![0.0; q.len()], vec![0.0; tokens * args.heads]);
            let (mut dq, mut dk, mut dv) = (vec![0.0; q.len()], vec![0.0; k.len()], vec![0.0; v.len()]);
            let (q_width, kv_width) = (args.heads * args.head_dim, kv_heads * args.head_dim);
            let [q, d_out] = [&q, &d_out].map(|data| Mat::row_major(data, tokens, q_width));
            let [k, v] = [&k, &v].map(|data| Mat::row_major(data, tokens, kv_width));
            let forward = repeat(|| {
                let out = MatMut::row_major(&mut out, tokens, q_width);
                attention(q, k, v, &shape, &[0], out, &mut lse);
            });
            let saved = AttentionSaved { q, k, v, out: Mat { data: &out, ..q }, lse_th: &lse };
            let backward = repeat(|| {
                let gradients = AttentionGradients {
                    d_q: RowsMut::row_major(&mut dq, q_width),
                    d_k: RowsMut::row_major(&mut dk, kv_width),
                    d_v: RowsMut::row_major(&mut dv, kv_width),
                };
                attention_backward(d_out, &saved, &shape, &[0], gradients);
            });
            // Two products over the pairs that see each other; backward has five.
            let flop = 4.0 * visible_pairs(tokens, args.window) * (args.heads * args.head_dim) as f64;
            json!({"tokens": tokens, "window": args.window, "heads": args.heads, "kv_heads": kv_heads, "head_dim": args.head_dim,
                "mode": Dtype::F32.name(), "threads": args.bench.threads,
                "forward_ms": tenths(forward.median * 1e3), "forward_gflops": tenths(flop / forward.median / 1e9),
                "backward_ms": tenths(backward.median * 1e3),
                "backward_gflops": tenths(2.5 * flop / backward.median / 1e9)})
        })
        .collect();
    show(&args.bench, &results);
    Ok(())
}

/// Pairs of a query and a key that it sees, with a window of so many keys, or of the whole document: half of all pairs, as
/// peers count them.
fn visible_pairs(tokens: usize, window: usize) -> f64 {
    let (tokens, window) = (tokens as f64, window as f64);
    if window == 0.0 || window >= tokens { tokens * tokens / 2.0 } else { window * (tokens - window / 2.0) }
}

fn dtype(args: &BenchArgs) -> Dtype {
    match args.dtype {
        DtypeArg::F32 => Dtype::F32,
        DtypeArg::Bf16 => Dtype::Bf16,
    }
}

/// One JSON line a result, or a line of names and figures.
fn show(args: &BenchArgs, results: &[Value]) {
    for result in results {
        if args.json {
            print_json(result);
            continue;
        }
        let figures = result.as_object().into_iter().flatten();
        let figures: Vec<String> = figures.map(|(name, value)| format!("{name} {value}")).collect();
        println!("{}", figures.join("  ").replace('"', ""));
    }
}

fn parse_shape(text: &str) -> Result<[usize; 3]> {
    let sizes: Option<Vec<usize>> = text.split(',').map(|size| size.parse().ok()).collect();
    match sizes.as_deref() {
        Some(&[m, n, k]) if m.min(n).min(k) > 0 => Ok([m, n, k]),
        _ => bail!("`{text}` is no shape: write M,N,K, three sizes of at least 1"),
    }
}

/// Seconds of repeated runs.
struct Times {
    median: f64,
    least: f64,
}

impl Times {
    fn of(mut seconds: Vec<f64>) -> Option<Self> {
        seconds.sort_by(f64::total_cmp);
        Some(Self { median: *seconds.get(seconds.len() / 2)?, least: *seconds.first()? })
    }
}

/// Runs a kernel again and again; the first run, which takes the memory, does not count.
fn repeat(mut kernel: impl FnMut()) -> Times {
    kernel();
    let since = Instant::now();
    let mut times = Vec::new();
    while since.elapsed() < REPEAT_FOR || times.len() < REPEATS_MIN {
        let since = Instant::now();
        kernel();
        times.push(since.elapsed().as_secs_f64());
    }
    Times::of(times).unwrap_or(Times { median: f64::NAN, least: f64::NAN })
}

fn random(stream: u32, len: usize) -> Vec<f32> {
    let mut values = vec![0.0; len];
    Counter::new(1, 0, 0, stream, Purpose::INITIALISATION).fill_normal(0, &mut values);
    values
}

fn tenths(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_are_three_sizes() {
        assert_eq!(parse_shape("3,5,7").unwrap(), [3, 5, 7]);
        for wrong in ["", "3", "3,5", "3,5,7,9", "3,x,7", "0,5,7"] {
            assert!(parse_shape(wrong).unwrap_err().to_string().contains("M,N,K"), "{wrong}");
        }
    }

    #[test]
    fn a_window_leaves_fewer_pairs_and_one_as_long_as_the_document_all() {
        assert_eq!((visible_pairs(8, 0), visible_pairs(8, 8), visible_pairs(8, 2)), (32.0, 32.0, 14.0));
    }

    #[test]
    fn the_median_and_the_least_of_times() {
        let times = Times::of(vec![3.0, 1.0, 2.0]).unwrap();
        assert_eq!((times.median, times.least), (2.0, 1.0));
        assert!(Times::of(Vec::new()).is_none());
    }
}
