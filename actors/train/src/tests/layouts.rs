//! Gangs whose pipeline stages take turns with their layers, or have as many as the options say.

use sixfold_cluster::task::Metric;

use super::gang::Gang;
use super::options;
use crate::options::TrainOptions;

/// A plan, its virtual stages, and its stages' layers.
type Layout<'a> = (&'a str, usize, &'a [usize]);

fn laid_out((plan, virtual_stages, stage_layers): Layout<'_>) -> TrainOptions {
    TrainOptions { layers: 4, virtual_stages, stage_layers: stage_layers.to_vec(), ..options(plan) }
}

#[test]
fn every_layout_gives_the_bits_of_the_serial_run_and_tells_its_bubble() {
    let serial = Gang::new(laid_out(("tp1", 1, &[]))).run().unwrap();
    assert!(!serial.progress[0].contains_key("bubble"), "a stage alone waits for none");
    for (layout, said) in [
        (("pp2", 2, &[][..]), "dp1·tp1·pp2 (1+1+1+1 layers, 2 virtual stages a stage)"),
        (("tp2.pp2", 2, &[]), "virtual stages"),
        (("dp2.tp2.pp2", 2, &[]), "virtual stages"),
        (("pp3", 1, &[1, 3, 0]), "dp1·tp1·pp3 (1+3+0 layers)"),
        // As under a plan that was chosen where nodes are gone, with the layout that was wanted for four virtual stages.
        (("pp3", 2, &[1, 1, 1, 1]), "dp1·tp1·pp3 ("),
    ] {
        let outcome = Gang::new(laid_out(layout)).run().unwrap();
        assert_eq!(outcome.hashes(), serial.hashes(), "{layout:?}");
        assert!(outcome.log.iter().any(|line| line.contains(said)), "{said}: {:?}", outcome.log);
        for name in ["bubble", "scheduled_bubble"] {
            let Metric::Number(bubble) = outcome.progress[5][name] else { panic!("no {name}") };
            assert!(bubble > 0.0 && bubble < 1.0, "{layout:?}, {name}: {bubble}");
        }
        for rank in &outcome.ranks {
            let bubble = rank["bubble"].as_f64().unwrap();
            assert!((0.0..1.0).contains(&bubble), "{rank}");
        }
    }
}

#[test]
fn any_layout_goes_on_from_any_checkpoint_and_from_states_in_memory() {
    let expected = Gang::new(laid_out(("tp1", 1, &[]))).run().unwrap();
    let layouts: [Layout<'_>; 4] =
        [("pp2", 2, &[]), ("tp2", 1, &[]), ("pp3", 1, &[1, 2, 1]), ("tp2.pp2", 2, &[])];
    for (before, after) in layouts.iter().zip(layouts.iter().cycle().skip(1)) {
        let gang = Gang::new(laid_out(*before));
        gang.run().unwrap();
        let resumed = gang.again(laid_out(*after)).resumed_at(4).run().unwrap();
        assert_eq!(resumed.hashes(), expected.hashes(), "{before:?} to {after:?}");
        assert!(resumed.log.iter().any(|line| line.contains("going on from step 4")), "{:?}", resumed.log);
        let next = gang.next_attempt(laid_out(*after)).run().unwrap();
        assert_eq!(next.hashes(), expected.hashes(), "{before:?} to {after:?}, in memory");
        assert!(next.log.iter().any(|line| line.contains("going on from step")), "{:?}", next.log);
    }
}
