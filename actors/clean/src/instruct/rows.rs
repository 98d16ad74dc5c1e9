//! The rows of files of instruction data: a JSON list, or one JSON object a line, packed or not.

use std::collections::BTreeMap;
use std::io::{BufRead, Read};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::record::Broken;
use crate::error::CleanError;
use crate::import;

/// Longer lines are broken.
const LINE_BYTES_MAX: u64 = 64 << 20;
const BYTE_ORDER_MARK: [u8; 3] = [0xef, 0xbb, 0xbf];

/// A row, and where it stands.
pub struct Row {
    /// The file's name and the number of the row in it, from 1.
    pub place: String,
    /// The row, or why it is none.
    pub value: Result<Value, Broken>,
}

/// What is counted by reason, with the first example of each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    reasons: BTreeMap<&'static str, (u64, String)>,
}

impl Counted {
    /// Counts a row.
    pub fn add(&mut self, kind: &'static str, place: &str, reason: &dyn std::fmt::Display) {
        let (count, _) = self.reasons.entry(kind).or_insert_with(|| (0, format!("{place}: {reason}")));
        *count += 1;
    }

    /// All of them.
    pub fn total(&self) -> u64 {
        self.reasons.values().map(|(count, _)| count).sum()
    }

    /// Each reason, how often it was met, and the first row that it was met in.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64, &str)> {
        self.reasons.iter().map(|(kind, (count, example))| (*kind, *count, example.as_str()))
    }
}

/// Hands every row of the files to `take`, in order.
///
/// # Errors
/// [`CleanError::File`] where a file cannot be read, is longer than `bytes_max` unpacked, or is a list that is not JSON; and what
/// `take` says.
pub fn read(
    files: &[PathBuf],
    bytes_max: u64,
    mut take: impl FnMut(Row) -> Result<(), CleanError>,
) -> Result<(), CleanError> {
    files.iter().try_for_each(|path| read_file(path, bytes_max, &mut take))
}

fn read_file(
    path: &Path,
    bytes_max: u64,
    take: &mut impl FnMut(Row) -> Result<(), CleanError>,
) -> Result<(), CleanError> {
    let refuse = |source| CleanError::File { path: path.to_owned(), source };
    let mut source = import::open(path, bytes_max)?;
    if source.fill_buf().map_err(refuse)?.starts_with(&BYTE_ORDER_MARK) {
        source.consume(BYTE_ORDER_MARK.len());
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let first = source.fill_buf().map_err(refuse)?.iter().find(|byte| !byte.is_ascii_whitespace()).copied();
    if first == Some(b'[') {
        let mut whole = Vec::new();
        source.read_to_end(&mut whole).map_err(refuse)?;
        if whole.len() as u64 > bytes_max {
            return Err(refuse(std::io::Error::other("the file is longer than file_bytes_max")));
        }
        let rows: Vec<Value> = serde_json::from_slice(&whole).map_err(|error| refuse(error.into()))?;
        drop(whole);
        return (1..).zip(rows).try_for_each(|(number, row): (u64, Value)| {
            take(Row { place: format!("{name}, row {number}"), value: Ok(row) })
        });
    }
    let (mut left, mut number) = (bytes_max, 0_u64);
    loop {
        let mut line = Vec::new();
        let read = (&mut source).take(LINE_BYTES_MAX).read_until(b'\n', &mut line).map_err(refuse)?;
        if read == 0 {
            return Ok(());
        }
        number += 1;
        left = left
            .checked_sub(read as u64)
            .ok_or_else(|| refuse(std::io::Error::other("the file is longer than file_bytes_max")))?;
        if line.trim_ascii().is_empty() {
            continue;
        }
        let value = serde_json::from_slice(&line).map_err(|_| Broken::NotAnObject);
        take(Row { place: format!("{name}, line {number}"), value })?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(content: &[u8]) -> Result<Vec<(String, bool)>, CleanError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data.json");
        std::fs::write(&path, content).unwrap();
        let mut found = Vec::new();
        read(&[path], 1000, |row| {
            found.push((row.place, row.value.is_ok()));
            Ok(())
        })?;
        Ok(found)
    }

    #[test]
    fn lists_and_lines_are_told_apart_and_broken_lines_are_rows_too() {
        let places = |content: &[u8]| rows(content).unwrap();
        let list = " \n[{\"a\": 1},\n {\"b\": \"二\"}]".as_bytes();
        assert_eq!(
            places(list),
            [("data.json, row 1".to_owned(), true), ("data.json, row 2".to_owned(), true)]
        );
        let lines = b"\xef\xbb\xbf{\"a\": 1}\n\n{broken\n{\"b\": 2}";
        let expected = [("line 1", true), ("line 3", false), ("line 4", true)];
        assert_eq!(places(lines), expected.map(|(line, fine)| (format!("data.json, {line}"), fine)));
        assert!(places(b"").is_empty());
        assert!(matches!(rows(b"[{]"), Err(CleanError::File { .. })));
        assert!(matches!(rows(&[b' '; 1001]), Err(CleanError::File { .. })));
    }

    #[test]
    fn reasons_are_counted_with_their_first_example() {
        let mut counted = Counted::default();
        counted.add("no_answer", "f, line 2", &Broken::NoAnswer);
        counted.add("no_answer", "f, line 9", &Broken::NoAnswer);
        let all: Vec<_> = counted.iter().collect();
        assert_eq!(all, [("no_answer", 2, "f, line 2: an empty answer, or none")]);
        assert_eq!(counted.total(), 2);
    }
}
