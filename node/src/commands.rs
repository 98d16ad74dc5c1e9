//! The commands of people and programs: each asks the coordinator, or a node, and prints.

pub(crate) mod access;
pub(crate) mod artifacts;
pub(crate) mod bench;
pub(crate) mod chat;
pub(crate) mod jobs;
pub(crate) mod model;
pub(crate) mod nodes;
pub(crate) mod query;
pub(crate) mod replan;
pub(crate) mod report;
pub(crate) mod stages;
mod table;
pub(crate) mod verify;

use anyhow::Result;
use serde_json::Value;

use crate::cli::ClientArgs;
use crate::client::Client;
use crate::home::Home;

fn connect(args: &ClientArgs) -> Result<Client> {
    Client::open(Home::open(args.home.as_deref())?)
}

/// One JSON value, as the last line of standard output.
pub(crate) fn print_json(value: &Value) {
    println!("{value}");
}
