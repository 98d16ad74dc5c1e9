//! Tests of `scheduler`.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

fn limits(kv_blocks: usize) -> Limits {
    Limits { kv_blocks, block_tokens: 4, batch_max: 4, waiting_max: 8, step_tokens_max: 8 }
}

/// What a test knows of a sequence: tokens that it has, and how many it wants.
type Wanted = BTreeMap<SequenceId, (usize, usize)>;

/// Computes a step as an engine would, and checks what must hold at every step.
fn run(scheduler: &mut Scheduler, wanted: &mut Wanted, held: &BTreeSet<SequenceId>) -> Step {
    let step = scheduler.step(|id| held.contains(&id));
    let limits = scheduler.limits();
    let tokens: usize = step.chunks.iter().map(|chunk| chunk.tokens).sum();
    assert!(tokens <= limits.step_tokens_max);
    assert!(step.chunks.len() <= limits.batch_max);
    assert!(scheduler.running() <= limits.batch_max);
    let distinct: BTreeSet<_> = step.chunks.iter().map(|chunk| chunk.id).collect();
    assert_eq!(distinct.len(), step.chunks.len(), "a sequence is planned once");
    assert!(distinct.is_disjoint(held));
    assert!(step.preempted.iter().all(|id| !distinct.contains(id)));
    let needed: usize = scheduler.sequences.values().map(|s| s.cached.div_ceil(limits.block_tokens)).sum();
    assert!(needed <= scheduler.blocks_used());
    let owned: usize = scheduler.sequences.values().map(|s| s.blocks).sum();
    assert_eq!(owned, scheduler.blocks_used(), "blocks neither leak nor appear");
    for &chunk in &step.chunks {
        let owned = scheduler.sequences[&chunk.id].blocks * limits.block_tokens;
        assert!(chunk.start + chunk.tokens <= owned, "KV is never over-committed");
        let (known, tokens_max) = wanted[&chunk.id];
        assert_eq!(chunk.samples, chunk.start + chunk.tokens == known);
        let sampled = chunk.samples && known < tokens_max;
        scheduler.computed(chunk, sampled);
        if chunk.samples {
            if known + 1 >= tokens_max {
                scheduler.remove(chunk.id);
                wanted.remove(&chunk.id);
            } else {
                wanted.insert(chunk.id, (known + 1, tokens_max));
            }
        }
    }
    step
}

#[test]
fn decodes_beside_a_long_prompt() {
    let mut scheduler = Scheduler::new(limits(64));
    let mut wanted = Wanted::new();
    let first = scheduler.submit(3, 20).unwrap();
    wanted.insert(first, (3, 20));
    run(&mut scheduler, &mut wanted, &BTreeSet::new());
    let second = scheduler.submit(30, 40).unwrap();
    wanted.insert(second, (30, 40));
    let step = run(&mut scheduler, &mut wanted, &BTreeSet::new());
    let decode = Chunk { id: first, start: 3, tokens: 1, samples: true };
    let prefill = Chunk { id: second, start: 0, tokens: 7, samples: false };
    assert_eq!(step.chunks, vec![decode, prefill]);
}

#[test]
fn preempts_the_youngest_and_takes_it_back() {
    let mut scheduler = Scheduler::new(limits(4));
    let mut wanted = Wanted::new();
    for _ in 0..2 {
        let id = scheduler.submit(4, 16).unwrap();
        wanted.insert(id, (4, 16));
    }
    let mut preempted = Vec::new();
    let mut finished_first = None;
    while !wanted.is_empty() {
        preempted.extend(run(&mut scheduler, &mut wanted, &BTreeSet::new()).preempted);
        if wanted.len() == 1 {
            finished_first.get_or_insert_with(|| wanted.keys().copied().collect::<Vec<_>>());
        }
    }
    assert_eq!(preempted, vec![SequenceId(1)]);
    assert_eq!(finished_first, Some(vec![SequenceId(1)]), "the older one finished first");
    assert_eq!(scheduler.blocks_used(), 0);
}

#[test]
fn an_unread_answer_gives_way_to_a_younger_request() {
    let mut scheduler = Scheduler::new(limits(4));
    let mut wanted = Wanted::new();
    let slow = scheduler.submit(8, 16).unwrap();
    wanted.insert(slow, (8, 16));
    run(&mut scheduler, &mut wanted, &BTreeSet::new());
    let young = scheduler.submit(4, 16).unwrap();
    wanted.insert(young, (4, 16));
    let held = BTreeSet::from([slow]);
    let mut preempted = Vec::new();
    while wanted.contains_key(&young) {
        preempted.extend(run(&mut scheduler, &mut wanted, &held).preempted);
    }
    assert_eq!(preempted, vec![slow]);
    while !wanted.is_empty() {
        run(&mut scheduler, &mut wanted, &BTreeSet::new());
    }
}

#[test]
fn refuses_what_never_fits_and_what_waits_too_long() {
    let mut scheduler = Scheduler::new(limits(4));
    assert_eq!(scheduler.submit(10, 17), Err(Refusal::TooLong { tokens: 17, tokens_max: 16 }));
    for _ in 0..8 {
        scheduler.submit(10, 16).unwrap();
    }
    assert_eq!(scheduler.submit(1, 2), Err(Refusal::Busy { waiting: 8 }));
}

#[test]
fn ten_thousand_cancelled_requests_leak_nothing() {
    let mut scheduler = Scheduler::new(limits(16));
    let mut wanted = Wanted::new();
    for round in 0..10_000_usize {
        let known = 1 + round % 13;
        let id = scheduler.submit(known, known + 20).unwrap();
        wanted.insert(id, (known, known + 20));
        for _ in 0..round % 3 {
            run(&mut scheduler, &mut wanted, &BTreeSet::new());
        }
        if wanted.len() > 3 {
            let (&cancelled, _) = wanted.iter().nth(round % wanted.len()).unwrap();
            let before = scheduler.blocks_used();
            let held = scheduler.sequences[&cancelled].blocks;
            scheduler.remove(cancelled);
            wanted.remove(&cancelled);
            assert_eq!(scheduler.blocks_used(), before - held, "freed at once");
        }
    }
    let left: Vec<_> = wanted.keys().copied().collect();
    left.into_iter().for_each(|id| scheduler.remove(id));
    assert_eq!((scheduler.blocks_used(), scheduler.running(), scheduler.waiting()), (0, 0, 0));
}

#[derive(Clone, Debug)]
enum Act {
    Submit { known: usize, output: usize },
    Cancel(usize),
    Hold(usize),
    Release,
    Step,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        3 => (1_usize..20, 0_usize..20).prop_map(|(known, output)| Act::Submit { known, output }),
        1 => any::<usize>().prop_map(Act::Cancel),
        1 => any::<usize>().prop_map(Act::Hold),
        1 => Just(Act::Release),
        6 => Just(Act::Step),
    ]
}

proptest! {
    #[test]
    fn everyone_accepted_finishes(acts in proptest::collection::vec(act(), 1..120), kv_blocks in 5_usize..24) {
        let mut scheduler = Scheduler::new(limits(kv_blocks));
        let (mut wanted, mut held) = (Wanted::new(), BTreeSet::new());
        for act in acts {
            match act {
                Act::Submit { known, output } => {
                    if let Ok(id) = scheduler.submit(known, known + output) {
                        wanted.insert(id, (known, known + output));
                    }
                }
                Act::Cancel(index) if !wanted.is_empty() => {
                    let (&id, _) = wanted.iter().nth(index % wanted.len()).unwrap();
                    scheduler.remove(id);
                    wanted.remove(&id);
                }
                Act::Hold(index) if !wanted.is_empty() => {
                    held.insert(*wanted.keys().nth(index % wanted.len()).unwrap());
                }
                Act::Release => held.clear(),
                Act::Step => { run(&mut scheduler, &mut wanted, &held); }
                Act::Cancel(_) | Act::Hold(_) => {}
            }
        }
        // Each step moves the oldest one on by at least a token or starts it: a bound on the work.
        for _ in 0..2_000 {
            if wanted.is_empty() {
                break;
            }
            run(&mut scheduler, &mut wanted, &BTreeSet::new());
        }
        prop_assert!(wanted.is_empty(), "{wanted:?} starved");
        prop_assert_eq!(scheduler.blocks_used(), 0);
    }
}
