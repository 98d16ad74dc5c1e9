//! The nodes of the cluster.

use anyhow::Result;
use serde_json::{Value, json};
use sixfold_coordinator::message::NodeView;

use super::{connect, print_json, table};
use crate::cli::ClientArgs;

/// `sixfold nodes`.
pub(crate) async fn list(args: ClientArgs) -> Result<()> {
    let client = connect(&args)?;
    let nodes = client.nodes().await?;
    if args.json {
        print_json(&nodes.iter().map(to_json).collect());
    } else {
        let rows: Vec<_> = nodes.iter().map(to_row).collect();
        table::print(
            &["node", "state", "address", "http", "cores", "memory", "simd", "gpus", "tasks", "artifacts"],
            &rows,
        );
    }
    client.close().await;
    Ok(())
}

fn to_json(node: &NodeView) -> Value {
    let has = &node.capabilities;
    json!({
        "node": node.node.node,
        "state": node.state,
        "address": node.node.address,
        "http": node.http,
        "cores": has.cores,
        "memory_bytes": has.memory_bytes,
        "simd": has.simd,
        "gpus": has.gpus.iter().map(|gpu| json!({"name": gpu.name, "memory_bytes": gpu.memory_bytes})).collect::<Vec<_>>(),
        "host": has.host,
        "failure_domain": has.failure_domain,
        "tasks": node.tasks.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "artifacts": node.artifacts,
        "silent_ms": node.silent_ms,
    })
}

fn to_row(node: &NodeView) -> Vec<String> {
    let has = &node.capabilities;
    vec![
        node.node.node.to_string(),
        node.state.clone(),
        node.node.address.to_string(),
        node.http.map_or_else(|| "-".to_owned(), |address| address.to_string()),
        has.cores.to_string(),
        format!("{:.1} GiB", has.memory_bytes as f64 / (1_u64 << 30) as f64),
        has.simd.clone(),
        has.gpus.len().to_string(),
        node.tasks.len().to_string(),
        node.artifacts.to_string(),
    ]
}
