//! `sixfold report`: the report of a job's training.

use anyhow::Result;
use serde_json::json;
use sixfold_wire::id::JobId;

use super::{connect, print_json};
use crate::cli::{JobIdArgs, ReportArgs};
use crate::report::TrainingReport;

/// `sixfold report JOB --out FOLDER`.
pub(crate) async fn run(args: ReportArgs) -> Result<()> {
    let ReportArgs { job: JobIdArgs { id, client: client_args }, out } = args;
    let client = connect(&client_args)?;
    let report = TrainingReport::gather(&client, JobId(id)).await?;
    client.close().await;
    let path = report.write(&out)?;
    if client_args.json {
        let mut object = report.to_json();
        object["file"] = json!(path);
        print_json(&object);
    } else {
        println!("{}", path.display());
    }
    Ok(())
}
