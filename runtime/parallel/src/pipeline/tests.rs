//! What a stage keeps from a forward pass to the backward pass.

use sixfold_model::{MicroBatch, ModelConfig, Recompute};
use sixfold_tensor::Device;
use sixfold_topology::ParallelPlan;

use super::*;
use crate::slice::balanced_layout;
use crate::verify::VerifyError;
use crate::verify::gang::{connect, run_gang};
use crate::verify::small::{config, job};

const SEQUENCES: usize = 2;
const LENGTH: usize = 512;

/// Sizes for which the pool hands out what it is asked for.
fn wide() -> ModelConfig {
    ModelConfig {
        hidden_size: 64,
        intermediate_size: 128,
        head_dim: 8,
        num_hidden_layers: 3,
        max_position_embeddings: LENGTH,
        ..config()
    }
}

/// Bytes that each of two tensor-parallel ranks keeps of all layers.
fn kept(recompute: Recompute, sequence_parallel: bool) -> Vec<usize> {
    let (job, plan): (_, ParallelPlan) = (job(wide()), "tp2".parse().unwrap());
    let layout = balanced_layout(&job.geometry, &plan, 1).unwrap();
    let geometry = Arc::new(job.geometry.clone());
    let batch = MicroBatch::of_documents(vec![1; SEQUENCES * LENGTH], vec![2; SEQUENCES * LENGTH], LENGTH);
    let kept = run_gang(&plan, connect(&plan), |rank, links| {
        let (device, slice) = (Device::cpu(), RankSlice::new(&geometry, &plan, &layout, rank));
        let stream = device.stream();
        let mut links = RankLinks::new(&plan, rank, links).unwrap();
        let parameters = DeviceUnits::upload(&stream, &slice.initialize(&geometry, job.seed));
        let layers = ModelSlice { output: false, ..slice.chunks()[0].clone() };
        let weights = PackedWeights::new(&geometry, &layers, parameters.index(), None);
        let mut network = Network::new(stream.clone(), geometry.clone(), layers);
        (network.recompute, network.sequence_parallel) = (recompute, sequence_parallel);
        let before = device.memory_use().used_bytes;
        let mut around = Surroundings {
            parameters: (&parameters).into(),
            adapters: None,
            weights: &weights,
            seed: StepSeed { seed: 1, step: 0, dropout: 0.1, adapter_dropout: 0.0 },
            group: &mut links.tensor,
            work: &mut Work::default(),
        };
        let (output, tape) = network.forward(&mut around, batch.clone(), None).unwrap();
        let Output::Activations(x) = output else { panic!("a slice without the head has losses") };
        assert_eq!(x.len(), network.numbers(&batch));
        drop(x);
        let kept = device.memory_use().used_bytes - before;
        drop(tape);
        assert_eq!(device.memory_use().used_bytes, before);
        Ok::<_, VerifyError>(kept)
    });
    kept.unwrap()
}

#[test]
fn ranks_that_share_rows_keep_their_part_of_every_activation() {
    let config = wide();
    let (rows, d, f) = (SEQUENCES * LENGTH, config.hidden_size, config.intermediate_size);
    let heads = config.num_attention_heads;
    let of_heads = (2 * heads + 2 * config.num_key_value_heads) * config.head_dim;
    // Queries, keys, values, outputs and a number a head; gates and ups; their product.
    let [of_attention, inner, product] = [rows * (of_heads + heads) / 2, rows * f, rows * f / 2];
    // Two norms: their inputs, a number a row, and their outputs.
    let [inputs, of_rows, outputs] = [2 * rows * d, 2 * rows, 2 * rows * d];
    let of_layer = |recompute, share: usize| match recompute {
        Recompute::None => of_attention + inner + product + (inputs + of_rows) / share + outputs,
        Recompute::Selective => of_attention + inner + (inputs + of_rows) / share,
        Recompute::Full => rows * d / share,
    };
    for recompute in [Recompute::None, Recompute::Selective, Recompute::Full] {
        for (sequence_parallel, share) in [(false, 1), (true, 2)] {
            let expected = size_of::<f32>() * config.num_hidden_layers * of_layer(recompute, share);
            let kept = kept(recompute, sequence_parallel);
            println!("{recompute:?}, sequence parallel {sequence_parallel}: {kept:?} bytes");
            assert_eq!(kept, [expected; 2], "{recompute:?}, sequence parallel {sequence_parallel}");
        }
    }
}
