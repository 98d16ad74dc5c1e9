//! A gang of ranks as threads of this process, joined by links within it: [`run_gang`].

use std::any::Any;
use std::collections::HashMap;
use std::io;
use std::thread;
use std::time::Duration;

use sixfold_topology::{ParallelPlan, Rank};
use sixfold_transport::link::TensorLink;
use sixfold_transport::tensor::local_pair;

use crate::error::StepError;
use crate::links::RankLinks;

/// Far more than ranks of one process have under way on a link.
const WINDOW_BYTES: usize = 64 << 20;

/// Links of one rank, by peer.
pub(crate) type Links = HashMap<Rank, Box<dyn TensorLink>>;

/// Why a rank of a gang did not come to its end.
pub(crate) trait RankError: From<io::Error> + Send {
    /// The rank's thread panicked, and said this.
    fn panicked(rank: Rank, message: String) -> Self;

    /// Whether that may only be what happened to another rank.
    fn is_of_a_peer(&self) -> bool;
}

/// Whether a step that failed so may have failed because a peer was gone.
pub(crate) fn lost_a_peer(error: &StepError) -> bool {
    matches!(error, StepError::Pipeline(_) | StepError::Tensor(_) | StepError::Data(_))
}

/// The links that every rank of a plan needs. A rank that says nothing for `silence` is taken for gone.
pub(crate) fn connect(plan: &ParallelPlan, silence: Duration) -> Vec<Links> {
    let mut links: Vec<Links> = plan.ranks().map(|_| Links::new()).collect();
    for rank in plan.ranks() {
        for peer in RankLinks::peers(plan, rank).into_iter().filter(|peer| *peer > rank) {
            let (near, far) = local_pair(WINDOW_BYTES, silence);
            links[rank.index()].insert(peer, Box::new(near));
            links[peer.index()].insert(rank, Box::new(far));
        }
    }
    links
}

/// Runs `each` rank on a thread of its own and returns what they return, by rank.
///
/// A rank that fails drops its links, so that the others end too; one that is done keeps them until
/// all are done. Of several errors the one nearest to the cause is returned.
pub(crate) fn run_gang<T: Send, E: RankError>(
    plan: &ParallelPlan,
    links: Vec<Links>,
    each: impl Fn(Rank, Links) -> Result<T, E> + Sync,
) -> Result<Vec<T>, E> {
    let each = &each;
    let ended = thread::scope(|scope| {
        let threads: Vec<_> = plan
            .ranks()
            .zip(links)
            .map(|(rank, links)| {
                let thread = thread::Builder::new().name(format!("rank-{}", rank.0));
                (rank, thread.spawn_scoped(scope, move || each(rank, links)))
            })
            .collect();
        let join = |(rank, thread): (Rank, io::Result<thread::ScopedJoinHandle<'_, _>>)| {
            thread?.join().unwrap_or_else(|panic| Err(E::panicked(rank, said(panic.as_ref()))))
        };
        threads.into_iter().map(join).collect::<Vec<_>>()
    });
    let (mut done, mut failed) = (Vec::new(), Vec::new());
    for result in ended {
        match result {
            Ok(result) => done.push(result),
            Err(error) => failed.push(error),
        }
    }
    failed.into_iter().min_by_key(E::is_of_a_peer).map_or(Ok(done), Err)
}

/// What a panic said.
fn said(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("nothing").to_owned()
}
