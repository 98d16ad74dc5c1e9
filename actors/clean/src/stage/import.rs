//! The `import` task.

use sixfold_artifact::{BlobWriter, FileEntry};
use sixfold_cluster::task::{TaskContext, TaskOutput};

use super::{DOCUMENTS, DOCUMENTS_FILE, options};
use crate::document::write_line;
use crate::error::CleanError;
use crate::import;
use crate::options::ImportOptions;
use crate::progress::Progress;

/// Documents between two looks at whether to stop.
const CHECK_EVERY: u64 = 256;

pub(super) async fn run(context: &TaskContext) -> Result<TaskOutput, CleanError> {
    let options: ImportOptions = options(context)?;
    let progress = Progress::of(context);
    let mut output = TaskOutput::default();
    let (mut documents, mut bytes) = (0_u64, 0_u64);
    let mut part: Option<(BlobWriter, usize)> = None;
    for document in import::documents(&options)? {
        let document = document?;
        let (mut writer, count) = match part.take() {
            Some(part) => part,
            None => (context.store.writer()?, 0),
        };
        write_line(&mut writer, &document).map_err(CleanError::output(DOCUMENTS_FILE))?;
        documents += 1;
        bytes += document.text.len() as u64;
        if count + 1 == options.documents_per_artifact {
            publish(context, writer.finish(DOCUMENTS_FILE)?, count + 1, &mut output).await?;
        } else {
            part = Some((writer, count + 1));
        }
        if documents.is_multiple_of(CHECK_EVERY) {
            progress.check()?;
            progress.add(CHECK_EVERY, 0);
        }
    }
    if let Some((writer, count)) = part {
        publish(context, writer.finish(DOCUMENTS_FILE)?, count, &mut output).await?;
    }
    if documents == 0 {
        return Err(CleanError::Empty("the imported file has no text"));
    }
    output.metrics.insert("documents".to_owned(), documents.into());
    output.metrics.insert("text_bytes".to_owned(), bytes.into());
    Ok(output)
}

async fn publish(
    context: &TaskContext,
    file: FileEntry,
    documents: usize,
    output: &mut TaskOutput,
) -> Result<(), CleanError> {
    let mut manifest = context.manifest(DOCUMENTS).with("documents", documents as u64);
    manifest.files.push(file);
    output.artifacts.push(context.host.publish(manifest).await?);
    Ok(())
}
