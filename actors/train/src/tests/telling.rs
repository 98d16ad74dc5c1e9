//! What ranks tell of their steps: times that add up, curves that outlive attempts.

use sixfold_cluster::task::{ACCOUNT_FIGURE, HISTORY_FIGURE, Metric, Metrics};

use super::gang::{Gang, Outcome};
use super::{STEPS, options};
use crate::options::TrainOptions;
use crate::{History, RankAccount};

fn history(figures: &Metrics) -> History {
    match &figures[HISTORY_FIGURE] {
        Metric::Text(json) => serde_json::from_str(json).unwrap(),
        other => panic!("the history is {other:?}"),
    }
}

fn accounts(outcome: &Outcome) -> Vec<RankAccount> {
    outcome.ranks.iter().map(|rank| serde_json::from_value(rank.clone()).unwrap()).collect()
}

#[test]
fn the_times_of_every_rank_add_up_and_name_what_its_plan_exchanges() {
    let outcome = Gang::new(options("dp2.tp2.pp2")).run().unwrap();
    for account in accounts(&outcome) {
        let RankAccount { time, .. } = &account;
        let parts: f64 = time.parts().iter().map(|(_, seconds)| seconds).sum();
        assert!((parts - time.seconds).abs() <= 1e-9 * time.seconds, "{time:?}");
        assert!(time.parts().iter().all(|(_, seconds)| *seconds >= 0.0), "{time:?}");
        assert!(time.compute_seconds > 0.0 && time.optimizer_seconds > 0.0, "{time:?}");
        for name in [
            "tensor_all_reduce",
            "tensor_reduce_scatter",
            "tensor_all_gather",
            "pipeline_receive",
            "pipeline_send",
            "gradient_reduce_scatter",
        ] {
            let collective = time.collectives[name];
            assert!(collective.calls >= STEPS, "{name}: {collective:?}");
            assert!(collective.waited_seconds <= collective.seconds, "{name}: {collective:?}");
        }
        let sent: u64 = time.collectives.values().map(|collective| collective.bytes_sent).sum();
        // Before the first step ranks agree on one, which takes a few bytes.
        assert!(
            sent <= account.bytes_sent && sent + 256 > account.bytes_sent,
            "{sent} of {}",
            account.bytes_sent
        );
        assert_eq!(account.steps, STEPS);
        assert!((0.0..=1.0).contains(&account.bubble), "{}", account.bubble);
        assert!(account.scheduled_bubble > 0.0 && account.scheduled_bubble < 1.0);
        assert!(account.hfu > 0.0 && account.hfu.is_finite() && account.starved_steps < STEPS);
        assert_eq!(account.peak_gflops, 0.5);
        assert!(account.resident_bytes_max >= 1 << 20 && account.device_bytes_max >= account.device_bytes);
        assert!(account.device_bytes >= account.parameter_bytes);
    }
}

#[test]
fn the_first_rank_tells_of_every_step_and_others_of_themselves() {
    let outcome = Gang::new(options("tp2")).run().unwrap();
    assert_eq!(outcome.progress.len(), STEPS as usize);
    for (step, figures) in (1..).zip(&outcome.progress) {
        assert_eq!(figures["step"], Metric::Count(step));
        for name in ["loss", "gradient_norm", "tokens_per_second", "mfu", "eta_seconds"] {
            let Metric::Number(number) = figures[name] else { panic!("{name} is no number") };
            assert!(number.is_finite() && number >= 0.0, "{name}: {number}");
        }
    }
    let first = &outcome.progress[0];
    assert!(first.contains_key(ACCOUNT_FIGURE) && first.contains_key(HISTORY_FIGURE));
    let last = outcome.progress.last().unwrap();
    assert_eq!(last["eta_seconds"], Metric::Number(0.0));
    assert_eq!(history(last), history(&outcome.metrics));
}

#[test]
fn the_curve_has_the_losses_of_every_step_to_the_bit() {
    let gang = Gang::new(options("tp2"));
    let outcome = gang.run().unwrap();
    let file = gang.store.read(outcome.model, "training.json").unwrap();
    let training: serde_json::Value = serde_json::from_slice(&file).unwrap();
    let losses: Vec<f32> = serde_json::from_value(training["losses"].clone()).unwrap();
    let history = history(&outcome.metrics);
    assert!(history.is_of(STEPS));
    assert!(
        history.points.iter().map(|point| point.loss.to_bits()).eq(losses.iter().map(|loss| loss.to_bits()))
    );
    for point in &history.points {
        assert!(point.seconds > 0.0 && point.mfu > 0.0 && point.gradient_norm > 0.0, "{point:?}");
        assert!(point.resident_bytes > 1e6 && point.learning_rate > 0.0, "{point:?}");
    }
}

/// From memory under another plan, and from a checkpoint.
#[test]
fn the_whole_curve_is_there_after_a_fault() {
    let gang = Gang::new(TrainOptions { checkpoint_every_steps: 2, ..options("tp2.pp2") });
    let first = history(&gang.run().unwrap().metrics);
    gang.memory.forget(|commit| commit.step > 4);
    gang.memory.set_furthest(4);
    let of_memory = gang.next_attempt(options("dp2")).run().unwrap();
    let newest = gang.memory.went_on()[0].0 as usize;
    let of_checkpoint = gang.again(options("pp2")).resumed_at(4).run().unwrap();
    for (outcome, kept) in [(of_memory, newest), (of_checkpoint, 4)] {
        let second = history(&outcome.metrics);
        assert!(second.is_of(STEPS));
        assert_eq!(second.points[..kept], first.points[..kept], "measured by the first attempt");
        assert_ne!(second.points[kept..], first.points[kept..], "measured by the second one");
        let losses = |history: &History| history.points.iter().map(|point| point.loss).collect::<Vec<_>>();
        assert_eq!(losses(&second), losses(&first));
    }
}
