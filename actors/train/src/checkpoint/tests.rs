//! Saved states against damage: whatever happens to files, what is read is a step as it was, or nothing.

use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;
use safetensors::SafeTensors;
use sixfold_artifact::Store;
use sixfold_cluster::task::{Commit, LocalHost, Record, TaskContext, TaskSpec};
use sixfold_model::{Geometry, UnitId};
use sixfold_parallel::{RankSlice, StateParts, balanced_layout};
use sixfold_topology::{ParallelPlan, Rank};
use sixfold_wire::codec;
use sixfold_wire::id::{ContentHash, Epoch, JobId, TaskId};

use super::units::{PartBuffer, RankState, Source, encode_parts};
use super::*;
use crate::history::{History, HistoryPoint};
use crate::host::BlockingHost;
use crate::options::TrainOptions;
use crate::tests::meeting::{Board, MeetingHost, Memory};

const JOB: &str = "the job";

fn geometry() -> Geometry {
    let options = TrainOptions { layers: 4, hidden_size: 16, heads: 4, ..TrainOptions::default() };
    options.geometry(40, None).unwrap()
}

/// The numbers of a step: no two places have the same.
fn fill(step: u64, quantity: usize, mut buffer: PartBuffer) -> PartBuffer {
    let place = |unit: UnitId| ContentHash::of(unit.to_string().as_bytes()).as_bytes()[0];
    for (unit, part) in buffer.parts.clone() {
        for (value, at) in buffer.values.unit_mut(unit).iter_mut().zip(part) {
            let number =
                (at as u32) << 12 | u32::from(place(unit)) << 4 | (step as u32) << 2 | quantity as u32;
            *value = if at % 97 == 5 { -0.0 } else { f32::from_bits(number | 0x2000_0000) };
        }
    }
    buffer
}

/// What a rank of a plan holds; stages of pipelines take turns with two runs of layers.
fn slice_of(geometry: &Geometry, plan: &ParallelPlan, rank: Rank) -> RankSlice {
    let virtual_stages = if plan.pipeline_parallel > 1 { 2 } else { 1 };
    RankSlice::new(geometry, plan, &balanced_layout(geometry, plan, virtual_stages).unwrap(), rank)
}

/// Which parts of it a rank keeps and saves.
fn parts_of(geometry: &Geometry, plan: &ParallelPlan, rank: Rank, shared: bool) -> StateParts {
    StateParts::new(geometry, plan, &slice_of(geometry, plan, rank), rank, shared)
}

fn state(step: u64, geometry: &Geometry, plan: &str, rank: Rank, shared: bool) -> RankState {
    let plan: ParallelPlan = plan.parse().unwrap();
    let parts = parts_of(geometry, &plan, rank, shared);
    let RankState { quantities } = RankState::zeros(geometry, &slice_of(geometry, &plan, rank), &parts);
    let mut quantity = 0..;
    RankState { quantities: quantities.map(|zeros| fill(step, quantity.next().unwrap(), zeros)) }
}

/// A host that holds states in memory.
struct Rig {
    geometry: Geometry,
    memory: Memory,
    local: Arc<LocalHost>,
    host: BlockingHost,
    _runtime: tokio::runtime::Runtime,
    _folder: tempfile::TempDir,
}

impl Rig {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (memory, task) = (Memory::default(), TaskId { job: JobId(1), phase: 0, index: 0 });
        let local = Arc::new(LocalHost::new(store.clone()));
        let host = MeetingHost { local: local.clone(), board: Board::new(1), task, memory: memory.clone() };
        let spec = TaskSpec {
            id: task,
            role: "train".into(),
            stage: "train".into(),
            count: 1,
            options_json: "{}".into(),
            inputs: Vec::new(),
            resume: Vec::new(),
        };
        let scratch = folder.path().to_owned();
        let (context, _) = TaskContext::new(spec, Epoch(1), "here".into(), store, scratch, Arc::new(host));
        let host = BlockingHost::new(context, runtime.handle().clone());
        Self { geometry: geometry(), memory, local, host, _runtime: runtime, _folder: folder }
    }

    /// Every rank of a plan has its part of a step's state held.
    fn commit(&self, plan: &str, shared: bool, step: u64) {
        let parsed: ParallelPlan = plan.parse().unwrap();
        for rank in parsed.ranks() {
            let RankState { quantities } = state(step, &self.geometry, plan, rank, shared);
            let saved = parts_of(&self.geometry, &parsed, rank, shared).saved;
            let sources = quantities.each_ref();
            let sources = sources.map(|part| Source { values: &part.values, parts: Some(&part.parts) });
            let units = encode_parts(&saved, sources).unwrap();
            let losses: Vec<f32> = (0..step).map(|step| step as f32).collect();
            let first = (rank == Rank(0)).then(|| codec::encode(&history(&losses)).unwrap().into());
            let losses: Vec<u8> = losses.iter().flat_map(|loss| loss.to_le_bytes()).collect();
            let writer = Writer {
                host: self.host.clone(),
                fingerprint: JOB.to_owned(),
                slice: slice_of(&self.geometry, &parsed, rank),
                replica: parsed.coordinates(rank).data,
                batch_sequences: 4,
                earlier: None,
            };
            let losses = losses.into();
            let snapshot = Snapshot { step, units, losses, history: first, evaluations: None, best: None };
            writer.commit(&snapshot, 0).unwrap();
        }
    }

    /// What a rank of a plan goes on from, of the steps up to `newest`.
    fn load(&self, newest: u64, plan: &str, rank: Rank, shared: bool) -> Option<Loaded> {
        let parsed: ParallelPlan = plan.parse().unwrap();
        let slice = slice_of(&self.geometry, &parsed, rank);
        let parts = parts_of(&self.geometry, &parsed, rank, shared);
        let held = self.host.held().unwrap().states;
        let options = TrainOptions::default();
        let mut saved = SavedSteps::new(&self.host, &self.geometry, &slice, &parts, (JOB, &options), &held);
        saved.load(newest)
    }

    /// The step that a rank of a plan goes on from. It must be as it was.
    fn loaded(&self, plan: &str, rank: Rank, shared: bool) -> Option<u64> {
        self.loaded_up_to(u64::MAX, plan, rank, shared)
    }

    fn loaded_up_to(&self, newest: u64, plan: &str, rank: Rank, shared: bool) -> Option<u64> {
        let loaded = self.load(newest, plan, rank, shared)?;
        assert!(loaded.state == state(loaded.step, &self.geometry, plan, rank, shared), "{plan} {rank}");
        assert!(loaded.losses.iter().copied().eq((0..loaded.step).map(|step| step as f32)));
        assert!(loaded.history.is_of(loaded.step), "{plan} {rank}");
        Some(loaded.step)
    }

    fn why_not(&self) -> Vec<String> {
        self.local
            .records()
            .into_iter()
            .filter_map(|record| match record {
                Record::Log(line) => Some(line),
                _ => None,
            })
            .collect()
    }
}

/// Curves of steps that were measured.
fn history(losses: &[f32]) -> History {
    let mut history = History::default();
    losses.iter().for_each(|&loss| history.push(HistoryPoint { loss, seconds: 0.5, ..Default::default() }));
    history
}

/// A state whose manifest fits its content again.
fn reseal(commit: &mut Commit) {
    for (entry, content) in commit.manifest.files.iter_mut().zip(&commit.files) {
        (entry.hash, entry.bytes) = (ContentHash::of(content), content.len() as u64);
    }
}

/// The file with other names for its tensors, or without some.
fn renamed(file: &[u8], name: impl Fn(&str) -> Option<String>) -> Bytes {
    let tensors = SafeTensors::deserialize(file).unwrap();
    let kept = tensors.tensors().into_iter().filter_map(|(old, view)| Some((name(&old)?, view)));
    safetensors::serialize(kept, None).unwrap().into()
}

#[test]
fn any_plan_reads_what_any_other_saved() {
    let plans =
        [("tp1", false), ("dp2", true), ("dp2", false), ("dp4", true), ("dp2.tp2.pp2", true), ("tp4", false)];
    for (before, before_shared) in plans {
        let rig = Rig::new();
        rig.commit(before, before_shared, 3);
        for (after, after_shared) in plans {
            for rank in after.parse::<ParallelPlan>().unwrap().ranks() {
                assert_eq!(rig.loaded(after, rank, after_shared), Some(3), "{before} to {after} {rank}");
            }
            let first = rig.load(u64::MAX, after, Rank(0), after_shared).unwrap();
            assert_eq!(first.history, history(&first.losses), "{before} to {after}: the curves");
        }
    }
}

/// Another rank may have nothing to go on from, and the step that is damaged may be the first.
#[test]
fn nothing_is_read_where_no_step_is_left() {
    let rig = Rig::new();
    rig.commit("dp2", true, 1);
    assert_eq!(rig.loaded_up_to(1, "dp2", Rank(0), true), Some(1));
    assert_eq!(rig.loaded_up_to(0, "dp2", Rank(0), true), None);
    rig.memory.change(|states| states.truncate(1));
    assert_eq!(rig.loaded("dp2", Rank(0), true), None);
}

#[test]
fn curves_that_are_missing_or_damaged_cost_no_step() {
    let curves = |harm: fn(&mut Commit)| {
        let rig = Rig::new();
        rig.commit("tp1", false, 3);
        rig.memory.change(|commits| commits.iter_mut().for_each(harm));
        rig.load(u64::MAX, "tp1", Rank(0), false).unwrap().history
    };
    let losses = [0.0, 1.0, 2.0];
    assert_eq!(curves(|_| {}), history(&losses));
    let harms: [fn(&mut Commit); 3] = [
        |commit| _ = (commit.manifest.files.pop(), commit.files.pop()),
        |commit| *commit.files.last_mut().unwrap() = Bytes::from_static(b"else"),
        |commit| {
            *commit.files.last_mut().unwrap() = codec::encode(&history(&[0.0, 1.0])).unwrap().into();
            reseal(commit);
        },
    ];
    for harm in harms {
        assert_eq!(curves(harm), History::of_losses(&losses));
    }
}

#[test]
fn what_is_held_twice_is_compared() {
    let rig = Rig::new();
    rig.commit("dp2", true, 2);
    rig.commit("dp2", true, 3);
    rig.commit("dp4", false, 3);
    assert_eq!(rig.loaded("tp1", Rank(0), false), Some(3), "two plans saved the same step");
    // One piece is gone, so that those of the other plan are opened, which overlap with what is left; the first of
    // them has a number of its own now.
    rig.memory.change(|states| {
        let at = states.iter().position(|state| state.step == 3).unwrap();
        states.remove(at + 1);
        let newest = &mut states[at + 1];
        let mut units = newest.files[0].to_vec();
        *units.last_mut().unwrap() ^= 1;
        newest.files[0] = units.into();
        reseal(newest);
    });
    let expected = state(3, &rig.geometry, "tp1", Rank(0), false);
    let held = rig.host.held().unwrap().states;
    let plan = ParallelPlan::SERIAL;
    let (slice, parts) =
        (slice_of(&rig.geometry, &plan, Rank(0)), parts_of(&rig.geometry, &plan, Rank(0), false));
    let options = TrainOptions::default();
    let mut saved = SavedSteps::new(&rig.host, &rig.geometry, &slice, &parts, (JOB, &options), &held);
    let loaded = saved.load(u64::MAX).unwrap();
    assert!(loaded.step == 2 && loaded.state != expected);
    assert!(
        rig.why_not().iter().any(|line| line.contains("two files have other numbers")),
        "{:?}",
        rig.why_not()
    );
}

#[test]
fn files_that_say_something_else_than_they_hold_are_refused() {
    type Change = fn(&str) -> Option<String>;
    let changes: [(&str, Change); 5] = [
        ("are in none of the step's files", |name| (name != "head.3/second_moment").then(|| name.to_owned())),
        ("no part of what it says", |name| Some(name.replace("head.3", "head.7"))),
        ("no part of what it says", |name| Some(name.replace("head.3/p", "head.3/q"))),
        ("f32 numbers there", |name| Some(name.replace("head.3/parameter", "head.3/parameter@1"))),
        ("f32 numbers there", |name| {
            Some(name.replace("head.3/", "final_norm.0/"))
                .filter(|new| new == name || name == "head.3/parameter")
                .filter(|_| name != "final_norm.0/parameter")
        }),
    ];
    for (why, change) in changes {
        let rig = Rig::new();
        rig.commit("dp2", true, 1);
        rig.commit("dp2", true, 2);
        rig.memory.change(|states| {
            for state in states.iter_mut().filter(|state| state.step == 2) {
                state.files[0] = renamed(&state.files[0], change);
                reseal(state);
            }
        });
        assert_eq!(rig.loaded("tp1", Rank(0), false), Some(1), "{why}");
        assert!(rig.why_not().iter().any(|line| line.contains(why)), "{why}: {:?}", rig.why_not());
    }
}

#[test]
fn numbers_that_a_file_has_twice_are_refused() {
    let rig = Rig::new();
    rig.commit("tp1", false, 1);
    let plan = ParallelPlan::SERIAL;
    let slice = slice_of(&rig.geometry, &plan, Rank(0));
    rig.memory.change(|states| {
        let file = renamed(&states[0].files[0], |name| {
            // As long as the first shard of the head, and so over its beginning.
            Some(name.replace("embedding.0/parameter", "head.0/parameter@0"))
        });
        let refused = units::pieces(&file, &rig.geometry, &slice).err().unwrap();
        assert!(matches!(refused, CheckpointError::Twice(_)), "{refused}");
    });
}

#[test]
fn a_state_of_the_former_format_is_read() {
    let rig = Rig::new();
    rig.commit("tp2.pp2", false, 4);
    rig.memory.change(|states| {
        for state in states.iter_mut() {
            let header = state.manifest.metadata.get_mut(HEADER_KEY).unwrap().as_object_mut().unwrap();
            header.insert("format".to_owned(), 1.into());
            header.remove("replica").unwrap();
        }
    });
    assert_eq!(rig.loaded("dp2", Rank(1), true), Some(4));
    rig.memory.change(|states| {
        for state in states.iter_mut() {
            state.manifest.metadata.get_mut(HEADER_KEY).unwrap()["format"] = 3.into();
        }
    });
    assert_eq!(rig.loaded("dp2", Rank(1), true), None);
    assert!(rig.why_not().iter().any(|line| line.contains("format 3")), "{:?}", rig.why_not());
}

/// What may happen to the states of the newest step.
#[derive(Clone, Debug)]
enum Damage {
    /// A bit of a file is another.
    Flip { state: usize, file: usize, at: usize, bit: u32 },
    /// A file is shorter.
    Cut { state: usize, file: usize, at: usize },
    /// Two states have each other's files.
    Swap { state: usize, other: usize },
    /// The same, and their manifests fit them.
    SealedSwap { state: usize, other: usize },
    /// The files are those of the step before.
    OtherStep { state: usize },
    /// A state of the step before says that it is of this one.
    Relabelled { state: usize },
    /// One tensor begins elsewhere in its unit, and the manifest fits.
    Moved { state: usize, tensor: usize, to: usize },
    /// It is gone.
    Lost { state: usize },
}

fn damage() -> impl Strategy<Value = Damage> {
    let index = 0_usize..64;
    prop_oneof![
        (index.clone(), 0_usize..2, any::<usize>(), 0_u32..8)
            .prop_map(|(state, file, at, bit)| Damage::Flip { state, file, at, bit }),
        (index.clone(), 0_usize..2, any::<usize>()).prop_map(|(state, file, at)| Damage::Cut {
            state,
            file,
            at
        }),
        (index.clone(), index.clone()).prop_map(|(state, other)| Damage::Swap { state, other }),
        (index.clone(), index.clone()).prop_map(|(state, other)| Damage::SealedSwap { state, other }),
        index.clone().prop_map(|state| Damage::OtherStep { state }),
        index.clone().prop_map(|state| Damage::Relabelled { state }),
        (index.clone(), any::<usize>(), any::<usize>()).prop_map(|(state, tensor, to)| Damage::Moved {
            state,
            tensor,
            to
        }),
        index.prop_map(|state| Damage::Lost { state }),
    ]
}

/// Damages the states of step 2, which come behind those of step 1, one for each rank.
fn apply(damage: &Damage, ranks: usize, states: &mut Vec<Commit>) {
    if states.len() == ranks {
        return;
    }
    let newest = states.len() - ranks;
    let place = |state: &usize| ranks + state % newest;
    match damage {
        Damage::Flip { state, file, at, bit } => {
            let content = &mut states[place(state)].files[*file];
            let mut bytes = content.to_vec();
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
            *content = bytes.into();
        }
        Damage::Cut { state, file, at } => {
            let content = &mut states[place(state)].files[*file];
            *content = content.slice(..at % content.len());
        }
        Damage::Swap { state, other } | Damage::SealedSwap { state, other } => {
            let (a, b) = (place(state), place(other));
            let files = states[a].files.clone();
            states[a].files = std::mem::replace(&mut states[b].files, files);
            if matches!(damage, Damage::SealedSwap { .. }) {
                [a, b].into_iter().for_each(|state| reseal(&mut states[state]));
            }
        }
        Damage::OtherStep { state } => {
            let at = place(state);
            states[at].files = states[at - ranks].files.clone();
        }
        Damage::Relabelled { state } => {
            let at = place(state);
            states[at] = Commit { step: 2, ..states[at - ranks].clone() };
        }
        Damage::Moved { state, tensor, to } => {
            let state = &mut states[place(state)];
            let mut names: Vec<String> = SafeTensors::deserialize(&state.files[0])
                .unwrap()
                .names()
                .into_iter()
                .map(str::to_owned)
                .collect();
            names.sort_unstable();
            let moved = &names[tensor % names.len()];
            let (stem, from) = moved.split_once('@').unwrap_or((moved, "0"));
            let to = to % 512;
            if from != to.to_string() {
                state.files[0] = renamed(&state.files[0], |name| {
                    Some(if name == moved { format!("{stem}@{to}") } else { name.to_owned() })
                });
                reseal(state);
            }
        }
        Damage::Lost { state } => drop(states.remove(place(state))),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn damage_is_never_read(
        mut damages in prop::collection::vec(damage(), 1..3),
        plan in prop::sample::select(vec!["tp1", "dp2", "dp4", "dp2.tp2", "dp2.pp2"]),
        reader in prop::sample::select(vec!["tp1", "dp2", "tp2", "dp4.pp2"]),
        shared: bool,
        rank in 0_u32..8,
    ) {
        let rig = Rig::new();
        rig.commit(plan, shared, 1);
        rig.commit(plan, shared, 2);
        let rank = Rank(rank % reader.parse::<ParallelPlan>().unwrap().world_size() as u32);
        prop_assert_eq!(rig.loaded(reader, rank, shared), Some(2));
        // A manifest that is made to fit content that was damaged before would hide the damage from anybody.
        damages.sort_by_key(|damage| match damage {
            Damage::SealedSwap { .. } | Damage::Moved { .. } => 0,
            Damage::Lost { .. } => 2,
            _ => 1,
        });
        rig.memory.change(|states| {
            let ranks = states.len() / 2;
            damages.iter().for_each(|damage| apply(damage, ranks, states));
        });
        // It compares every number with that of the step that it says it is.
        let loaded = rig.loaded(reader, rank, shared);
        prop_assert!(loaded == Some(2) || loaded == Some(1), "{:?}", loaded);
    }
}
