//! Tests of `log`.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use sixfold_wire::id::Epoch;

use super::*;

fn cluster() -> ClusterId {
    ClusterId::from("c1")
}

fn entry(epoch: u64) -> Entry {
    Entry { at_ms: epoch * 10, event: Event::Started(Epoch(epoch)) }
}

fn written(path: &Path, count: u64) -> Vec<Entry> {
    let (mut log, _) = EventLog::open(path, &cluster()).unwrap();
    let entries: Vec<Entry> = (1..=count).map(entry).collect();
    log.append(&entries).unwrap();
    entries
}

fn file() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("coordinator.sqlite");
    (folder, path)
}

#[test]
fn gives_back_what_was_appended() {
    let (_folder, path) = file();
    let mut expected = written(&path, 3);
    let (mut log, entries) = EventLog::open(&path, &cluster()).unwrap();
    assert_eq!(entries, expected);
    log.append(&[entry(4)]).unwrap();
    log.append(&[]).unwrap();
    drop(log);
    expected.push(entry(4));
    assert_eq!(EventLog::open(&path, &cluster()).unwrap().1, expected);
}

#[test]
fn cannot_be_opened_twice() {
    let (_folder, path) = file();
    let (log, _) = EventLog::open(&path, &cluster()).unwrap();
    assert!(matches!(EventLog::open(&path, &cluster()), Err(LogError::Locked { .. })));
    drop(log);
    assert!(EventLog::open(&path, &cluster()).is_ok());
}

#[test]
fn refuses_the_log_of_another_cluster_and_other_files() {
    let (folder, path) = file();
    written(&path, 1);
    let other = EventLog::open(&path, &ClusterId::from("c2"));
    assert!(matches!(other, Err(LogError::OtherCluster { .. })));

    let text = folder.path().join("notes.txt");
    fs::write(&text, "not a database, and longer than the header of one would have to be ".repeat(20))
        .unwrap();
    assert!(matches!(EventLog::open(&text, &cluster()), Err(LogError::Foreign { .. })));

    let foreign = folder.path().join("foreign.sqlite");
    Connection::open(&foreign).unwrap().execute_batch("CREATE TABLE music (id INTEGER)").unwrap();
    assert!(matches!(EventLog::open(&foreign, &cluster()), Err(LogError::Foreign { .. })));

    let newer = Connection::open(&path).unwrap();
    newer.pragma_update(None, "user_version", 99).unwrap();
    drop(newer);
    assert!(matches!(EventLog::open(&path, &cluster()), Err(LogError::Format { found: 99, .. })));
}

#[test]
fn notices_changed_and_missing_entries() {
    for (damage, position) in [
        ("UPDATE events SET body = '{\"Started\":9}' WHERE position = 2", 2),
        ("UPDATE events SET at_ms = 7 WHERE position = 3", 3),
        ("DELETE FROM events WHERE position = 2", 2),
    ] {
        let (_folder, path) = file();
        written(&path, 3);
        Connection::open(&path).unwrap().execute_batch(damage).unwrap();
        let found = EventLog::open(&path, &cluster()).unwrap_err();
        assert!(matches!(found, LogError::Damaged { position: at, .. } if at == position), "{found}");
    }
}

#[test]
fn never_reads_a_damaged_file_as_a_shorter_or_other_history() {
    let (_folder, path) = file();
    let expected = written(&path, 40);
    let whole = fs::read(&path).unwrap();
    for at in (0..whole.len()).step_by(97) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        fs::write(&path, &bytes).unwrap();
        if let Ok((_, entries)) = EventLog::open(&path, &cluster()) {
            assert_eq!(entries, expected, "byte {at}: a flip may only go unnoticed where nothing lies");
        }
        let _ = fs::remove_file(path.with_extension("sqlite-wal"));
    }
}

/// Not a test of its own: the process that the next test kills. It appends batches of three and
/// says how many it has appended.
#[test]
fn appends_until_killed() {
    let Some(path) = std::env::var_os("SIXFOLD_TEST_LOG") else { return };
    let (mut log, entries) = EventLog::open(Path::new(&path), &cluster()).unwrap();
    for first in (entries.len() as u64 + 1..).step_by(3) {
        log.append(&[entry(first), entry(first + 1), entry(first + 2)]).unwrap();
        let mut out = std::io::stdout().lock();
        writeln!(out, "\nappended {}", first + 2).unwrap();
        out.flush().unwrap();
    }
}

#[test]
fn a_killed_process_leaves_whole_batches_and_all_that_were_acknowledged() {
    let (_folder, path) = file();
    for kill_after in [1, 2, 7, 20] {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "log::tests::appends_until_killed", "--nocapture"])
            .env("SIXFOLD_TEST_LOG", &path)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let counts = lines.filter_map(|line| line.strip_prefix("appended ")?.parse::<usize>().ok());
        let acknowledged = counts.take(kill_after).last().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        let (_, entries) = EventLog::open(&path, &cluster()).unwrap();
        assert!(entries.len() >= acknowledged, "{} of {acknowledged}", entries.len());
        assert_eq!(entries.len() % 3, 0);
        assert!(entries.iter().zip(1..).all(|(found, number)| *found == entry(number)));
    }
}
