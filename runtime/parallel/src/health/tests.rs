//! What ranks tell of themselves survives its way, and names the rank and the place where a number went
//! wrong.

use std::time::Duration;

use sixfold_model::{HostUnits, Tensor, UnitBuffer};
use sixfold_tensor::Device;
use sixfold_transport::link::{LinkError, TensorLink};

use sixfold_topology::ParallelPlan;

use super::*;
use crate::job::{Execution, StepBatch};
use crate::trainer::Trainer;
use crate::verify::gang::{Links, connect, run_gang};
use crate::verify::small::{batch, config, job};

const GROUPS: usize = 4;

fn sites() -> Vec<Site> {
    let parts = (0..3).flat_map(|layer| [Part::Attention(layer), Part::FeedForward(layer)]);
    let parts: Vec<Part> = [Part::Embedding].into_iter().chain(parts).chain([Part::Head]).collect();
    let of_pass = |backward| {
        let parts: Vec<Part> = if backward { parts.iter().rev().copied().collect() } else { parts.clone() };
        parts.into_iter().map(move |part| Site { first_sample: 0, backward, part })
    };
    [false, true].into_iter().flat_map(of_pass).collect()
}

#[test]
fn every_place_survives_and_the_earliest_is_named() {
    let units = units_of(&job(config()).geometry);
    let mut origins: Vec<Origin> = sites().into_iter().map(Origin::Pass).collect();
    let later = sites().into_iter().map(|site| Origin::Pass(Site { first_sample: 1 << 20, ..site }));
    origins.extend(later);
    origins.extend(units.iter().map(|unit| Origin::Gradient(*unit)));
    for pair in origins.windows(2) {
        let time = RankTime { compute_ms: 3.5, gflop: 0.25, bubble: 0.125, peak_gflops: 50.0 };
        let told = [None, Some(pair[1]), Some(pair[0]), Some(pair[1])]
            .map(|origin| encode(time, origin.is_some(), origin, &units));
        let health = decode(told.as_flattened(), &units);
        assert_eq!((health.times, health.flags), (vec![time; 4], 3));
        assert_eq!(health.not_finite, Some(NotFinite { rank: Rank(2), origin: pair[0] }));
    }
    assert_eq!(decode(&encode(RankTime::default(), false, None, &units), &units).not_finite, None);
}

/// The health of a step on every rank, each of which is prepared by `prepare`.
fn step_of(
    plan: &str,
    links: Vec<Links>,
    prepare: impl Fn(Rank, &mut Trainer, &mut StepBatch) + Sync,
) -> Vec<StepHealth> {
    let (job, plan): (_, ParallelPlan) = (job(config()), plan.parse().unwrap());
    let ranks = run_gang(&plan, links, |rank, links| {
        let links = RankLinks::new(&plan, rank, links).unwrap();
        let mut trainer = Trainer::new(&job, &plan, rank, links, Device::cpu().stream()).unwrap();
        let mut input = batch(&job, GROUPS, 2, 0, plan.groups(rank, GROUPS));
        prepare(rank, &mut trainer, &mut input);
        trainer.step(0, input).unwrap();
        Ok(trainer)
    });
    ranks.unwrap().iter().map(|trainer| trainer.health().clone()).collect()
}

fn change(trainer: &mut Trainer, with: impl FnOnce(&mut UnitBuffer)) {
    let [mut parameters, first, second] = trainer.state().map(HostUnits::into_owned);
    with(&mut parameters);
    trainer.restore([&parameters, &first, &second]);
}

fn not_finite_with(plan: &str, wrong: Rank, unit: UnitId, value: f32) -> NotFinite {
    let healths = step_of(plan, connect(&plan.parse().unwrap()), |rank, trainer, _| {
        if rank == wrong {
            change(trainer, |parameters| parameters.unit_mut(unit)[1] = value);
        }
    });
    assert!(healths.iter().all(|health| health.not_finite == healths[0].not_finite), "ranks disagree");
    healths[0].not_finite.unwrap()
}

#[test]
fn all_ranks_name_the_rank_and_the_layer_of_the_first_number_that_is_not_finite() {
    let pass = |part, first_sample| Origin::Pass(Site { first_sample, backward: false, part });
    for (plan, rank, layer, shard, part, first_sample) in [
        ("tp1", 0, 1, 2, Part::FeedForward(1), 0),
        ("tp2", 1, 1, 2, Part::FeedForward(1), 0),
        ("tp4", 2, 3, 2, Part::FeedForward(3), 0),
        // Pipeline stages, tensor partners and replicas: of a replica, its first micro-batch.
        ("pp2", 1, 2, 0, Part::FeedForward(2), 0),
        ("dp2.tp2.pp2", 7, 3, 3, Part::FeedForward(3), 8),
    ] {
        let unit = UnitId::of_layer(layer, Tensor::Down, shard);
        let found = not_finite_with(plan, Rank(rank), unit, f32::NAN);
        assert_eq!(found, NotFinite { rank: Rank(rank), origin: pass(part, first_sample) }, "{plan}");
    }
    // Ranks that share rows get those that went wrong elsewhere, and do not take them for their own.
    for (plan, rank) in [("tp2", 1), ("tp4", 2), ("dp2.tp2", 3)] {
        let norm = UnitId::of_layer(1, Tensor::FeedForwardNorm, 0);
        let first_sample = if plan == "dp2.tp2" { 8 } else { 0 };
        let found = not_finite_with(plan, Rank(rank), norm, f32::NAN);
        let origin = pass(Part::FeedForward(1), first_sample);
        assert_eq!(found, NotFinite { rank: Rank(rank), origin }, "{plan}");
    }
    let found = not_finite_with("dp2.tp2", Rank(1), UnitId::of_layer(2, Tensor::Value, 3), f32::INFINITY);
    assert_eq!(found, NotFinite { rank: Rank(1), origin: pass(Part::Attention(2), 0) });
    assert_eq!(
        found.origin.to_string(),
        "the forward pass of model.layers.2.self_attn, micro-batch from sequence 0"
    );
}

/// The final norm's weight scales every gradient behind it; an embedding of tiny numbers, which the first norm
/// scales up, has the largest of all.
fn with_large_gradients(plan: &str, from: Rank, weight: f32, sequence_parallel: bool) -> NotFinite {
    let healths = step_of(plan, connect(&plan.parse().unwrap()), |rank, trainer, _| {
        trainer.set_execution(Execution { sequence_parallel, ..Execution::default() });
        change(trainer, |parameters| {
            let units: Vec<UnitId> = parameters.iter().map(|(unit, _)| unit).collect();
            for unit in units.into_iter().filter(|unit| unit.tensor == Tensor::Embedding) {
                parameters.unit_mut(unit).iter_mut().for_each(|value| *value *= 1e-6);
            }
            if rank >= from {
                parameters.unit_mut(UnitId::FINAL_NORM).fill(weight);
            }
        });
    });
    healths[0].not_finite.unwrap()
}

#[test]
fn a_gradient_that_overflows_is_named_by_the_replica_s_rank_and_the_tensor() {
    // Gradients of the second replica, whose ranks are 2 and 3, leave the range of numbers; its activations do not.
    let found = with_large_gradients("dp2.tp2", Rank(2), 8e37, false);
    assert_eq!(found, NotFinite { rank: Rank(3), origin: Origin::Gradient(UnitId::embedding(2)) });
    let said = found.origin.to_string();
    assert_eq!(said, "the gradient of model.embed_tokens.weight, logical shard 2");
    // Ranks that share rows exchange those of the embedding's gradient before they sum them, and see it then.
    let found = with_large_gradients("dp2.tp2", Rank(2), 8e37, true);
    let said = found.origin.to_string();
    assert_eq!(found.rank, Rank(2));
    assert_eq!(said, "the backward pass of model.embed_tokens, micro-batch from sequence 10");
}

#[test]
fn squares_that_overflow_are_named_by_their_tensor() {
    for sequence_parallel in [false, true] {
        let found = with_large_gradients("tp2", Rank(0), 1e30, sequence_parallel);
        assert_eq!(found, NotFinite { rank: Rank(0), origin: Origin::Gradient(UnitId::embedding(0)) });
    }
}

#[test]
fn a_step_without_trouble_names_nobody_and_times_everybody() {
    for plan in ["tp1", "dp2.tp2.pp2"] {
        let healths = step_of(plan, connect(&plan.parse().unwrap()), |_, _, _| {});
        let plan: ParallelPlan = plan.parse().unwrap();
        for health in &healths {
            assert_eq!((health, health.not_finite), (&healths[0], None));
            assert_eq!(health.times.len(), plan.world_size());
            assert!(health.times.iter().all(|time| time.compute_ms > 0.0 && time.gflop > 0.0), "{health:?}");
        }
    }
}

/// A link of a rank that is slow itself: it does not wait for its peer.
struct SlowLink {
    inner: Box<dyn TensorLink>,
    delay: Duration,
}

impl TensorLink for SlowLink {
    fn send(&mut self, message: &[u8]) -> Result<(), LinkError> {
        std::thread::sleep(self.delay);
        self.inner.send(message)
    }

    fn recv(&mut self, message: &mut [u8]) -> Result<(), LinkError> {
        self.inner.recv(message)
    }

    fn bytes_sent(&self) -> u64 {
        self.inner.bytes_sent()
    }

    fn waited(&self) -> Duration {
        self.inner.waited()
    }

    fn kind(&self) -> &'static str {
        self.inner.kind()
    }
}

#[test]
fn a_slow_rank_is_told_from_those_that_wait_for_it() {
    let mut links = connect(&"tp2.pp2".parse().unwrap());
    let slow = std::mem::take(&mut links[2]);
    let slowed = |(peer, inner)| {
        let link = SlowLink { inner, delay: Duration::from_millis(2) };
        (peer, Box::new(link) as Box<dyn TensorLink>)
    };
    links[2] = slow.into_iter().map(slowed).collect();
    let healths = step_of("tp2.pp2", links, |_, _, _| {});
    let times: Vec<f32> = healths[0].times.iter().map(|time| time.compute_ms).collect();
    let others = [times[0], times[1], times[3]].into_iter().fold(0.0, f32::max);
    assert!(times[2] > 100.0 && times[2] > 2.0 * others, "{times:?}");
}
