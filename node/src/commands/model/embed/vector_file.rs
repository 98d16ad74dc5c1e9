//! Vectors as one safetensors file, written as they come.

use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::json;

/// Bytes before the numbers: the header's length, and the header, filled up with spaces.
const NUMBERS_AT: usize = 256;

/// A file under another name until it is whole.
pub(super) struct VectorFile {
    target: PathBuf,
    /// Gone once it has the target's name.
    unfinished: Option<PathBuf>,
    file: BufWriter<File>,
    width: usize,
    count: usize,
}

impl VectorFile {
    pub(super) fn create(target: &Path, width: usize) -> Result<Self> {
        if target.exists() {
            bail!("{} exists; choose another place, or remove it first", target.display());
        }
        let mut unfinished = target.as_os_str().to_owned();
        unfinished.push(".unfinished");
        let unfinished = PathBuf::from(unfinished);
        let file = File::create(&unfinished).with_context(|| target.display().to_string())?;
        let mut file = BufWriter::new(file);
        file.write_all(&[b' '; NUMBERS_AT])?;
        Ok(Self { target: target.to_owned(), unfinished: Some(unfinished), file, width, count: 0 })
    }

    pub(super) fn push(&mut self, vector: &[f32]) -> Result<()> {
        let bytes: Vec<u8> = vector.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.file.write_all(&bytes).with_context(|| self.target.display().to_string())?;
        self.count += 1;
        Ok(())
    }

    pub(super) fn finish(mut self) -> Result<()> {
        self.name_tensor().with_context(|| self.target.display().to_string())?;
        if let Some(unfinished) = self.unfinished.take() {
            std::fs::rename(unfinished, &self.target).with_context(|| self.target.display().to_string())?;
        }
        Ok(())
    }

    /// Writes the header, now that it is known how many vectors there are.
    fn name_tensor(&mut self) -> std::io::Result<()> {
        let bytes = self.count * self.width * size_of::<f32>();
        let tensor = json!({"dtype": "F32", "shape": [self.count, self.width], "data_offsets": [0, bytes]});
        let header = json!({"embeddings": tensor}).to_string();
        self.file.seek(SeekFrom::Start(0))?;
        self.file.write_all(&((NUMBERS_AT - 8) as u64).to_le_bytes())?;
        self.file.write_all(header.as_bytes())?;
        self.file.flush()
    }
}

impl Drop for VectorFile {
    fn drop(&mut self) {
        if let Some(unfinished) = &self.unfinished {
            // What is left of a failed try is of no use, and if it cannot be removed the first error says more.
            let _ = std::fs::remove_file(unfinished);
        }
    }
}
