//! The same bits on any plan, in real clusters: processes, links and placement as users have them.

use serde_json::Value;
use sixfold_tests::result;

/// Degrees of a plan, and the node daemons that it is run on.
const PLANS: [(usize, usize, usize, usize); 6] =
    [(1, 1, 1, 1), (1, 2, 1, 2), (1, 1, 2, 2), (2, 1, 1, 2), (1, 2, 2, 4), (2, 2, 1, 4)];

fn train((data, tensor, pipeline, nodes): (usize, usize, usize, usize), more: &[&str]) -> Value {
    let nodes = nodes.to_string();
    let text = format!("data.text={}", sixfold_tests::root().join("LICENSE-APACHE").display());
    let degrees = [
        format!("train.data_parallel={data}"),
        format!("train.tensor_parallel={tensor}"),
        format!("train.pipeline_parallel={pipeline}"),
    ];
    let mut arguments = vec!["run", "config/jobs/pretrain-tiny.toml", "--json", "--local", &nodes, "--set", &text];
    degrees.iter().for_each(|degree| arguments.extend(["--set", degree]));
    arguments.extend(more);
    let job = result(&arguments);
    println!("dp{data} tp{tensor} pp{pipeline}: loss {} weights {}", job["loss_bits_blake3"], job["weights_blake3"]);
    assert_eq!(job["plan"]["tensor_parallel"], tensor);
    assert_eq!(job["ranks"].as_array().map(Vec::len), Some(data * tensor * pipeline));
    job
}

fn bits(job: &Value) -> (String, String) {
    let text = |name: &str| job[name].as_str().unwrap_or_else(|| panic!("no {name} in {job}")).to_owned();
    (text("loss_bits_blake3"), text("weights_blake3"))
}

fn sum(job: &Value, figure: &str) -> u64 {
    job["ranks"].as_array().into_iter().flatten().map(|rank| rank[figure].as_u64().unwrap_or_default()).sum()
}

#[test]
fn clusters_of_every_plan_train_the_same_bits() {
    let serial = train(PLANS[0], &[]);
    assert!(serial["loss_last"].as_f64() < serial["loss_first"].as_f64(), "{serial}");
    for plan in &PLANS[1..] {
        let job = train(*plan, &[]);
        assert_eq!(bits(&job), bits(&serial), "plan {plan:?}");
    }
    let other = train(PLANS[0], &["--set", "train.seed=2"]);
    assert_ne!(bits(&other).1, bits(&serial).1, "a seed changes the weights");
}
