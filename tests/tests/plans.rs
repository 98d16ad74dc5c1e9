//! The same bits on any plan, in real clusters: processes, links and placement as users have them.

#![allow(clippy::unwrap_used, reason = "a test ends at what it does not expect")]

use serde_json::Value;
use sixfold_tests::{alone, has_namespaces, result};

/// Degrees of a plan, and the node daemons that it is run on.
type Degrees = (usize, usize, usize, usize);

const PLANS: [Degrees; 6] =
    [(1, 1, 1, 1), (1, 2, 1, 2), (1, 1, 2, 2), (2, 1, 1, 2), (1, 2, 2, 4), (2, 2, 1, 4)];

/// Pipelines whose stages take turns with their layers, or have as many as the job says, and tensor-parallel ranks that do not
/// share rows: a plan, and the options.
const LAYOUTS: [(Degrees, &[&str]); 4] = [
    ((1, 1, 2, 2), &["--set", "train.virtual_stages=2"]),
    ((1, 2, 2, 4), &["--set", "train.virtual_stages=2"]),
    ((1, 1, 3, 3), &["--set", "train.stage_layers=[1, 2, 1]"]),
    ((1, 2, 1, 2), &["--set", "train.sequence_parallel=false"]),
];

fn train((data, tensor, pipeline, nodes): Degrees, more: &[&str]) -> Value {
    let nodes = nodes.to_string();
    let text = format!("data.text={}", sixfold_tests::root().join("LICENSE-APACHE").display());
    let degrees = [
        format!("train.data_parallel={data}"),
        format!("train.tensor_parallel={tensor}"),
        format!("train.pipeline_parallel={pipeline}"),
    ];
    let mut arguments =
        vec!["run", "config/jobs/pretrain-tiny.toml", "--json", "--local", &nodes, "--set", &text];
    degrees.iter().for_each(|degree| arguments.extend(["--set", degree]));
    arguments.extend(more);
    let job = result(&arguments);
    println!(
        "dp{data} tp{tensor} pp{pipeline}: loss {} weights {}",
        job["loss_bits_blake3"], job["weights_blake3"]
    );
    assert_eq!(job["plan"]["tensor_parallel"], tensor);
    assert_eq!(job["ranks"].as_array().map(Vec::len), Some(data * tensor * pipeline));
    job
}

fn bits(job: &Value) -> (String, String) {
    let text = |name: &str| job[name].as_str().unwrap_or_else(|| panic!("no {name} in {job}")).to_owned();
    (text("loss_bits_blake3"), text("weights_blake3"))
}

fn counts(job: &Value, figure: &str) -> Vec<u64> {
    let ranks = job["ranks"].as_array().unwrap();
    ranks
        .iter()
        .map(|rank| rank[figure].as_u64().unwrap_or_else(|| panic!("no {figure} in {rank}")))
        .collect()
}

/// No rank may do much more than its share; what is replicated (norms, embeddings, copies of KV heads)
/// is small beside the layers.
fn check_shares(job: &Value, serial: &Value) {
    let (world, whole) = (counts(job, "flops").len() as u64, counts(serial, "flops")[0]);
    for flops in counts(job, "flops") {
        assert!(flops <= whole * 3 / (2 * world), "a rank of {world} computed {flops} of {whole} FLOP");
    }
    assert!(counts(job, "flops").iter().sum::<u64>() >= whole, "together they do the whole work");
    assert_eq!(world > 1, counts(job, "bytes_sent").iter().all(|&bytes| bytes > 0), "{job}");
}

#[test]
fn clusters_of_every_plan_train_the_same_bits() {
    let _alone = alone();
    let serial = train(PLANS[0], &[]);
    assert!(serial["loss_last"].as_f64() < serial["loss_first"].as_f64(), "{serial}");
    for plan in &PLANS[1..] {
        let job = train(*plan, &[]);
        assert_eq!(bits(&job), bits(&serial), "plan {plan:?}");
        check_shares(&job, &serial);
    }
    for (plan, options) in LAYOUTS {
        let job = train(plan, options);
        assert_eq!(bits(&job), bits(&serial), "plan {plan:?} {options:?}");
    }
    let other = train(PLANS[0], &["--set", "train.seed=2"]);
    assert_ne!(bits(&other).1, bits(&serial).1, "a seed changes the weights");
}

/// Nodes in network namespaces of their own share no loopback interface: what they exchange crosses a
/// network, and the tensor links are QUIC's.
#[test]
fn machines_apart_train_the_same_bits_over_quic() {
    let _alone = alone();
    let links = ["--links", "quic", "--namespaces"];
    if !has_namespaces() {
        return;
    }
    let serial = train(PLANS[0], &[]);
    for plan in &PLANS[1..] {
        assert_eq!(bits(&train(*plan, &links)), bits(&serial), "plan {plan:?}");
    }
    let (plan, options) = LAYOUTS[0];
    assert_eq!(bits(&train(plan, &[options, &links].concat())), bits(&serial), "plan {plan:?} {options:?}");
}
