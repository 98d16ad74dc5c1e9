//! Schedules over every small pipeline: what must hold is checked for each, not for a sample.

use std::collections::{HashMap, VecDeque};

use super::PipelineOp::{Backward, Forward};
use super::*;

/// Stages, chunks and micro-batches of every small pipeline.
fn pipelines() -> impl Iterator<Item = (usize, usize, usize)> {
    let shapes = (1..7).flat_map(|stages| (1..5).map(move |chunks| (stages, chunks)));
    let shapes = shapes.filter(|&(stages, chunks)| stages > 1 || chunks == 1);
    shapes.flat_map(|(stages, chunks)| (1..26).map(move |micro_batches| (stages, chunks, micro_batches)))
}

/// A forward pass takes `forward`, a backward pass `backward`, whatever the virtual stage.
fn even(forward: u64, backward: u64) -> impl Fn(Pass) -> u64 {
    move |(_, is_backward, _)| if is_backward { backward } else { forward }
}

/// The idle time of each stage until all are done.
fn idle(stages: usize, chunks: usize, micro_batches: usize, forward: u64, backward: u64) -> Vec<u64> {
    let times = timeline(stages, chunks, micro_batches, even(forward, backward)).unwrap();
    let end = times.iter().map(|times| times.end).max().unwrap();
    times.iter().map(|times| end - times.busy).collect()
}

#[test]
fn every_pass_is_done_once_and_backward_passes_of_a_chunk_ascend() {
    for (stages, chunks, micro_batches) in pipelines() {
        for stage in 0..stages {
            let ops = pipeline_schedule(stages, chunks, stage, micro_batches);
            assert_eq!(ops.len(), 2 * chunks * micro_batches);
            for chunk in 0..chunks {
                let of = |backward: bool| -> Vec<usize> {
                    let wanted =
                        |op: &&PipelineOp| op.chunk() == chunk && matches!(op, Backward { .. }) == backward;
                    ops.iter().filter(wanted).map(|op| op.micro_batch()).collect()
                };
                let all: Vec<usize> = (0..micro_batches).collect();
                assert_eq!((of(false), of(true)), (all.clone(), all), "{stages} {chunks} {micro_batches}");
            }
        }
    }
}

#[test]
fn no_stage_waits_for_one_that_waits_for_it() {
    for (stages, chunks, micro_batches) in pipelines() {
        assert!(
            timeline(stages, chunks, micro_batches, even(1, 2)).is_some(),
            "{stages} {chunks} {micro_batches}"
        );
    }
}

/// Messages between two stages are told apart by direction and kind only, so of each kind they must be asked for
/// in the order in which they were sent; how many wait at most is what a receiver has to keep.
#[test]
fn messages_of_a_kind_are_asked_for_in_the_order_in_which_they_are_sent() {
    for (stages, chunks, micro_batches) in pipelines().filter(|(stages, ..)| *stages > 1) {
        let last = stages * chunks - 1;
        let mut sent: HashMap<(usize, usize, bool), VecDeque<Pass>> = HashMap::new();
        let schedules: Vec<_> =
            (0..stages).map(|stage| pipeline_schedule(stages, chunks, stage, micro_batches)).collect();
        for (stage, ops) in schedules.iter().enumerate() {
            for op in ops {
                let (pass, _) = dependency(*op, stage, stages, last);
                let to = match (pass.0, pass.1) {
                    (at, false) if at < last => (stage + 1) % stages,
                    (at, true) if at > 0 => (stage + stages - 1) % stages,
                    _ => continue,
                };
                sent.entry((stage, to, pass.1)).or_default().push_back(pass);
            }
        }
        for (stage, ops) in schedules.iter().enumerate() {
            for op in ops {
                let (pass, needs) = dependency(*op, stage, stages, last);
                let Some(needs) = needs.filter(|needs| needs.1 == pass.1) else { continue };
                let next = sent.get_mut(&(needs.0 % stages, stage, pass.1)).and_then(VecDeque::pop_front);
                assert_eq!(next, Some(needs), "{stages} {chunks} {micro_batches}");
            }
        }
        assert!(sent.values().all(VecDeque::is_empty), "everything that is sent is asked for");
    }
}

#[test]
fn as_many_activations_are_kept_as_published() {
    for (stages, chunks, micro_batches) in pipelines() {
        for stage in 0..stages {
            let (mut kept, mut most) = (0_usize, 0);
            for op in pipeline_schedule(stages, chunks, stage, micro_batches) {
                match op {
                    Forward { .. } => kept += 1,
                    Backward { .. } => kept -= 1,
                }
                most = most.max(kept);
            }
            // Of the first stage, in layers: L (1 + (p - 1) / (p v)), Korthikanti et al. 2022, section 4.2.3.
            let published = match chunks {
                1 => stages - stage,
                _ => 2 * (stages - stage - 1) + (chunks - 1) * stages + 1,
            };
            let shape = (stages, chunks, micro_batches);
            assert!(most <= published.min(chunks * micro_batches), "{shape:?}: {most} of {published}");
            if micro_batches.is_multiple_of(stages) {
                assert_eq!(most, published.min(chunks * micro_batches), "{shape:?}");
            }
        }
    }
}

/// Narayanan et al. 2021, section 2.2: the bubble is (p - 1) / v times a micro-batch's time on a stage.
#[test]
fn the_bubble_is_the_published_one() {
    for (stages, chunks, micro_batches) in pipelines() {
        for (forward, backward) in [(1, 1), (1, 2), (2, 3)] {
            let shape = (stages, chunks, micro_batches);
            let found = idle(stages, chunks, micro_batches, forward, backward);
            let chunk = forward + backward;
            if chunks == 1 || micro_batches.is_multiple_of(stages) {
                assert_eq!(found, vec![(stages as u64 - 1) * chunk; stages], "{shape:?}");
            }
            // Whatever the number of micro-batches, taking turns costs nothing.
            let v = chunks as u64;
            let plain = idle(stages, 1, micro_batches, forward * v, backward * v);
            assert!(found.iter().zip(&plain).all(|(found, plain)| found <= plain), "{shape:?}");
        }
    }
}

#[test]
fn the_bubble_is_a_part_of_the_step() {
    let bubble = |chunks: usize, micro_batches| {
        let layout = PipelineLayout::new(4, chunks, &vec![1; 4 * chunks], 4 * chunks).unwrap();
        pipeline_bubble(&layout, &vec![1; 4 * chunks], micro_batches)
    };
    assert_eq!(bubble(1, 8), [3.0 / 11.0; 4]);
    assert_eq!(bubble(3, 8), [1.0 / 9.0; 4]);
    // An idle stage is one that has less to do, too.
    let layout = PipelineLayout::new(2, 1, &[3, 1], 4).unwrap();
    let [first, second] = pipeline_bubble(&layout, &[3, 1], 2)[..] else { panic!("two stages") };
    assert!(first < 0.3 && second > 0.6, "{first} {second}");
}

#[test]
fn the_orders_are_those_of_the_papers() {
    let forward = |chunk, micro_batch| Forward { chunk, micro_batch };
    let backward = |chunk, micro_batch| Backward { chunk, micro_batch };
    let plain = [forward(0, 0), forward(0, 1), backward(0, 0), forward(0, 2), backward(0, 1), backward(0, 2)];
    assert_eq!(pipeline_schedule(2, 1, 0, 3), plain);
    let last = [forward(0, 0), backward(0, 0), forward(0, 1), backward(0, 1)];
    assert_eq!(pipeline_schedule(2, 1, 1, 2), last);
    let interleaved = [
        forward(0, 0),
        forward(0, 1),
        forward(1, 0),
        backward(1, 0),
        forward(1, 1),
        backward(1, 1),
        backward(0, 0),
        backward(0, 1),
    ];
    assert_eq!(pipeline_schedule(2, 2, 1, 2), interleaved);
    // The last round has one place that is empty.
    let uneven = pipeline_schedule(2, 2, 1, 3);
    assert_eq!(uneven[..8].iter().filter(|op| op.micro_batch() == 2).count(), 1);
}
