//! The roles that this binary hosts, by the names that the phases of a job use.

use sixfold_clean::stage::Work;
use sixfold_cluster::role::{Hosted, Roles};
use sixfold_cluster::work::Threaded;

/// The role of one rank of a training gang.
pub(crate) const TRAIN: &str = "train";
/// The role that takes a model's folder.
pub(crate) const MODEL: &str = "model";
/// The role that crawls.
pub(crate) const CRAWL: &str = "crawl";

/// Every role; what computes for long or may crash the device has a process of its own.
pub(crate) fn all() -> Roles {
    Roles::default()
        .with(CRAWL, Hosted::Daemon, || Threaded::new(sixfold_crawl::Crawler))
        .with(Work::Import.role(), Hosted::Daemon, || Threaded::new(Work::Import))
        .with(Work::Clean.role(), Hosted::Daemon, || Threaded::new(Work::Clean))
        .with(Work::CleanReduce.role(), Hosted::Daemon, || Threaded::new(Work::CleanReduce))
        .with(Work::Instruct.role(), Hosted::Daemon, || Threaded::new(Work::Instruct))
        .with(Work::Tokenize.role(), Hosted::Daemon, || Threaded::new(Work::Tokenize))
        .with(MODEL, Hosted::Daemon, || Threaded::new(sixfold_train::ModelImporter))
        .with(TRAIN, Hosted::Worker, || Threaded::new(sixfold_train::TrainerShard::default()))
        .with(sixfold_evaluate::ROLE, Hosted::Worker, || Threaded::new(sixfold_evaluate::Evaluator))
        .with(sixfold_infer::message::ROLE, Hosted::Worker, || sixfold_infer::actor::InferenceReplica)
        .with(sixfold_drift::ROLE, Hosted::Worker, || sixfold_drift::DriftMonitor)
}
