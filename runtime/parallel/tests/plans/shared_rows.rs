//! Tensor-parallel ranks that share the rows between products (sequence parallelism).

use sixfold_model::{Dtype, ModelConfig, Recompute};
use sixfold_parallel::{Execution, TrainingJob};

use super::gang::{Account, Run};
use super::{GROUPS, config, gpt2, job, qwen3};

/// Micro-batches of a step, and numbers of the activations of each.
const MICRO_BATCHES: usize = 2 * GROUPS;
const NUMBERS: usize = 2 * 10 * 16;
const STEPS: usize = 3;

fn shared(recompute: Recompute) -> Execution {
    Execution { recompute, sequence_parallel: true, ..Execution::default() }
}

/// Sequences that blocks cut unevenly, and those with fewer tokens than there are blocks, so that some ranks have no rows.
#[test]
fn sequences_of_any_length_are_shared_with_the_bits_of_the_serial_run() {
    let bf16 = ModelConfig { dtype: Dtype::Bf16, ..config() };
    for (config, logical) in [(config(), 4), (gpt2(), 4), (gpt2(), 8), (bf16, 8), (qwen3(), 4)] {
        let job = job(config, logical);
        for length in [1, 2, 3, 5, 7, 13] {
            let of = |plan| Run { length, steps: 0..2, ..Run::new(&job, plan) };
            let (serial, _) = of("dp1").go();
            for plan in ["tp2", "tp4", "tp2.pp2", "dp2.tp2", "tp8"] {
                if plan == "tp8" && logical < 8 {
                    continue;
                }
                for recompute in [Recompute::None, Recompute::Selective] {
                    let (outcome, _) = Run { execution: shared(recompute), ..of(plan) }.go();
                    assert!(outcome == serial, "{plan}, {logical} blocks of {length} tokens, {recompute:?}");
                }
            }
        }
    }
}

#[test]
fn ranks_may_begin_and_end_to_share_rows_at_any_step() {
    let job = job(gpt2(), 4);
    let whole = Run { steps: 0..3, ..Run::new(&job, "dp1") };
    let not_shared = Execution { sequence_parallel: false, ..Execution::default() };
    let (begun, _) = Run { plan: "tp2", steps: 0..1, execution: not_shared, ..whole }.go();
    let (moved, _) = Run { plan: "tp2", steps: 1..2, from: Some(&begun), ..whole }.go();
    let (ended, _) =
        Run { plan: "tp4", steps: 2..3, from: Some(&moved), execution: not_shared, ..whole }.go();
    assert!(ended.units == whole.go().0.units);
}

/// What each rank sends in a step.
fn sent(job: &TrainingJob, plan: &str, execution: Execution) -> (Vec<usize>, Vec<Account>) {
    let (_, accounts) = Run { execution, ..Run::new(job, plan) }.go();
    (accounts.iter().map(|account| account.bytes_sent as usize / STEPS).collect(), accounts)
}

/// A reduce-scatter and an all-gather send what an all-reduce does. What is new are the gradients of norms, once a step;
/// what is gone is the other ranks' rows on their way to the next pipeline stage.
#[test]
fn sharing_rows_sends_no_more_than_all_reduces_do() {
    let job = job(config(), 4);
    for (plan, stages) in [("tp2", 1), ("dp2.tp2", 1), ("tp2.pp2", 2)] {
        let not_shared = Execution { sequence_parallel: false, ..Execution::default() };
        let (all_reduces, accounts) = sent(&job, plan, not_shared);
        let (scattered, _) = sent(&job, plan, shared(Recompute::None));
        let (gathered_again, _) = sent(&job, plan, shared(Recompute::Selective));
        for (rank, account) in accounts.iter().enumerate() {
            let norms = account.units.iter().filter(|unit| unit.tensor.is_whole()).count();
            let rows = MICRO_BATCHES / if plan.contains("dp2") { 2 } else { 1 } * NUMBERS / 2;
            let number = size_of::<f32>();
            let expected = all_reduces[rank] + norms * 16 * number - (stages - 1) * rows * number;
            assert_eq!(scattered[rank], expected, "{plan}, rank {rank}");
            // Norms that are not kept are computed and gathered again, one for each branch.
            let branches = norms - usize::from(norms % 2 == 1);
            assert_eq!(gathered_again[rank], expected + branches * rows * number, "{plan}, rank {rank}");
        }
    }
}
