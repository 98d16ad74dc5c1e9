//! Faults of disks: full ones ([`SmallDisks`]), and checkpoints that are damaged where they lie ([`damage`]).

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use sixfold_artifact::{FileEntry, Manifest, Store};
use sixfold_bench::dice::Dice;

/// Size of a node's disk, in MiB: the tokens and many checkpoints of a trial.
const DISK_MIB: u32 = 192;
/// What is written at a time to fill it, in bytes.
const FILLER: usize = 1 << 20;
const FILLER_NAME: &str = "filler";

/// Disks of their own for some nodes: file systems in memory, which can be full.
pub(crate) struct SmallDisks(Vec<PathBuf>);

impl SmallDisks {
    /// Mounts one at each node's folder, which must not exist yet.
    ///
    /// # Errors
    /// If this process may not mount.
    pub(crate) fn mount(cluster: &Path, nodes: usize) -> Result<Self> {
        let mut disks = Self(Vec::new());
        for number in 1..=nodes {
            let folder = cluster.join(format!("node-{number}"));
            fs::create_dir(&folder)?;
            let size = format!("size={DISK_MIB}m");
            let mount =
                Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(&folder).status()?;
            ensure!(mount.success(), "cannot mount a file system in memory, which needs root");
            disks.0.push(folder);
        }
        Ok(disks)
    }
}

impl Drop for SmallDisks {
    fn drop(&mut self) {
        for folder in &self.0 {
            // What still runs keeps its files until it ends.
            let _ = Command::new("umount").arg("-l").arg(folder).status();
        }
    }
}

/// Writes until a node's disk takes no more; how many bytes that were.
pub(crate) fn fill(node: &Path) -> Result<u64> {
    let mut file = File::create(node.join(FILLER_NAME))?;
    let mut written = 0;
    for size in [FILLER, 1 << 10, 1] {
        let block = vec![7; size];
        while let Ok(bytes) = file.write(&block) {
            written += bytes as u64;
        }
    }
    Ok(written)
}

/// Gives the space back.
pub(crate) fn empty(node: &Path) -> Result<()> {
    Ok(fs::remove_file(node.join(FILLER_NAME))?)
}

/// An artefact of a kind on one of the nodes.
pub(crate) struct Found {
    pub(crate) store: Store,
    pub(crate) manifest: Manifest,
}

/// All copies of all artefacts of a kind in a cluster's stores.
pub(crate) fn artifacts(cluster: &Path, kind: &str) -> Result<Vec<Found>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(cluster)? {
        let root = entry?.path().join("store");
        if !root.is_dir() {
            continue;
        }
        let store = Store::open(root)?;
        for id in store.list()? {
            // One that is removed meanwhile is no longer there to be damaged.
            let Ok(manifest) = store.manifest(id) else { continue };
            if manifest.kind == kind {
                found.push(Found { store: store.clone(), manifest });
            }
        }
    }
    Ok(found)
}

fn step_of(manifest: &Manifest) -> Option<u64> {
    manifest.metadata.get("step")?.as_u64()
}

/// Damages the numbers of one rank in the newest checkpoint, in every copy: one bit, its end, or all of them. Returns its step and what was done.
pub(crate) fn damage(cluster: &Path, dice: &mut Dice) -> Result<(u64, String)> {
    let all = artifacts(cluster, "checkpoint")?;
    let newest = all.iter().filter_map(|one| step_of(&one.manifest)).max().context("no checkpoint yet")?;
    let of_step = |step| move |one: &&Found| step_of(&one.manifest) == Some(step);
    let files =
        |one: &Found| one.manifest.files.iter().find(|file| file.name.ends_with(".safetensors")).cloned();
    let target = all.iter().find(of_step(newest)).and_then(files).context("a checkpoint without numbers")?;
    let mut others = all.iter().filter_map(files).filter(|file| file.hash != target.hash);
    // Another rank's of the same step where there is one: both lie where one expects the other.
    let other = all.iter().filter(of_step(newest)).filter_map(files).find(|file| file.hash != target.hash);
    let other = other.or_else(|| others.next_back());
    let how = dice.below(3);
    let (at, bit) = (dice.below(target.bytes), dice.below(8));
    let paths = |file: &FileEntry| -> BTreeSet<PathBuf> {
        all.iter().filter_map(|one| one.store.entry_path(file).ok()).collect()
    };
    let replacement = other.as_ref().and_then(|other| fs::read(paths(other).first()?).ok());
    let copies = paths(&target);
    for path in &copies {
        let mut content = fs::read(path)?;
        match (how, &replacement) {
            (0, _) => content[at as usize] ^= 1 << bit,
            (1, Some(others)) => content.clone_from(others),
            _ => content.truncate(at as usize),
        }
        fs::write(path, content)?;
    }
    let what = match (how, &replacement) {
        (0, _) => format!("bit {bit} of byte {at}"),
        (1, Some(_)) => "another rank's or step's in its place".to_owned(),
        _ => format!("cut after {at} of {} bytes", target.bytes),
    };
    Ok((newest, format!("{what}, in {} copies", copies.len())))
}

/// The bits of the loss of every step, as the trained model tells them.
pub(crate) fn loss_bits(cluster: &Path) -> Result<Vec<String>> {
    let models = artifacts(cluster, "model")?;
    let model = models.first().context("no model is left")?;
    let record = model.manifest.file("training.json").context("a model without a record")?;
    let record: serde_json::Value = serde_json::from_slice(&model.store.read_entry(record)?)?;
    let bits = record["loss_bits"].as_array().context("a record without losses")?;
    Ok(bits.iter().filter_map(|bits| bits.as_str().map(str::to_owned)).collect())
}
