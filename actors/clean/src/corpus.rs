//! Writes a corpus: documents as JSON lines and Parquet, what was rejected as JSON lines.

use std::io::Write;
use std::sync::Arc;

use arrow_array::{ArrayRef, Float64Array, RecordBatch, StringArray, UInt64Array};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;

use crate::document::{Document, Rejected, write_line};
use crate::error::CleanError;

/// Documents a Parquet row group, fewer where they are long.
const ROW_GROUP_DOCUMENTS: usize = 4096;
const ROW_GROUP_BYTES: usize = 64 << 20;

/// Takes what the reduce phase yields.
pub trait CorpusSink {
    /// Takes a document of the corpus.
    ///
    /// # Errors
    /// Where it cannot be written.
    fn document(&mut self, document: Document) -> Result<(), CleanError>;

    /// Takes a rejected one.
    ///
    /// # Errors
    /// Where it cannot be written.
    fn rejected(&mut self, rejected: Rejected) -> Result<(), CleanError>;
}

/// Writes a corpus to three files.
pub struct CorpusWriter<W: Write + Send> {
    documents: W,
    rejected: W,
    parquet: ArrowWriter<W>,
    schema: SchemaRef,
    pending: Vec<Document>,
    pending_bytes: usize,
}

/// The three files.
pub struct CorpusFiles<W> {
    /// `documents.jsonl`
    pub documents: W,
    /// `documents.parquet`
    pub parquet: W,
    /// `rejected.jsonl`
    pub rejected: W,
}

impl<W: Write + Send> CorpusWriter<W> {
    /// Begins a corpus.
    ///
    /// # Errors
    /// [`CleanError::Output`] where the Parquet file cannot be begun.
    pub fn new(files: CorpusFiles<W>) -> Result<Self, CleanError> {
        let schema = schema();
        let level = ZstdLevel::try_new(3).map_err(parquet_error)?;
        let properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(level))
            .set_created_by("sixfold".to_owned())
            .build();
        let parquet =
            ArrowWriter::try_new(files.parquet, schema.clone(), Some(properties)).map_err(parquet_error)?;
        let (documents, rejected) = (files.documents, files.rejected);
        Ok(Self { documents, rejected, parquet, schema, pending: Vec::new(), pending_bytes: 0 })
    }

    /// Ends the files and gives them back.
    ///
    /// # Errors
    /// [`CleanError::Output`] where what is left cannot be written.
    pub fn finish(mut self) -> Result<CorpusFiles<W>, CleanError> {
        self.write_row_group()?;
        let parquet = self.parquet.into_inner().map_err(parquet_error)?;
        Ok(CorpusFiles { documents: self.documents, parquet, rejected: self.rejected })
    }

    fn write_row_group(&mut self) -> Result<(), CleanError> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let batch = record_batch(&self.schema, &self.pending)?;
        self.parquet.write(&batch).and_then(|()| self.parquet.flush()).map_err(parquet_error)?;
        self.pending.clear();
        self.pending_bytes = 0;
        Ok(())
    }
}

impl<W: Write + Send> CorpusSink for CorpusWriter<W> {
    fn document(&mut self, document: Document) -> Result<(), CleanError> {
        write_line(&mut self.documents, &document).map_err(CleanError::output("documents.jsonl"))?;
        self.pending_bytes += document.text.len();
        self.pending.push(document);
        if self.pending.len() >= ROW_GROUP_DOCUMENTS || self.pending_bytes >= ROW_GROUP_BYTES {
            self.write_row_group()?;
        }
        Ok(())
    }

    fn rejected(&mut self, rejected: Rejected) -> Result<(), CleanError> {
        write_line(&mut self.rejected, &rejected).map_err(CleanError::output("rejected.jsonl"))
    }
}

/// The columns; masks stay in the JSON lines.
fn schema() -> SchemaRef {
    let text = |name: &str| Field::new(name, DataType::Utf8, false);
    let count = |name: &str| Field::new(name, DataType::UInt64, false);
    Arc::new(Schema::new(vec![
        text("id"),
        text("url"),
        text("title"),
        text("text"),
        text("language"),
        Field::new("language_confidence", DataType::Float64, false),
        count("chars"),
        count("words"),
        text("source_artifact"),
        count("source_position"),
    ]))
}

fn record_batch(schema: &SchemaRef, documents: &[Document]) -> Result<RecordBatch, CleanError> {
    let text = |value: fn(&Document) -> &str| -> ArrayRef {
        Arc::new(StringArray::from_iter_values(documents.iter().map(value)))
    };
    let count = |value: fn(&Document) -> u64| -> ArrayRef {
        Arc::new(UInt64Array::from_iter_values(documents.iter().map(value)))
    };
    let confidence =
        Float64Array::from_iter_values(documents.iter().map(|document| document.language_confidence));
    let columns = vec![
        text(|document| &document.id),
        text(|document| &document.url),
        text(|document| &document.title),
        text(|document| &document.text),
        text(|document| &document.language),
        Arc::new(confidence),
        count(|document| document.chars),
        count(|document| document.words),
        text(|document| &document.source_artifact),
        count(|document| document.source_position),
    ];
    RecordBatch::try_new(schema.clone(), columns)
        .map_err(|error| CleanError::Output { what: "documents.parquet", reason: error.to_string() })
}

fn parquet_error(error: ParquetError) -> CleanError {
    CleanError::Output { what: "documents.parquet", reason: error.to_string() }
}
