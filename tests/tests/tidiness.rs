//! The rules of the house, checked: which crate may know which, where `unsafe` and the host's slices are, which names are
//! not names, how long a file may be, and whether the documents' links lead anywhere.

#![allow(clippy::unwrap_used, reason = "a test ends at what it does not expect")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use regex::Regex;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Files that git tracks or would track, with this ending.
fn files(ending: &str) -> Vec<PathBuf> {
    let output = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output()
        .unwrap();
    let listed = String::from_utf8(output.stdout).unwrap();
    let files: Vec<PathBuf> = listed
        .lines()
        .filter(|line| line.ends_with(ending))
        .map(|line| root().join(line))
        .filter(|path| path.exists())
        .collect();
    assert!(!files.is_empty(), "git lists no {ending} files");
    files
}

fn relative(path: &Path) -> String {
    path.strip_prefix(root()).unwrap().display().to_string()
}

/// Direct dependencies of each package of the workspace, by their names; test-only ones apart.
fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let name = |value: &serde_json::Value| value["name"].as_str().unwrap().to_owned();
    let of = |package: &serde_json::Value| {
        let all = package["dependencies"].as_array().unwrap();
        all.iter().filter(|dependency| dependency["kind"] != "dev").map(name).collect()
    };
    metadata["packages"].as_array().unwrap().iter().map(|package| (name(package), of(package))).collect()
}

/// What each library of the runtime may build on, lowest first.
const LAYERS: [(&str, &[&str]); 13] = [
    ("topology", &[]),
    ("tensor", &[]),
    ("warc", &[]),
    ("chat", &[]),
    ("telemetry", &[]),
    ("formats", &[]),
    ("wire", &["topology"]),
    ("transport", &["wire"]),
    ("artifact", &["wire"]),
    ("model", &["tensor", "topology"]),
    ("collective", &["tensor", "transport", "topology"]),
    ("parallel", &["model", "collective", "transport", "tensor", "topology"]),
    ("cluster", &["wire", "transport", "artifact"]),
];
const STAGES: [&str; 7] = ["coordinator", "crawl", "clean", "train", "evaluate", "infer", "drift"];

#[test]
fn arrows_point_down_only() {
    let known: BTreeMap<&str, &[&str]> = LAYERS.into_iter().collect();
    for (package, dependencies) in dependencies() {
        let Some(name) = package.strip_prefix("sixfold-") else { continue };
        let ours: Vec<&str> = dependencies.iter().filter_map(|one| one.strip_prefix("sixfold-")).collect();
        if let Some(allowed) = known.get(name) {
            for one in &ours {
                assert!(allowed.contains(one), "runtime/{name} must not know {one}");
            }
        } else if STAGES.contains(&name) {
            for one in &ours {
                assert!(
                    known.contains_key(one),
                    "actors/{name} must not know {one}: stages exchange artefacts"
                );
            }
        } else {
            assert!(["tests", "bench"].contains(&name), "{package} has no place in the layers yet");
        }
    }
}

#[test]
fn each_library_that_leaks_has_one_home() {
    let homes: [(&str, &[&str]); 11] = [
        ("quinn", &["sixfold-transport"]),
        ("rcgen", &["sixfold-transport"]),
        ("bincode", &["sixfold-wire"]),
        ("cudarc", &["sixfold-tensor"]),
        ("rusqlite", &["sixfold-coordinator"]),
        ("axum", &["sixfold"]),
        ("clap", &["sixfold", "sixfold-bench"]),
        ("anyhow", &["sixfold", "sixfold-bench"]),
        ("indicatif", &["sixfold"]),
        ("parquet", &["sixfold-clean"]),
        ("scraper", &["sixfold-crawl", "sixfold-clean"]),
    ];
    for (package, dependencies) in dependencies() {
        for (library, home) in homes {
            let allowed = home.contains(&package.as_str());
            assert!(allowed || !dependencies.contains(library), "{package} must not know {library}");
        }
    }
}

#[test]
fn unsafe_is_where_it_is_expected() {
    let marker = Regex::new(r"\bunsafe\s*(\{|fn|impl|extern)").unwrap();
    let homes = [
        "runtime/tensor/",
        "runtime/transport/src/tensor/shared_memory",
        "runtime/artifact/src/mmap",
        "runtime/formats/src/mapped_file",
    ];
    for path in files(".rs") {
        let name = relative(&path);
        let text = std::fs::read_to_string(&path).unwrap();
        let found = text.lines().any(|line| !line.trim_start().starts_with("//") && marker.is_match(line));
        let allowed = homes.iter().any(|home| name.starts_with(home)) || name == "tests/tests/tidiness.rs";
        assert!(!found || allowed, "{name} has unsafe code; it belongs in {homes:?}");
    }
}

/// Where model and parallel have numbers in the host's memory, and which.
const ON_THE_HOST: [(&str, &str); 16] = [
    ("runtime/model/src/unit_buffer", "units for files"),
    ("runtime/model/src/hugging_face", "units for files"),
    ("runtime/model/src/init", "units before they are uploaded"),
    ("runtime/model/src/frozen", "units before they are compressed"),
    ("runtime/model/src/lora", "units for files, of adapters and weights that become one"),
    ("runtime/model/src/rope", "frequencies, of which the device makes its table"),
    ("runtime/model/src/decoder/weights", "units before they are uploaded"),
    ("runtime/model/src/decoder/logits", "logits after an explicit copy"),
    (
        "runtime/model/src/decoder/hidden_states",
        "hidden states after an explicit copy, and what texts' come to",
    ),
    ("runtime/model/src/sampling", "logits after an explicit copy"),
    ("runtime/model/src/optimizer", "a sum of squares a block and a unit"),
    ("runtime/parallel/src/partition", "a sum of squares a block"),
    ("runtime/parallel/src/health", "what ranks tell of themselves"),
    ("runtime/parallel/src/pipeline", "losses after an explicit copy"),
    ("runtime/parallel/src/score", "log-probabilities, which are losses"),
    ("runtime/parallel/src/trainer", "losses, and what ranks tell of themselves"),
];

#[test]
fn model_and_parallel_compute_on_a_device_that_they_do_not_know() {
    let slices = Regex::new(r"\[f32\]|Vec<f32>|\[f32; ").unwrap();
    let devices = Regex::new(r"\bcpu\b|Device::").unwrap();
    let mut seen = 0;
    for path in files(".rs") {
        let name = relative(&path);
        let is_test = name.contains("test") || name.contains("faults") || name.ends_with("verify/gang.rs");
        if is_test || !(name.starts_with("runtime/model/src") || name.starts_with("runtime/parallel/src")) {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let lines = text.lines().take_while(|line| *line != "#[cfg(test)]");
        let on_the_host = ON_THE_HOST.iter().any(|(allowed, _)| name.starts_with(allowed));
        for line in lines.filter(|line| !line.trim_start().starts_with("//")) {
            seen += 1;
            assert!(!devices.is_match(line), "{name} knows which device it is: {line}");
            assert!(on_the_host || !slices.is_match(line), "{name} has numbers on the host: {line}");
        }
    }
    assert!(seen > 1000, "only {seen} lines were looked at");
}

#[test]
fn no_module_is_named_after_nothing() {
    let banned = ["util", "utils", "common", "helper", "helpers", "misc", "manager", "mod"];
    for path in files(".rs") {
        for part in path.strip_prefix(root()).unwrap().with_extension("").iter() {
            let part = part.to_str().unwrap();
            assert!(
                !banned.contains(&part),
                "{}: `{part}` says nothing about what is inside",
                relative(&path)
            );
        }
    }
}

#[test]
fn files_stay_short() {
    for path in files(".rs") {
        let lines = std::fs::read_to_string(&path).unwrap().lines().count();
        assert!(lines <= 700, "{} has {lines} lines: split it by responsibility", relative(&path));
    }
}

#[test]
fn every_crate_and_module_says_what_it_is() {
    for path in files(".rs") {
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("//!"), "{} does not begin with what it is", relative(&path));
    }
}

/// What stands between the fences of a document is compiled unless it says that it is something else.
#[test]
fn examples_are_where_they_are_compiled() {
    let fence = Regex::new(r"^\s*//[/!]\s*```(\S*)").unwrap();
    let mut seen = 0;
    for path in files(".rs") {
        let text = std::fs::read_to_string(&path).unwrap();
        let fences = text.lines().filter_map(|line| fence.captures(line));
        let languages: Vec<String> = fences.step_by(2).map(|opens| opens[1].to_owned()).collect();
        seen += languages.len();
        if languages.iter().all(|language| ["text", "toml"].contains(&language.as_str())) {
            continue;
        }
        let package = path.ancestors().find(|folder| folder.join("Cargo.toml").exists()).unwrap();
        let manifest = std::fs::read_to_string(package.join("Cargo.toml")).unwrap();
        let has_doc_tests = package.join("src/lib.rs").exists() && !manifest.contains("doctest = false");
        assert!(has_doc_tests, "{} has an example; its package has `doctest = false`", relative(&path));
    }
    assert!(seen > 5, "only {seen} fences were seen");
}

/// Where one binary has several files of tests, each is a module of it.
#[test]
fn no_file_of_tests_is_forgotten() {
    let mut seen = 0;
    for manifest in files("Cargo.toml") {
        let text = std::fs::read_to_string(&manifest).unwrap();
        if !text.contains("autotests = false") {
            continue;
        }
        let folder = manifest.parent().unwrap().join("tests");
        let inside: Vec<PathBuf> =
            files(".rs").into_iter().filter(|path| path.parent() == Some(&folder)).collect();
        let sources: String = inside.iter().map(|path| std::fs::read_to_string(path).unwrap()).collect();
        for path in &inside {
            let name = path.file_stem().unwrap().to_str().unwrap();
            let target = text.contains(&format!("path = \"tests/{name}.rs\""));
            let module = sources.lines().any(|line| line == format!("mod {name};"));
            assert!(target || module, "{} is compiled by nothing", relative(path));
            seen += usize::from(module);
        }
    }
    assert!(seen > 10, "only {seen} modules were seen");
}

/// A package that is not named there would be compiled as dependencies are: without lines in its backtraces.
#[test]
fn the_profile_names_every_package() {
    let workspace = std::fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let workspace: toml::Table = toml::from_str(&workspace).unwrap();
    for package in dependencies().into_keys() {
        let profile = &workspace["profile"]["release"]["package"];
        let debug = profile.get(&package).map(|profile| &profile["debug"]);
        assert_eq!(debug.and_then(toml::Value::as_str), Some("line-tables-only"), "{package}");
    }
}

#[test]
fn links_in_documents_lead_somewhere() {
    let link = Regex::new(r"\]\(([^)#\s]+)(#[^)\s]*)?\)").unwrap();
    for path in files(".md") {
        let text = std::fs::read_to_string(&path).unwrap();
        for target in link.captures_iter(&text).map(|found| found[1].to_owned()) {
            if target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            let leads_to = path.parent().unwrap().join(&target);
            assert!(leads_to.exists(), "{} links to {target}, which is not there", relative(&path));
        }
    }
}

#[test]
fn invariants_name_tests_that_exist() {
    let architecture = std::fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let sources: String = files(".rs").iter().map(|path| std::fs::read_to_string(path).unwrap()).collect();
    let row = Regex::new(r"(?m)^\| (I-\w+) \|.*\| `([\w:]+)` \|$").unwrap();
    let mut labels = BTreeSet::new();
    for found in row.captures_iter(&architecture) {
        let test = found[2].rsplit("::").next().unwrap();
        assert!(sources.contains(&format!("fn {test}(")), "{}: there is no test `{test}`", &found[1]);
        assert!(labels.insert(found[1].to_owned()), "{} is there twice", &found[1]);
    }
    assert!(labels.len() >= 10, "the table of invariants was not found");
}

#[test]
fn licences_of_dependencies_are_known() {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1"])
        .current_dir(root())
        .output()
        .unwrap();
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let policy: toml::Table =
        toml::from_str(&std::fs::read_to_string(root().join("deny.toml")).unwrap()).unwrap();
    let allowed: Vec<&str> =
        policy["licenses"]["allow"].as_array().unwrap().iter().map(|one| one.as_str().unwrap()).collect();
    for package in metadata["packages"].as_array().unwrap() {
        let (name, licence) = (package["name"].as_str().unwrap(), package["license"].as_str().unwrap_or(""));
        if package["source"].is_null() {
            continue;
        }
        // An `OR` needs one known licence, an `AND` all; parentheses only group such choices.
        let known = licence
            .replace(['(', ')'], "")
            .replace('/', " OR ")
            .split(" AND ")
            .all(|part| part.split(" OR ").any(|one| allowed.contains(&one.trim())));
        assert!(known, "{name} has the licence {licence:?}, which deny.toml does not allow");
    }
}
