//! Logging and metrics of whole processes: each case runs in one of its own, because a process has
//! one log and one recorder.

#![allow(clippy::unwrap_used, reason = "a test ends at what it does not expect")]

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;
use sixfold_telemetry::{LogError, LogForm, LogOutput, Metrics, Process, TelemetryOptions, init};

/// Names the case that this process is to run.
const CASE: &str = "SIXFOLD_TELEMETRY_CASE";

fn worker(form: LogForm, output: LogOutput) -> TelemetryOptions {
    let process = Process {
        role: "worker".into(),
        node: Some("node-1".into()),
        job: Some("two words".into()),
        rank: Some(3),
    };
    TelemetryOptions { process, form, output, filter: None }
}

/// What a child process does; in the test run itself there is no case, and nothing to do.
#[test]
fn case() {
    let Ok(case) = std::env::var(CASE) else { return };
    let (form, path) = case.split_once(':').unwrap();
    let form = if form == "json" { LogForm::Json } else { LogForm::Human };
    let output = if path.is_empty() { LogOutput::Stderr } else { LogOutput::File(path.into()) };
    init(&worker(form, output)).unwrap();
    assert!(matches!(init(&worker(form, LogOutput::Stderr)), Err(LogError::Twice)));
    let handle = Metrics::install(&[]).unwrap();
    assert!(Metrics::install(&[]).is_err());
    metrics::counter!("case_total").increment(4);
    assert!(handle.render().contains("case_total 4\n"));
    tracing::debug!("quiet");
    let thread = std::thread::spawn(|| tracing::info!(answer = 42, "loud\nand \"clear\""));
    thread.join().unwrap();
}

fn run(form: &str, path: &str, filter: Option<&str>) -> Output {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "case", "--nocapture"]).env(CASE, format!("{form}:{path}"));
    command.env_remove("SIXFOLD_LOG");
    if let Some(filter) = filter {
        command.env("SIXFOLD_LOG", filter);
    }
    command.output().unwrap()
}

fn lines(path: &Path) -> Vec<String> {
    std::fs::read_to_string(path).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn every_json_line_names_its_process() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    for _ in 0..2 {
        let output = run("json", path.to_str().unwrap(), None);
        assert!(output.status.success(), "{output:?}");
    }
    let lines = lines(&path);
    assert_eq!(lines.len(), 2, "a second process goes on in the same file: {lines:?}");
    for line in lines {
        let line: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(line["role"], "worker");
        assert_eq!(
            (&line["node"], &line["job"], &line["rank"]),
            (&"node-1".into(), &"two words".into(), &3.into())
        );
        assert_eq!((&line["level"], &line["fields"]["answer"]), (&"INFO".into(), &42.into()));
        assert_eq!(line["fields"]["message"], "loud\nand \"clear\"");
    }
}

#[test]
fn the_environment_says_what_is_logged() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    assert!(run("human", path.to_str().unwrap(), Some("off,process=debug")).status.success());
    let lines = lines(&path);
    assert!(lines[0].contains("DEBUG"), "{lines:?}");
    assert!(lines.last().unwrap().ends_with("role=worker node=node-1 job=\"two words\" rank=3"), "{lines:?}");
    let wrong = run("human", "", Some("process=loud"));
    assert!(!wrong.status.success());
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("process=loud"), "{wrong:?}");
}

#[test]
fn stderr_has_the_lines_without_colours_where_it_is_no_terminal() {
    let output = run("human", "", None);
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("role=worker"), "{text}");
    assert!(!text.contains('\u{1b}'), "{text}");
}

#[test]
fn a_file_that_cannot_be_written_is_named() {
    let output = LogOutput::File("/nowhere/at/all".into());
    let error = init(&worker(LogForm::Human, output)).unwrap_err();
    assert!(error.to_string().contains("/nowhere/at/all"), "{error}");
    let options =
        TelemetryOptions { filter: Some("a=b=c".into()), ..worker(LogForm::Human, LogOutput::Stderr) };
    assert!(matches!(init(&options), Err(LogError::Filter { .. })));
}
