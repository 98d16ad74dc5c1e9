//! Imports text that somebody already has: a plain text file or one JSON object a line, packed or not.
//!
//! It splits and bounds, and changes nothing in the text; cleaning is the clean stage's business.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use flate2::bufread::MultiGzDecoder;

use crate::document::RawDocument;
use crate::error::CleanError;
use crate::options::ImportOptions;

/// A reader of at most `bytes_max` unpacked bytes, whether the file is gzip or not.
///
/// # Errors
/// [`CleanError::File`] where it cannot be opened.
pub fn open(path: &Path, bytes_max: u64) -> Result<Box<dyn BufRead>, CleanError> {
    let refuse = |source| CleanError::File { path: path.to_owned(), source };
    let mut file = BufReader::with_capacity(1 << 18, File::open(path).map_err(refuse)?);
    let packed = file.fill_buf().map_err(refuse)?.starts_with(&[0x1f, 0x8b]);
    // One byte more than allowed tells a file of exactly the limit from a longer one.
    let limit = bytes_max.saturating_add(1);
    Ok(if packed {
        Box::new(BufReader::with_capacity(1 << 18, MultiGzDecoder::new(file)).take(limit))
    } else {
        Box::new(file.take(limit))
    })
}

/// The documents of the file that the options name, in order.
///
/// # Errors
/// [`CleanError::Options`] where not exactly one file is named, [`CleanError::File`].
pub fn documents(
    options: &ImportOptions,
) -> Result<Box<dyn Iterator<Item = Result<RawDocument, CleanError>>>, CleanError> {
    let (path, is_text) = match (&options.text, &options.jsonl) {
        (Some(path), None) => (path, true),
        (None, Some(path)) => (path, false),
        _ => return Err(CleanError::Options("an import needs one of `text` and `jsonl`".to_owned())),
    };
    if options.document_bytes_max == 0 || options.documents_per_artifact == 0 {
        return Err(CleanError::Options(
            "document_bytes_max and documents_per_artifact are at least 1".to_owned(),
        ));
    }
    let lines = Lines {
        source: open(path, options.file_bytes_max)?,
        path: path.clone(),
        line_bytes_max: options.document_bytes_max,
        bytes_left: options.file_bytes_max,
    };
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let options = options.clone();
    Ok(if is_text {
        Box::new(TextDocuments { lines, options, name, position: 0, done: false })
    } else {
        Box::new(json_documents(lines, options, name))
    })
}

/// Lines of bounded length; a longer one comes in pieces.
struct Lines {
    source: Box<dyn BufRead>,
    path: std::path::PathBuf,
    line_bytes_max: usize,
    bytes_left: u64,
}

impl Lines {
    /// The next line with its end, or nothing at the end of the file.
    fn next(&mut self) -> Result<Option<Vec<u8>>, CleanError> {
        let refuse = |source| CleanError::File { path: self.path.clone(), source };
        let mut line = Vec::new();
        let limit = self.line_bytes_max as u64;
        (&mut self.source).take(limit).read_until(b'\n', &mut line).map_err(refuse)?;
        let Some(left) = self.bytes_left.checked_sub(line.len() as u64) else {
            return Err(refuse(std::io::Error::other("the file is longer than file_bytes_max")));
        };
        self.bytes_left = left;
        Ok((!line.is_empty()).then_some(line))
    }
}

/// Parts of a text file, joined to documents.
struct TextDocuments {
    lines: Lines,
    options: ImportOptions,
    name: String,
    position: u64,
    done: bool,
}

impl TextDocuments {
    /// Lines up to the end of a document.
    fn next_text(&mut self) -> Result<Option<String>, CleanError> {
        let mut text = Vec::new();
        let mut chars = 0;
        while let Some(line) = self.lines.next()? {
            let ends_part =
                !self.options.whole && line.trim_ascii() == self.options.document_separator.as_bytes();
            let is_mark = ends_part && !line.trim_ascii().is_empty();
            if !ends_part {
                chars += line.iter().filter(|&&byte| byte & 0xc0 != 0x80).count();
            }
            if !is_mark {
                text.extend_from_slice(&line);
            }
            let is_long = text.len() >= self.options.document_bytes_max;
            let is_enough = ends_part && (is_mark || chars >= self.options.document_chars_min);
            if (is_long || is_enough) && !text.trim_ascii().is_empty() {
                break;
            }
        }
        let text = String::from_utf8_lossy(text.trim_ascii()).into_owned();
        Ok((!text.is_empty()).then_some(text))
    }
}

impl Iterator for TextDocuments {
    type Item = Result<RawDocument, CleanError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let text = self.next_text().transpose();
        self.done = !matches!(text, Some(Ok(_)));
        let position = self.position;
        self.position += 1;
        let url = format!("file:{}#{position}", self.name);
        text.map(|text| text.map(|text| RawDocument { position, url, title: String::new(), text }))
    }
}

fn json_documents(
    mut lines: Lines,
    options: ImportOptions,
    name: String,
) -> impl Iterator<Item = Result<RawDocument, CleanError>> {
    let mut line_number = 0_u64;
    let mut position = 0;
    std::iter::from_fn(move || {
        loop {
            let line = match lines.next() {
                Ok(line) => line?,
                Err(error) => return Some(Err(error)),
            };
            line_number += 1;
            if line.trim_ascii().is_empty() {
                continue;
            }
            let parsed = json_document(&line, &options, &name, position).map_err(|reason| CleanError::File {
                path: lines.path.clone(),
                source: std::io::Error::other(format!("line {line_number}: {reason}")),
            });
            position += 1;
            return Some(parsed);
        }
    })
}

fn json_document(
    line: &[u8],
    options: &ImportOptions,
    name: &str,
    position: u64,
) -> Result<RawDocument, String> {
    let object: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(line).map_err(|error| error.to_string())?;
    let field = |key: &str| object.get(key).and_then(serde_json::Value::as_str).map(str::to_owned);
    let text =
        field(&options.text_field).ok_or_else(|| format!("no text in field `{}`", options.text_field))?;
    let url = field(&options.url_field).unwrap_or_else(|| format!("file:{name}#{position}"));
    Ok(RawDocument { position, url, title: field("title").unwrap_or_default(), text })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn import(content: &[u8], change: impl FnOnce(&mut ImportOptions)) -> Result<Vec<String>, CleanError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("book.txt");
        std::fs::write(&path, content).unwrap();
        let mut options =
            ImportOptions { text: Some(path.clone()), document_chars_min: 1, ..Default::default() };
        change(&mut options);
        if options.text.is_none() {
            options.jsonl = Some(path);
        }
        documents(&options)?.map(|document| document.map(|document| document.text)).collect()
    }

    #[test]
    fn splits_text_at_blank_lines_or_marks_or_not_at_all() {
        let text = "one\ntwo\n\n\n  \nthree\r\n\r\nfour".as_bytes();
        assert_eq!(import(text, |_| ()).unwrap(), ["one\ntwo", "three", "four"]);
        assert_eq!(import(text, |o| o.document_chars_min = 8).unwrap(), ["one\ntwo", "three\r\n\r\nfour"]);
        assert_eq!(import(text, |o| o.whole = true).unwrap(), ["one\ntwo\n\n\n  \nthree\r\n\r\nfour"]);
        let marked = b"a\n\nb\n<|end|>\n<|end|>\nc\n";
        let separated = import(marked, |o| {
            o.document_separator = "<|end|>".to_owned();
            o.document_chars_min = 4000;
        });
        assert_eq!(separated.unwrap(), ["a\n\nb", "c"]);
    }

    #[test]
    fn reads_json_lines() {
        let lines = "{\"text\":\"one\",\"url\":\"u\"}\n\n{\"text\":\"二\",\"other\":[1]}\n".as_bytes();
        assert_eq!(import(lines, |o| o.text = None).unwrap(), ["one", "二"]);
        let error = import(b"{\"text\":\"a\"}\n{\"body\":\"b\"}\n", |o| o.text = None).unwrap_err();
        assert!(error.to_string().contains("line 2: no text in field `text`"), "{error}");
    }

    #[test]
    fn unpacks_and_bounds() {
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packed.write_all(&b"line\n".repeat(1000)).unwrap();
        let packed = packed.finish().unwrap();
        assert_eq!(import(&packed, |_| ()).unwrap()[0].len(), 4999);
        let error = import(&packed, |o| o.file_bytes_max = 4999).unwrap_err();
        assert!(error.to_string().contains("file_bytes_max"), "{error}");
        assert!(import(&packed, |o| o.file_bytes_max = 5000).is_ok());
        assert!(import(&vec![b'x'; 1000], |o| o.document_bytes_max = 300).unwrap().len() == 4);
        assert!(import(b"\xff\xfe broken \xc3", |_| ()).unwrap()[0].contains("broken"));
        assert!(import(b"", |_| ()).unwrap().is_empty());
    }

    #[test]
    fn needs_exactly_one_file() {
        assert!(matches!(documents(&ImportOptions::default()), Err(CleanError::Options(_))));
    }
}
