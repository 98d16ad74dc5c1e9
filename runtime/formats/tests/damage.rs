//! Damaged files of every format: an error or a sound model, never a panic, never much memory, and never a model where a
//! field that is checked was damaged.
//!
//! `SIXFOLD_DAMAGE_CASES` is the number of random cases, 2,000 without it.

#![allow(clippy::unwrap_used, reason = "a failing test panics")]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use sixfold_formats::{Encoding, FolderOptions, OpenOptions, open, write_folder};

const CASES: u64 = 2000;
/// Most memory that the process may ever have had: files of this test have less than 50 KiB.
const RESIDENT_MIB_MAX: u64 = 256;
const VIRTUAL_MIB_MAX: u64 = 2048;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(format!("{name}.gguf"))
}

/// A file that is damaged, and what is opened then.
struct Victim {
    file: PathBuf,
    model: PathBuf,
    /// Bytes of its beginning that most damage falls upon.
    header: usize,
}

/// One or more of each format, in a folder.
fn victims(place: &Path) -> Vec<Victim> {
    let mut victims = Vec::new();
    for name in ["llama", "qwen2", "qwen3", "gpt2"] {
        let file = place.join(format!("{name}.gguf"));
        std::fs::copy(golden(name), &file).unwrap();
        victims.push(Victim { model: file.clone(), file, header: 4000 });
    }
    for (name, shard_bytes) in [("llama", None), ("qwen2", Some(4000)), ("gpt2", None)] {
        let model = open(&golden(name), &OpenOptions::default()).unwrap();
        let folder = place.join(name);
        write_folder(&model, &folder, FolderOptions { encoding: None, shard_bytes }, |_| {}).unwrap();
        for entry in std::fs::read_dir(&folder).unwrap() {
            victims.push(Victim { file: entry.unwrap().path(), model: folder.clone(), header: 3000 });
        }
    }
    let checkpoints = checkpoints(place);
    let tokenizer = place.join("tokenizer.bin");
    for checkpoint in checkpoints {
        victims.push(Victim { file: checkpoint.clone(), model: checkpoint.clone(), header: 40 });
        victims.push(Victim { file: tokenizer.clone(), model: checkpoint, header: 200 });
    }
    victims
}

/// Checkpoints of llama2.c in both formats, with a tokenizer beside them.
fn checkpoints(place: &Path) -> [PathBuf; 2] {
    let (dim, hidden, layers, heads, kv_heads, vocab, positions) = (8, 12, 2, 4, 2, 10, 6);
    let sizes: Vec<u8> = [dim, hidden, layers, heads, kv_heads, vocab, positions]
        .iter()
        .flat_map(|size: &i32| size.to_le_bytes())
        .collect();
    let layer = 2 * dim + 2 * dim * dim + 2 * dim * kv_heads * (dim / heads) + 3 * dim * hidden;
    let numbers = vocab * dim + layers * layer + dim;
    let zeros = |numbers: i32| vec![0_u8; 4 * numbers as usize];
    let legacy = [sizes.clone(), zeros(numbers + positions * (dim / heads))].concat();
    let mut v1 = [&0x616b_3432_u32.to_le_bytes()[..], &1_u32.to_le_bytes(), &sizes, &[1]].concat();
    v1.resize(256, 0);
    v1.extend(zeros(numbers));
    let mut tokenizer = 5_i32.to_le_bytes().to_vec();
    for (id, text) in
        ["<unk>", "\n<s>\n", "\n</s>\n", "<0x00>", "a", "b", " ", "ab", " a", " ab"].iter().enumerate()
    {
        tokenizer.extend((-(id as f32)).to_le_bytes());
        tokenizer.extend((text.len() as i32).to_le_bytes());
        tokenizer.extend(text.as_bytes());
    }
    std::fs::write(place.join("tokenizer.bin"), tokenizer).unwrap();
    let paths = [place.join("legacy.bin"), place.join("v1.bin")];
    std::fs::write(&paths[0], legacy).unwrap();
    std::fs::write(&paths[1], v1).unwrap();
    paths
}

/// Damages bytes in one of several ways, mostly near their beginning.
fn damage(bytes: &mut Vec<u8>, header: usize, random: &mut StdRng) {
    const EXTREMES: [u64; 8] =
        [0, 1, u32::MAX as u64, 1 << 31, 1 << 40, u64::MAX, i64::MAX as u64, (1 << 62) + 1];
    for _ in 0..random.random_range(1..=3) {
        if bytes.is_empty() {
            return;
        }
        let end = if random.random_bool(0.8) { bytes.len().min(header) } else { bytes.len() };
        let at = random.random_range(0..end);
        let until = (at + random.random_range(1..40)).min(bytes.len());
        match random.random_range(0..9) {
            0 | 1 => bytes[at] ^= 1 << random.random_range(0..8),
            2 => bytes[at] = random.random(),
            3 => bytes.truncate(at),
            4 => drop(bytes.drain(at..until)),
            5 => {
                let more = bytes[at..until].to_vec();
                drop(bytes.splice(at..at, more));
            }
            6 | 7 => {
                let word = EXTREMES[random.random_range(0..EXTREMES.len())].to_le_bytes();
                let width = [4, 8][random.random_range(0..2)].min(bytes.len() - at);
                bytes[at..at + width].copy_from_slice(&word[..width]);
            }
            // In texts: another number or a bracket where there was one.
            _ => {
                let from = bytes[at..].iter().position(u8::is_ascii_digit).map_or(at, |offset| at + offset);
                let texts = ["-1", "99999999999999999999", "1e999", "{", "]", "\"", "null", "4294967295"];
                let text = texts[random.random_range(0..texts.len())];
                drop(bytes.splice(from..=from, text.bytes()));
            }
        }
    }
}

/// Opens a model, and if it is one, uses all that opening has promised.
fn use_model(path: &Path, target: &Path) -> bool {
    let Ok(model) = open(path, &OpenOptions::default()) else { return false };
    for tensor in model.tensors() {
        let rows = model.rows(tensor);
        let mut row = vec![0.0; rows.columns()];
        (0..rows.len()).for_each(|number| rows.read(number, &mut row));
    }
    model.summary().unwrap();
    if model.sizes().is_ok() {
        write_folder(&model, target, FolderOptions::default(), |_| {}).unwrap();
        open(target, &OpenOptions::default()).unwrap();
        std::fs::remove_dir_all(target).unwrap();
        let file = target.with_extension("out");
        if sixfold_formats::write_gguf(&model, &file, Encoding::Q8_0, true, |_| {}).is_ok() {
            std::fs::remove_file(file).unwrap();
        }
    }
    true
}

/// A line of the process's status, in MiB.
#[cfg(target_os = "linux")]
fn status_mib(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim_start_matches(':').trim().trim_end_matches(" kB").parse::<u64>().unwrap() >> 10
}

#[test]
fn damaged_files_are_refused_or_read_and_never_more() {
    let cases = std::env::var("SIXFOLD_DAMAGE_CASES").map_or(CASES, |cases| cases.parse().unwrap());
    let place = tempfile::tempdir().unwrap();
    let victims = victims(place.path());
    let target = place.path().join("target");
    for victim in &victims {
        assert!(use_model(&victim.model, &target), "{}", victim.model.display());
    }
    let mut read = 0;
    for case in 0..cases {
        let victim = &victims[(case % victims.len() as u64) as usize];
        let whole = std::fs::read(&victim.file).unwrap();
        let mut bytes = whole.clone();
        damage(&mut bytes, victim.header, &mut StdRng::seed_from_u64(case));
        std::fs::write(&victim.file, &bytes).unwrap();
        let used = catch_unwind(AssertUnwindSafe(|| use_model(&victim.model, &target)));
        let Ok(used) = used else { panic!("case {case}: {} makes it panic", victim.file.display()) };
        read += u64::from(used);
        std::fs::write(&victim.file, whole).unwrap();
    }
    println!("{cases} cases: {} refused, {read} read", cases - read);
    assert!(read < cases / 2, "{read} of {cases} damaged files were read");
    #[cfg(target_os = "linux")]
    {
        let (resident, reserved) = (status_mib("VmHWM"), status_mib("VmPeak"));
        println!("memory: {resident} MiB at most, {reserved} MiB reserved");
        assert!(resident < RESIDENT_MIB_MAX && reserved < VIRTUAL_MIB_MAX, "{resident} {reserved}");
    }
}

/// Opens a file with bits of each byte of a range changed in turn; none may be read.
fn bits_count(file: &Path, model: &Path, range: std::ops::Range<usize>) {
    let whole = std::fs::read(file).unwrap();
    assert!(open(model, &OpenOptions::default()).is_ok());
    // One bit of each byte, another one in the next; of short ranges all.
    let step = if range.len() > 100 { 7 } else { 1 };
    for bit in (range.start * 8..range.end * 8).step_by(step) {
        let mut bytes = whole.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        std::fs::write(file, &bytes).unwrap();
        let opened = open(model, &OpenOptions::default());
        assert!(opened.is_err(), "{}: bit {} of byte {} was not missed", file.display(), bit % 8, bit / 8);
    }
    std::fs::write(file, &whole).unwrap();
}

#[test]
fn what_says_which_tensors_a_gguf_file_has_is_checked() {
    let place = tempfile::tempdir().unwrap();
    for name in ["llama", "gpt2"] {
        let file = place.path().join(format!("{name}.gguf"));
        std::fs::copy(golden(name), &file).unwrap();
        let bytes = std::fs::read(&file).unwrap();
        let find = |text: &[u8]| bytes.windows(text.len()).position(|window| window == text).unwrap();
        // Magic and counts (a version of 2 is one, too); then the entries of all tensors, the first of which begins with its name's length.
        bits_count(&file, &file, 0..4);
        bits_count(&file, &file, 5..24);
        let last = if name == "llama" { &b"output.weight"[..] } else { b"output_norm.bias" };
        // A name, one or two dimensions, the type and the offset.
        let dims = if name == "llama" { 2 } else { 1 };
        let end = find(last) + last.len() + 4 + 8 * dims + 4 + 8;
        bits_count(&file, &file, find(b"token_embd.weight") - 8..end);
    }
}

#[test]
fn headers_of_safetensors_and_checkpoints_are_checked() {
    let place = tempfile::tempdir().unwrap();
    let model = open(&golden("qwen3"), &OpenOptions::default()).unwrap();
    let folder = place.path().join("folder");
    write_folder(&model, &folder, FolderOptions::default(), |_| {}).unwrap();
    let file = folder.join("model.safetensors");
    let bytes = std::fs::read(&file).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let metadata = br#""__metadata__":{"format":"pt"}"#;
    let free = bytes.windows(metadata.len()).position(|window| window == metadata).unwrap();
    bits_count(&file, &folder, 0..free);
    bits_count(&file, &folder, free + metadata.len()..8 + header);
    let [legacy, v1] = checkpoints(place.path());
    bits_count(&legacy, &legacy, 0..28);
    // The number of positions, in 32 to 35, is said nowhere else.
    bits_count(&v1, &v1, 0..32);
    bits_count(&v1, &v1, 36..37);
}

#[test]
fn every_size_of_config_json_is_checked() {
    let place = tempfile::tempdir().unwrap();
    let model = open(&golden("llama"), &OpenOptions::default()).unwrap();
    let folder = place.path().join("folder");
    write_folder(&model, &folder, FolderOptions::default(), |_| {}).unwrap();
    let file = folder.join("config.json");
    let config: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    for size in [
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
    ] {
        for other in
            [serde_json::json!(0), serde_json::json!(6), serde_json::json!(1_u64 << 50), "two".into()]
        {
            let mut config = config.clone();
            config[size] = other;
            std::fs::write(&file, config.to_string()).unwrap();
            let error = open(&folder, &OpenOptions::default()).unwrap_err().to_string();
            assert!(error.contains(size) || error.contains("shape") || error.contains("missing"), "{error}");
        }
    }
}
