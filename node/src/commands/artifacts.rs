//! The catalogue: listing artefacts, and fetching their files.

use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::json;
use sixfold_artifact::{Manifest, Store};
use sixfold_cluster::protocol::ArtifactSummary;
use sixfold_cluster::{ARTIFACT_STREAM, TransferRequest, receive_artifact};
use sixfold_coordinator::message::{ArtifactPage, ClientReply, ClientRequest};
use sixfold_transport::identity::{Expected, Peer};
use sixfold_wire::id::{ArtifactId, NodeName};

use super::{connect, print_json, table};
use crate::cli::ArtifactsArgs;
use crate::client::{Client, unexpected};

type Listed = (ArtifactSummary, Vec<NodeName>);

/// Characters of an id in a table: enough to tell artefacts apart.
const SHORT_ID: usize = 12;

/// `sixfold artifacts`.
pub(crate) async fn run(args: ArtifactsArgs) -> Result<()> {
    let client = connect(&args.client)?;
    let listed = list(&client).await?;
    match (&args.fetch, &args.to) {
        (Some(id), Some(folder)) => {
            let (summary, holders) = find(&listed, id)?;
            let written = fetch(&client, summary.id, holders, folder).await?;
            if args.client.json {
                print_json(&json!({"files": written, "needs": summary.needs}))
            } else {
                written.iter().for_each(|path| println!("{path}"));
                summary.needs.iter().for_each(|id| eprintln!("it needs {id}, which `--fetch` gets, too"));
            }
        }
        _ => print(&listed, args.client.json),
    }
    client.close().await;
    Ok(())
}

async fn list(client: &Client) -> Result<Vec<Listed>> {
    let (mut all, mut after): (Vec<Listed>, Option<ArtifactId>) = (Vec::new(), None);
    loop {
        let ArtifactPage { artifacts, more } =
            match client.request(ClientRequest::Artifacts { after }).await? {
                ClientReply::Artifacts(page) => page,
                other => return unexpected(&other),
            };
        after = artifacts.last().map(|(summary, _)| summary.id);
        all.extend(artifacts);
        if !more {
            return Ok(all);
        }
    }
}

fn print(listed: &[Listed], as_json: bool) {
    if as_json {
        let object = |(summary, holders): &Listed| {
            json!({
                "id": summary.id, "kind": summary.kind, "stage": summary.stage, "task": summary.task.to_string(),
                "bytes": summary.bytes, "parents": summary.parents, "needs": summary.needs, "nodes": holders,
            })
        };
        return print_json(&listed.iter().map(object).collect());
    }
    let row = |(summary, holders): &Listed| {
        let names: Vec<&str> = holders.iter().map(NodeName::as_str).collect();
        let needs: Vec<String> = summary.needs.iter().copied().map(short).collect();
        vec![
            short(summary.id),
            summary.kind.clone(),
            summary.stage.clone(),
            summary.task.to_string(),
            summary.bytes.to_string(),
            needs.join(" "),
            names.join(" "),
        ]
    };
    let rows: Vec<_> = listed.iter().map(row).collect();
    table::print(&["id", "kind", "stage", "task", "bytes", "needs", "nodes"], &rows);
}

fn short(id: ArtifactId) -> String {
    id.to_string().chars().take(SHORT_ID).collect()
}

/// The artefact whose id begins so.
fn find<'a>(listed: &'a [Listed], beginning: &str) -> Result<&'a Listed> {
    let mut fitting = listed.iter().filter(|(summary, _)| summary.id.to_string().starts_with(beginning));
    match (fitting.next(), fitting.next()) {
        (Some(found), None) => Ok(found),
        (None, _) => bail!("no artefact begins with `{beginning}`; `sixfold artifacts` lists them"),
        (Some(_), Some(_)) => bail!("several artefacts begin with `{beginning}`: give more of the id"),
    }
}

/// Writes an artefact's files into a folder; each is checked against its hash on the way.
pub(crate) async fn fetch(
    client: &Client,
    id: ArtifactId,
    holders: &[NodeName],
    folder: &Path,
) -> Result<Vec<String>> {
    let temporary = tempfile::tempdir().context("no temporary folder")?;
    let store = Store::open(temporary.path())?;
    let mut last = anyhow::anyhow!("no node holds the artefact");
    for node in client.nodes().await?.iter().filter(|node| holders.contains(&node.node.node)) {
        match fetch_from(client, &store, id, &node.node.node, node.node.address).await {
            Ok(manifest) => return export(&store, &manifest, folder),
            Err(error) => last = error.context(format!("node {}", node.node.node)),
        }
    }
    Err(last)
}

async fn fetch_from(
    client: &Client,
    store: &Store,
    id: ArtifactId,
    node: &NodeName,
    address: std::net::SocketAddr,
) -> Result<Manifest> {
    let expected = Expected::Peer(Peer::node(node.as_str())?);
    let connection = client.endpoint().connect(address, expected).await?;
    let stream = connection.open_stream(ARTIFACT_STREAM, &TransferRequest::Fetch(id)).await?;
    let mut stream = tokio::io::join(stream.recv, stream.send);
    Ok(receive_artifact(store, id, &mut stream).await?)
}

fn export(store: &Store, manifest: &Manifest, folder: &Path) -> Result<Vec<String>> {
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let mut written = Vec::new();
    for file in &manifest.files {
        // A manifest's file names have no separators; the store refuses others.
        let target = folder.join(&file.name);
        std::fs::copy(store.entry_path(file)?, &target)
            .with_context(|| format!("cannot write {}", target.display()))?;
        written.push(target.display().to_string());
    }
    Ok(written)
}
