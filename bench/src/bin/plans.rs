//! The table of plans: what each comes to, to the bit, and what its ranks send and hold, beside a ring.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use sixfold_bench::report::Report;
use sixfold_tensor::Dtype;
use sixfold_train::{Measured, MeasuredRank, TrainOptions, measure};
use sixfold_wire::id::ContentHash;

/// The table of plans.
///
/// Trains a small model some steps under every plan, with a shared optimizer (ZeRO 1) and without, in f32 and bf16, all
/// ranks as threads of this process, joined by links in memory. Loss bits and weights must be the same in a column of a
/// dtype; else the command fails, after it has written the table. What a rank sends in a step is measured at its links;
/// the ring's figure is what it would have sent if each sum over n ranks had gone around a ring, 2 (n - 1) / n of the
/// numbers, and what pipeline stages hand over. Takes seconds.
#[derive(Parser)]
struct Arguments {
    /// Steps of each plan; of the first, which is not counted, the losses stand in the hash as well.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..))]
    steps: u64,
    /// Width of the residual stream.
    #[arg(long, default_value_t = 128)]
    dim: usize,
    /// Words of the vocabulary.
    #[arg(long, default_value_t = 1024)]
    vocab: usize,
    /// Print one line of JSON instead of a table.
    #[arg(long)]
    json: bool,
    /// Also write the table to this file.
    #[arg(long)]
    out: Option<PathBuf>,
}

/// A plan: its name, degrees of data, tensor and pipeline parallelism, virtual stages, and the layers of uneven stages.
type Plan = (&'static str, [usize; 3], usize, &'static [usize]);

const PLANS: [Plan; 13] = [
    ("dp1·tp1·pp1", [1, 1, 1], 1, &[]),
    ("tp2", [1, 2, 1], 1, &[]),
    ("tp4", [1, 4, 1], 1, &[]),
    ("pp2", [1, 1, 2], 1, &[]),
    ("pp4", [1, 1, 4], 1, &[]),
    ("dp2", [2, 1, 1], 1, &[]),
    ("dp4", [4, 1, 1], 1, &[]),
    ("tp2·pp2", [1, 2, 2], 1, &[]),
    ("dp2·tp2", [2, 2, 1], 1, &[]),
    ("dp2·pp2", [2, 1, 2], 1, &[]),
    ("dp2·tp2·pp2", [2, 2, 2], 1, &[]),
    ("dp2·tp2·pp2, interleaved", [2, 2, 2], 2, &[]),
    ("pp3, stages of 1, 2 and 1 layers", [1, 1, 3], 1, &[1, 2, 1]),
];

/// What a training is asked for beside its plan: a name, and the change of its options.
type Variant = (&'static str, fn(&mut TrainOptions));

const VARIANTS: [Variant; 3] = [
    ("", |_| {}),
    (", ZeRO 1", |options| options.zero_stage = 1),
    (", rows not shared", |options| options.sequence_parallel = false),
];
const DTYPES: [Dtype; 2] = [Dtype::F32, Dtype::Bf16];

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let columns =
        ["KiB sent a rank a step", "around a ring", "part of it", "buffers MiB a rank", "moments KiB a rank"];
    let words = ["dtype", "loss bits, first and last", "of all losses", "of the weights", "equal"];
    let mut report = Report::new("plans", 1, &columns).with_words(&words);
    let mut unequal = Vec::new();
    for dtype in DTYPES {
        let mut serial = None;
        for (name, degrees, virtual_stages, layers) in PLANS {
            for (variant, change) in VARIANTS {
                let mut options = options(&arguments, dtype);
                [options.data_parallel, options.tensor_parallel, options.pipeline_parallel] = degrees;
                (options.virtual_stages, options.stage_layers) = (virtual_stages, layers.to_vec());
                change(&mut options);
                if options.tensor_parallel == 1 && !options.sequence_parallel {
                    continue;
                }
                let measured = measure(&options, arguments.vocab, 0, 0, arguments.steps, |_| {})?;
                let bits = Bits::of(&measured)?;
                let equal = bits == *serial.get_or_insert_with(|| bits.clone());
                let name = format!("{name}{variant}");
                if !equal {
                    unequal.push(format!("{name}, {}", dtype.name()));
                }
                let verdict = if equal { "yes" } else { "NO" };
                let words =
                    vec![dtype.name().to_owned(), bits.ends, bits.losses, bits.weights, verdict.to_owned()];
                report.add_told(&name, words, figures(&measured.ranks, arguments.steps));
            }
        }
    }
    report.notes = vec![
        "Of each plan the rank that sends or holds most. Hashes are the first 12 digits of BLAKE3 over the bits.".to_owned(),
        "Without a second data-parallel rank there is nothing to share, so ZeRO 1 changes nothing there.".to_owned(),
    ];
    report.publish(arguments.json, arguments.out.as_deref())?;
    ensure!(unequal.is_empty(), "other bits than those of one rank: {}", unequal.join("; "));
    Ok(())
}

fn options(arguments: &Arguments, dtype: Dtype) -> TrainOptions {
    TrainOptions {
        layers: 4,
        hidden_size: arguments.dim,
        heads: 8,
        kv_heads: 4,
        context_length: 64,
        dtype,
        batch_sequences: 8,
        micro_batch_sequences: 1,
        zero_stage: 0,
        dropout: 0.1,
        ..TrainOptions::default()
    }
}

/// What must be the same under every plan.
#[derive(Clone, PartialEq)]
struct Bits {
    ends: String,
    losses: String,
    weights: String,
}

impl Bits {
    /// Of a run, whose ranks must agree.
    fn of(measured: &Measured) -> Result<Self> {
        let losses = |rank: &MeasuredRank| rank.losses.iter().map(|loss| loss.to_bits()).collect::<Vec<_>>();
        let first = measured.ranks.first().map(losses).context("no rank")?;
        ensure!(measured.ranks.iter().all(|rank| losses(rank) == first), "ranks disagree about the loss");
        let bytes: Vec<u8> = first.iter().flat_map(|bits| bits.to_le_bytes()).collect();
        let short = |hash: ContentHash| hash.to_string().chars().take(12).collect();
        let ends =
            [first.first(), first.last()].map(|bits| format!("{:08x}", bits.copied().unwrap_or_default()));
        Ok(Self {
            ends: ends.join(" "),
            losses: short(ContentHash::of(&bytes)),
            weights: short(measured.weights_blake3),
        })
    }
}

fn figures(ranks: &[MeasuredRank], steps: u64) -> Vec<Option<f64>> {
    let most = |of: fn(&MeasuredRank) -> u64| ranks.iter().map(of).max().unwrap_or(0) as f64;
    let sent = most(|rank| rank.bytes_sent) / steps as f64 / 1024.0;
    let ring = most(|rank| rank.ring_bytes) / steps as f64 / 1024.0;
    vec![
        Some(sent),
        Some(ring),
        (ring > 0.0).then_some(sent / ring),
        Some(most(|rank| rank.buffer_bytes_max as u64) / f64::from(1 << 20)),
        Some(most(|rank| rank.moment_bytes) / 1024.0),
    ]
}
