//! Gangs whose tensor-parallel ranks share the rows between products.

use sixfold_model::{Dtype, Family, Recompute};

use super::gang::{Gang, Outcome};
use super::options;
use crate::options::TrainOptions;

fn bytes_sent(outcome: &Outcome) -> Vec<u64> {
    outcome.ranks.iter().map(|rank| rank["bytes_sent"].as_u64().unwrap()).collect()
}

#[test]
fn gangs_that_share_rows_give_the_bits_of_the_serial_run() {
    type Choose = fn(&mut TrainOptions);
    let choices: [(&str, Choose); 5] = [
        ("llama", |_| {}),
        ("gpt2", |o| (o.family, o.recompute) = (Family::Gpt2, Recompute::Selective)),
        ("qwen3", |o| (o.family, o.kv_heads) = (Family::Qwen3, 2)),
        ("bf16", |o| (o.dtype, o.recompute) = (Dtype::Bf16, Recompute::Full)),
        ("short", |o| (o.sequence_length, o.tie_embeddings) = (3, true)),
    ];
    for (name, choose) in choices {
        let with = |plan, virtual_stages, sequence_parallel| {
            let mut options = TrainOptions { layers: 4, ..options(plan) };
            choose(&mut options);
            Gang::new(TrainOptions { virtual_stages, sequence_parallel, ..options }).run().unwrap()
        };
        let serial = with("tp1", 1, true);
        for (plan, virtual_stages) in [("tp2", 1), ("tp4", 1), ("dp2.tp2", 1), ("tp2.pp2", 2)] {
            let (each, shared) = (with(plan, virtual_stages, false), with(plan, virtual_stages, true));
            assert_eq!(each.hashes(), serial.hashes(), "{name}, {plan}");
            assert_eq!(shared.hashes(), serial.hashes(), "{name}, {plan}, shared");
            assert_ne!(bytes_sent(&each), bytes_sent(&shared), "{name}, {plan}: nothing was shared");
        }
    }
}

#[test]
fn checkpoints_and_states_in_memory_go_on_with_shared_rows_and_without() {
    let with = |plan, sequence_parallel| TrainOptions { sequence_parallel, ..options(plan) };
    let expected = Gang::new(with("tp1", false)).run().unwrap();
    for (before, after) in
        [(("tp2", false), ("tp2", true)), (("tp4", true), ("dp2", true)), (("tp2.pp2", true), ("tp2", false))]
    {
        let gang = Gang::new(with(before.0, before.1));
        gang.run().unwrap();
        let after = with(after.0, after.1);
        let resumed = gang.again(after.clone()).resumed_at(4).run().unwrap();
        assert_eq!(resumed.hashes(), expected.hashes(), "{before:?}");
        assert!(resumed.log.iter().any(|line| line.contains("going on from step 4")), "{:?}", resumed.log);
        let next = gang.next_attempt(after).run().unwrap();
        assert_eq!(next.hashes(), expected.hashes(), "{before:?}, in memory");
    }
}
