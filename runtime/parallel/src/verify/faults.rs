//! Faults planted into a gang from outside, by way of its links, its input and its state: each must be
//! caught, and a tensor named.

mod rig;

use std::ops::Range;

use rig::{Message, Planted};
use sixfold_model::{HostUnits, ModelConfig, ModelSlice, NOTHING, initialize};
use sixfold_topology::{ParallelPlan, Rank};

use super::small::{config, job};
use super::{Difference, Found, Quantity};
use crate::health::NUMBERS_OF_RANK;
use crate::partition::Partition;
use crate::slice::{RankSlice, balanced_layout};

/// One key-value head for all four logical shards: ranks hold copies.
fn one_kv_head() -> ModelConfig {
    ModelConfig { num_key_value_heads: 1, ..config() }
}

/// The head is the embedding, on both ends of a pipeline.
fn tied() -> ModelConfig {
    ModelConfig { tie_word_embeddings: true, ..config() }
}

/// Where the tensor-parallel ranks of step 1 add their parts of a layer's output.
fn is_partial_sum(message: &Message<'_>) -> bool {
    message.step == 1 && message.long == 3
}

/// As if the receiver had left out the reduction.
fn drop_theirs(message: &mut Message<'_>) -> bool {
    message.theirs.fill(NOTHING);
    true
}

/// As if the receiver had done the reduction twice.
fn add_sum_again(own: &[f32], theirs: &mut [f32]) -> bool {
    theirs.iter_mut().zip(own).for_each(|(theirs, own)| *theirs = 2.0 * *theirs + own);
    true
}

/// How the gradients of each rank of a plan lie in the message in which they are summed over the
/// data-parallel group: the message's length, and the places of the norms.
fn gradient_messages(plan: &'static str) -> Vec<(usize, Vec<Range<usize>>)> {
    let plan: ParallelPlan = plan.parse().unwrap();
    let geometry = job(config()).geometry;
    let layout = balanced_layout(&geometry, &plan, 1).unwrap();
    let of_rank = |rank| {
        let index = RankSlice::new(&geometry, &plan, &layout, rank).gradient_index(&geometry);
        let norms = index.iter().filter(|(unit, _)| unit.tensor.is_whole()).map(|(_, range)| range);
        (index.len(), norms.collect())
    };
    plan.ranks().map(of_rank).collect()
}

fn missing_reduction() -> Planted {
    Planted::messages("tp2", |message| {
        message.rank == Rank(1) && is_partial_sum(message) && drop_theirs(message)
    })
}

fn doubled_reduction() -> Planted {
    Planted::messages("tp4", |message| {
        is_partial_sum(message) && message.peer.0 == message.rank.0 ^ 1 && {
            add_sum_again(message.own, message.theirs)
        }
    })
}

fn missing_data_parallel_sum() -> Planted {
    let gradients = gradient_messages("dp2.tp2");
    Planted::messages("dp2.tp2", move |message| {
        message.theirs.len() == gradients[message.rank.index()].0 && drop_theirs(message)
    })
}

fn swapped_leaves(plan: &'static str) -> Planted {
    let position = |rank| match rank {
        Rank(1) => Rank(2),
        Rank(2) => Rank(1),
        other => other,
    };
    Planted { position, ..Planted::nothing(config(), plan) }
}

fn neighbours_shard() -> Planted {
    Planted { part: |rank| Rank(rank.0 & !1), ..Planted::nothing(config(), "tp4") }
}

/// The rank takes its neighbour's shard for its own.
fn neighbours_weights() -> Planted {
    let before = |run: &mut rig::Run<'_>, rank: Rank, step: u64| {
        if rank == Rank(1) && step == 0 {
            let job = job(config());
            let theirs = ModelSlice { shards: 0..2, ..ModelSlice::whole(&job.geometry) };
            let theirs = initialize(&job.geometry, &theirs, job.seed);
            let [mut parameters, first, second] = run.trainer.state().map(HostUnits::into_owned);
            // Of those that both hold whole shards of, as many numbers lie at the same places.
            let len = parameters.values().len().min(theirs.values().len());
            parameters.values_mut()[..len].copy_from_slice(&theirs.values()[..len]);
            run.trainer.restore([&parameters, &first, &second]);
        }
    };
    Planted {
        before: Box::new(before),
        ..Planted::nothing(ModelConfig { vocab_size: 40, ..config() }, "tp2")
    }
}

fn swapped_pipeline_stages() -> Planted {
    // Two micro-batches: with more, the two stages' schedules would wait for each other.
    Planted { groups: 2, per_group: 1, ..swapped_leaves("pp4") }
}

fn skipped_update() -> Planted {
    let before = |run: &mut rig::Run<'_>, rank: Rank, step: u64| {
        if rank != Rank(1) {
            return;
        }
        match step {
            1 => run.keep(),
            2 => run.restore(),
            _ => {}
        }
    };
    Planted { before: Box::new(before), ..Planted::nothing(config(), "tp2") }
}

fn dropped_micro_batch() -> Planted {
    Planted::inputs("dp2.pp2", |at, step, mut batch, _| {
        if at.data == 1 && step == 1 {
            batch.groups.iter_mut().for_each(|group| drop(group.pop()));
        }
        batch
    })
}

fn repeated_micro_batch() -> Planted {
    Planted::inputs("dp2", |at, step, mut batch, _| {
        if at.data == 1 && step == 1 {
            batch.groups[1][1] = batch.groups[1][0].clone();
        }
        batch
    })
}

fn wrong_data_group() -> Planted {
    Planted::inputs("dp4", |at, _, batch, all| match at.data {
        3 => all(2..3),
        _ => batch,
    })
}

fn tied_head_not_added() -> Planted {
    let config = tied();
    let table = config.vocab_size * config.hidden_size;
    let harm = move |message: &mut Message<'_>| message.theirs.len() == table && drop_theirs(message);
    Planted { harm: Box::new(harm), ..Planted::nothing(config, "pp4") }
}

fn kv_copies_not_summed() -> Planted {
    let config = one_kv_head();
    let of_one_head = config.head_dim * config.hidden_size;
    let harm = move |message: &mut Message<'_>| message.theirs.len() == of_one_head && drop_theirs(message);
    Planted { harm: Box::new(harm), ..Planted::nothing(config, "tp2") }
}

/// Flips one bit of the number that weighs most beside the one that it is added to, of those whose sum
/// does not round the bit away and that are not in `apart`.
fn flip_bit(message: &mut Message<'_>, bit: u32, apart: &[Range<usize>]) -> bool {
    let Message { own, theirs, .. } = message;
    let flipped = |at: usize| f32::from_bits(theirs[at].to_bits() ^ 1 << bit);
    let stays = |at: &usize| own[*at] + theirs[*at] != own[*at] + flipped(*at);
    let allowed = |at: &usize| own[*at] != 0.0 && !apart.iter().any(|range| range.contains(at));
    let weight = |at: usize| theirs[at].abs() / own[at].abs();
    let heaviest = (0..own.len()).filter(|at| stays(at) && allowed(at));
    let heaviest = heaviest.max_by(|a, b| weight(*a).total_cmp(&weight(*b))).unwrap();
    theirs[heaviest] = flipped(heaviest);
    true
}

fn flipped_bit_of_a_partial_sum(bit: u32) -> Planted {
    Planted::messages("tp2", move |message| {
        message.rank == Rank(1) && is_partial_sum(message) && flip_bit(message, bit, &[])
    })
}

fn flipped_bit_of_a_gradient(bit: u32) -> Planted {
    let gradients = gradient_messages("dp2");
    Planted::messages("dp2", move |message| {
        // A norm's sequence blocks are still to be added, which may round the bit away.
        let (len, norms) = &gradients[message.rank.index()];
        let is_gradient = message.theirs.len() == *len;
        message.rank == Rank(0) && message.step == 1 && is_gradient && flip_bit(message, bit, norms)
    })
}

fn norm_gradients_of_every_rank() -> Planted {
    let gradients = gradient_messages("dp2.tp2");
    Planted::messages("dp2.tp2", move |message| {
        let (len, norms) = &gradients[message.rank.index()];
        let hit = message.theirs.len() == *len;
        for range in norms.iter().filter(|_| hit) {
            add_sum_again(&message.own[range.clone()], &mut message.theirs[range.clone()]);
        }
        hit
    })
}

fn norms_in_the_gradient_norm_of_every_rank() -> Planted {
    let geometry = job(config()).geometry;
    let units = ModelSlice::whole(&geometry).units(&geometry);
    Planted::messages("tp2", move |message| {
        // The table of square sums, and what two ranks tell, is the only message as long as it.
        let hit = message.theirs.len() == units.len() + 2 * NUMBERS_OF_RANK;
        for (at, _) in units.iter().enumerate().filter(|(_, unit)| hit && unit.tensor.is_whole()) {
            add_sum_again(&message.own[at..=at], &mut message.theirs[at..=at]);
        }
        hit
    })
}

/// Where the pieces of both replicas of a rank end that share the optimizer: in the sums of gradients, and in the
/// parameters.
fn pieces(plan: &'static str) -> [Vec<usize>; 2] {
    let plan: ParallelPlan = plan.parse().unwrap();
    let geometry = job(config()).geometry;
    let layout = balanced_layout(&geometry, &plan, 1).unwrap();
    let slice = RankSlice::new(&geometry, &plan, &layout, Rank(0));
    let (parameters, sums) = (slice.parameter_index(&geometry), slice.gradient_index(&geometry));
    let partition = Partition::new(&geometry, &parameters, &sums, 2, 0);
    [partition.sums, partition.parameters]
}

/// A fault of one rank of two that share the optimizer, in messages as long as a piece.
fn in_pieces(harmed: Rank, of: fn([Vec<usize>; 2]) -> usize, harm: fn(&mut Message<'_>) -> bool) -> Planted {
    let len = of(pieces("dp2"));
    let planted = Planted::messages("dp2", move |message| {
        message.rank == harmed && message.step == 1 && message.theirs.len() == len && harm(message)
    });
    Planted { shared: true, ..planted }
}

/// The piece of the gradients that a rank updates lacks what the other replica has to add to it.
fn piece_not_summed() -> Planted {
    in_pieces(Rank(1), |[sums, _]| sums[2] - sums[1], drop_theirs)
}

/// A rank does not take over the parameters that the other replica has updated.
fn piece_not_gathered() -> Planted {
    in_pieces(
        Rank(1),
        |[_, parameters]| parameters[1],
        |message| {
            message.theirs.iter_mut().for_each(|theirs| *theirs *= 0.5);
            true
        },
    )
}

/// A rank updates its piece with the moments that it had before the last step.
fn stale_moments_of_a_piece() -> Planted {
    let before = |run: &mut rig::Run<'_>, rank: Rank, step: u64| match (rank, step) {
        (Rank(1), 1) => run.keep(),
        (Rank(1), 2) => run.restore_moments(),
        _ => {}
    };
    Planted { before: Box::new(before), shared: true, ..Planted::nothing(config(), "dp2") }
}

fn activations_of_another_micro_batch() -> Planted {
    let stale = std::sync::Mutex::new(Vec::new());
    Planted::messages("pp2", move |message| {
        let mut stale = stale.lock().unwrap();
        if message.rank != Rank(1) || message.long == 0 {
            return false;
        }
        let before = std::mem::replace(&mut *stale, message.theirs.to_vec());
        let hit = message.step == 1 && message.long == 2;
        if hit {
            message.theirs.copy_from_slice(&before);
        }
        hit
    })
}

/// The rank takes its two chunks for each other.
fn swapped_chunks() -> Planted {
    let slice = |rank: Rank, slice: &mut RankSlice| {
        if let (Rank(0), [first, second]) = (rank, &mut slice.chunks[..]) {
            std::mem::swap(&mut first.layers, &mut second.layers);
        }
    };
    Planted { chunks: 2, slice, ..Planted::nothing(config(), "pp2") }
}

/// The first stage's second chunk gets what its first chunk sent out, not what came back around.
fn activations_of_another_chunk() -> Planted {
    let harm = |message: &mut Message<'_>| {
        let hit = message.rank == Rank(0) && message.step == 1 && message.long == 1;
        if hit {
            message.theirs.copy_from_slice(message.own);
        }
        hit
    };
    Planted { chunks: 2, harm: Box::new(harm), ..Planted::nothing(config(), "pp2") }
}

/// A fault of the second of two ranks that share the rows between products.
fn in_shared_rows(harm: impl Fn(&mut Message<'_>) -> bool + Send + Sync + 'static) -> Planted {
    let planted = Planted::messages("tp2", move |message| {
        message.rank == Rank(1) && message.step == 1 && harm(message)
    });
    Planted { sequence_parallel: true, ..planted }
}

/// The first message of a step scatters the sum of the embedding, the second gathers the rows of the first norm, the third
/// scatters a layer's output.
fn rows_not_gathered() -> Planted {
    in_shared_rows(|message| message.long == 2 && drop_theirs(message))
}

/// The rank's own rows, again, in the place of those of the other rank.
fn own_rows_for_those_of_another() -> Planted {
    in_shared_rows(|message| {
        let hit = message.long == 2;
        if hit {
            message.theirs.copy_from_slice(message.own);
        }
        hit
    })
}

fn rows_not_summed() -> Planted {
    in_shared_rows(|message| message.long == 3 && drop_theirs(message))
}

/// The gradients of norms lack those sequence blocks whose rows the other rank has.
fn norm_gradients_of_own_rows() -> Planted {
    let config = config();
    let norms = (2 * config.num_hidden_layers + 1) * config.hidden_size;
    in_shared_rows(move |message| message.theirs.len() == norms && drop_theirs(message))
}

/// A fault, and what must be said of it.
struct Case {
    name: &'static str,
    planted: Planted,
    /// Whether it is planted into messages, some of which it must harm.
    in_messages: bool,
    expected: fn(&Difference) -> bool,
}

fn tensor_of(found: &Difference) -> Option<&super::TensorDifference> {
    match &found.found {
        Found::Tensor(tensor) => Some(tensor),
        _ => None,
    }
}

fn is(found: &Difference, step: u64, quantity: Quantity, name: &str) -> bool {
    found.step == Some(step)
        && tensor_of(found).is_some_and(|tensor| tensor.quantity == quantity && tensor.tensor.contains(name))
}

fn cases() -> Vec<Case> {
    use Quantity::{Gradient, InitialParameter, Parameter};
    let mut cases = Vec::new();
    let mut case = |name, planted, in_messages, expected| {
        cases.push(Case { name, planted, in_messages, expected });
    };
    case("a missing reduction", missing_reduction(), true, |found| is(found, 1, Gradient, "embed_tokens"));
    case("a doubled reduction", doubled_reduction(), true, |found| is(found, 1, Gradient, "embed_tokens"));
    case("a missing data-parallel sum", missing_data_parallel_sum(), true, |found| {
        is(found, 0, Gradient, "embed_tokens") && found.rank == Rank(0)
    });
    case("leaves swapped in the tensor group", swapped_leaves("tp4"), false, |found| {
        tensor_of(found).is_some()
    });
    case("leaves swapped in the data group", swapped_leaves("dp4"), false, |found| {
        is(found, 0, Gradient, "")
    });
    case("a neighbour's shard", neighbours_shard(), false, |found| {
        let missing = Found::Missing { tensor: "model.embed_tokens.weight".into(), shard: 1 };
        (found.rank, &found.found) == (Rank(1), &missing)
    });
    case("a neighbour's weights", neighbours_weights(), false, |found| {
        found.step.is_none() && tensor_of(found).is_some_and(|tensor| tensor.quantity == InitialParameter)
    });
    case("swapped pipeline stages", swapped_pipeline_stages(), false, |found| is(found, 0, Gradient, ""));
    case("a skipped update", skipped_update(), false, |found| is(found, 2, Gradient, ""));
    case("a dropped micro-batch", dropped_micro_batch(), false, |found| is(found, 1, Gradient, ""));
    case("a micro-batch used twice", repeated_micro_batch(), false, |found| is(found, 1, Gradient, ""));
    case("a wrong data group", wrong_data_group(), false, |found| is(found, 0, Gradient, ""));
    case("copies of a key-value head not summed", kv_copies_not_summed(), true, |found| {
        is(found, 0, Gradient, "layers.0.self_attn.k_proj")
    });
    case("a tied head's gradient not added across the pipeline", tied_head_not_added(), true, |found| {
        is(found, 0, Gradient, "embed_tokens")
    });
    case("norm gradients counted on every rank", norm_gradients_of_every_rank(), true, |found| {
        is(found, 0, Gradient, "layers.0.input_layernorm")
    });
    case(
        "norms counted by every rank in the gradient norm",
        norms_in_the_gradient_norm_of_every_rank(),
        true,
        |found| found.step == Some(0) && tensor_of(found).is_some_and(|tensor| tensor.quantity != Gradient),
    );
    case("a piece of a shared optimizer not summed", piece_not_summed(), true, |found| {
        is(found, 1, Gradient, "") && found.rank == Rank(1)
    });
    case("a piece of a shared optimizer not gathered", piece_not_gathered(), true, |found| {
        is(found, 1, Parameter, "embed_tokens") && found.rank == Rank(1)
    });
    case("stale moments of a piece of a shared optimizer", stale_moments_of_a_piece(), false, |found| {
        is(found, 2, Parameter, "")
    });
    case("activations of another micro-batch", activations_of_another_micro_batch(), true, |found| {
        is(found, 1, Gradient, "")
    });
    case("chunks of layers swapped", swapped_chunks(), false, |found| is(found, 0, Gradient, ""));
    case("activations of another chunk", activations_of_another_chunk(), true, |found| {
        is(found, 1, Gradient, "")
    });
    case("rows of another rank not gathered", rows_not_gathered(), true, |found| is(found, 1, Gradient, ""));
    case("own rows for those of another rank", own_rows_for_those_of_another(), true, |found| {
        is(found, 1, Gradient, "")
    });
    case("shared rows not summed", rows_not_summed(), true, |found| is(found, 1, Gradient, ""));
    case("norm gradients of a rank's own rows only", norm_gradients_of_own_rows(), true, |found| {
        is(found, 1, Gradient, "layers.0.input_layernorm") && found.rank == Rank(1)
    });
    for (name, bit) in [("a middle bit of a partial sum", 11), ("the highest bit of a partial sum", 22)] {
        case(name, flipped_bit_of_a_partial_sum(bit), true, |found| is(found, 1, Gradient, ""));
    }
    for (name, bit) in [("the lowest bit of a gradient", 0), ("the highest bit of a gradient", 22)] {
        case(name, flipped_bit_of_a_gradient(bit), true, |found| {
            is(found, 1, Gradient, "") && found.rank == Rank(0)
        });
    }
    cases
}

#[test]
fn every_planted_fault_is_caught_and_names_a_tensor() {
    for case in cases() {
        let (found, harmed) = case.planted.find();
        let name = case.name;
        assert_eq!(harmed > 0, case.in_messages, "{name}: {harmed} messages were harmed");
        let found = found.unwrap_or_else(|| panic!("{name} was not caught"));
        println!("{name}: {found}");
        assert!((case.expected)(&found), "{name}: {found}");
        assert!(found.to_string().contains("weight"), "{name} names no tensor: {found}");
    }
}

#[test]
fn a_gang_without_a_fault_is_the_same() {
    let plain = ["tp2", "tp4", "dp2", "dp4", "pp2", "dp2.tp2", "dp2.pp2", "pp4", "dp2.tp2.pp2"];
    let interleaved = ["pp2", "tp2.pp2", "dp2.pp2", "dp2.tp2.pp2"];
    let plans = plain.map(|plan| (plan, 1)).into_iter().chain(interleaved.map(|plan| (plan, 2)));
    for (plan, chunks) in plans {
        for config in [config(), one_kv_head(), tied()] {
            for (per_group, shared) in [(1, false), (2, false), (2, true)] {
                for sequence_parallel in [false, true] {
                    let nothing = Planted::nothing(config.clone(), plan);
                    let planted = Planted { per_group, chunks, shared, sequence_parallel, ..nothing };
                    assert_eq!(planted.find(), (None, 0), "{plan} {chunks}");
                }
            }
        }
    }
}
