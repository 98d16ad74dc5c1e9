//! Small exchanges of the whole gang outside of steps, over links along the plan's edges:
//! [`agree`] and [`collect`].

use sixfold_collective::TreeGroup;
use sixfold_topology::{ParallelPlan, Rank};
use sixfold_transport::link::{LinkError, TensorLink};

use crate::error::TrainError;
use crate::links::Links;

/// Length of a record of [`collect`]: a hash.
pub(crate) const RECORD_BYTES: usize = 32;

/// The least and the greatest of the numbers that the ranks name. Every rank calls it once, with
/// links to all of its peers in the plan, and gets the same answer.
///
/// Tensor-parallel partners agree, then the stages of each pipeline, then data-parallel partners.
pub(crate) fn agree(
    plan: &ParallelPlan,
    rank: Rank,
    links: &mut Links,
    number: u64,
) -> Result<(u64, u64), TrainError> {
    let mut range = (number, number);
    exchange_in_group(&plan.tensor_group(rank), rank, links, &mut range)?;
    let [previous, next] = neighbours(plan, rank);
    if let Some(previous) = previous {
        widen(&mut range, receive(rank, links, previous)?);
    }
    if let Some(next) = next {
        send(rank, links, next, range)?;
        range = receive(rank, links, next)?;
    }
    if let Some(previous) = previous {
        send(rank, links, previous, range)?;
    }
    exchange_in_group(&plan.data_group(rank), rank, links, &mut range)?;
    Ok(range)
}

fn exchange_in_group(
    members: &[Rank],
    rank: Rank,
    links: &mut Links,
    range: &mut (u64, u64),
) -> Result<(), TrainError> {
    for peer in partners(members, rank) {
        send(rank, links, peer, *range)?;
        widen(range, receive(rank, links, peer)?);
    }
    Ok(())
}

fn widen(range: &mut (u64, u64), other: (u64, u64)) {
    *range = (range.0.min(other.0), range.1.max(other.1));
}

fn send(rank: Rank, links: &mut Links, peer: Rank, range: (u64, u64)) -> Result<(), TrainError> {
    let mut message = [0; 16];
    message[..8].copy_from_slice(&range.0.to_le_bytes());
    message[8..].copy_from_slice(&range.1.to_le_bytes());
    link(rank, links, peer)?.send(&message).map_err(TrainError::of_link(rank))
}

fn receive(rank: Rank, links: &mut Links, peer: Rank) -> Result<(u64, u64), TrainError> {
    let mut message = [0_u8; 16];
    link(rank, links, peer)?.recv(&mut message).map_err(TrainError::of_link(rank))?;
    let (numbers, _) = message.as_chunks::<8>();
    Ok((u64::from_le_bytes(numbers[0]), u64::from_le_bytes(numbers[1])))
}

fn link(rank: Rank, links: &mut Links, peer: Rank) -> Result<&mut dyn TensorLink, TrainError> {
    match links.get_mut(&peer) {
        Some(link) => Ok(link.as_mut()),
        None => Err(missing(rank, peer)),
    }
}

fn missing(rank: Rank, peer: Rank) -> TrainError {
    TrainError::Link {
        rank,
        source: LinkError::Closed { peer: peer.to_string(), reason: "there is no link to it".to_owned() },
    }
}

/// Collects one record of each rank on the first one, by replica, pipeline stage and tensor coordinate; other ranks get
/// nothing.
///
/// A rank returns once the ranks that depend on it have what they need, so that all may go away
/// afterwards.
pub(crate) fn collect(
    plan: &ParallelPlan,
    rank: Rank,
    mut links: Links,
    record: &[u8; RECORD_BYTES],
) -> Result<Option<Vec<[u8; RECORD_BYTES]>>, TrainError> {
    let members = plan.tensor_group(rank);
    let group_links = partners(&members, rank)
        .map(|peer| links.remove(&peer).ok_or_else(|| missing(rank, peer)))
        .collect::<Result<_, _>>()?;
    let mut group =
        TreeGroup::new(plan.coordinates(rank).tensor, group_links).map_err(TrainError::of_group(rank))?;
    let mut records = group.gather(record).map_err(TrainError::of_group(rank))?;
    if let Some(records) = &mut records {
        collect_from_stages(plan, rank, &mut links, records)?;
    }
    // The first rank says that it has everything. Whoever misses that had sent its record before,
    // so an error here changes nothing.
    let _ = group.broadcast(&mut [0]);
    part(plan, rank, &mut links);
    let first = plan.coordinates(rank).pipeline == 0;
    let records = match records.filter(|_| first) {
        Some(records) => collect_from_replicas(plan, rank, &mut links, &records)?,
        None => None,
    };
    Ok(records.map(|records| records.as_chunks().0.to_vec()))
}

/// Takes the records of all replicas, on the first rank of each.
fn collect_from_replicas(
    plan: &ParallelPlan,
    rank: Rank,
    links: &mut Links,
    records: &[u8],
) -> Result<Option<Vec<u8>>, TrainError> {
    let members = plan.data_group(rank);
    let group_links = partners(&members, rank)
        .map(|peer| links.remove(&peer).ok_or_else(|| missing(rank, peer)))
        .collect::<Result<_, _>>()?;
    let mut group =
        TreeGroup::new(plan.coordinates(rank).data, group_links).map_err(TrainError::of_group(rank))?;
    let records = group.gather(records).map_err(TrainError::of_group(rank))?;
    // See the broadcast in `collect`.
    let _ = group.broadcast(&mut [0]);
    Ok(records)
}

/// Waits until the data-parallel partners have come as far; a link that is dropped may lose what
/// its peer has not read yet. Partners that are gone have been here.
fn part(plan: &ParallelPlan, rank: Rank, links: &mut Links) {
    let members = plan.data_group(rank);
    for peer in partners(&members, rank) {
        let _ = links.get_mut(&peer).map(|link| link.send(&[0]));
    }
    for peer in partners(&members, rank) {
        let _ = links.get_mut(&peer).map(|link| link.recv(&mut [0]));
    }
}

/// Takes the records of all later stages, hands them on with its own, and waits until the first
/// stage has them.
fn collect_from_stages(
    plan: &ParallelPlan,
    rank: Rank,
    links: &mut Links,
    records: &mut Vec<u8>,
) -> Result<(), TrainError> {
    let [previous, next] = neighbours(plan, rank);
    if let Some(next) = next {
        let later = plan.pipeline_parallel - plan.coordinates(rank).pipeline - 1;
        let own = records.len();
        records.resize(own * (1 + later), 0);
        link(rank, links, next)?.recv(&mut records[own..]).map_err(TrainError::of_link(rank))?;
    }
    if let Some(previous) = previous {
        let link = link(rank, links, previous)?;
        link.send(records).map_err(TrainError::of_link(rank))?;
        // See the broadcast in `collect`.
        let _ = link.recv(&mut [0]);
    }
    if let Some(next) = next {
        let _ = link(rank, links, next)?.send(&[0]);
    }
    Ok(())
}

/// The members of a group that `rank` has links to, nearest first.
fn partners(members: &[Rank], rank: Rank) -> impl Iterator<Item = Rank> {
    let index = members.iter().position(|member| *member == rank).unwrap_or(0);
    TreeGroup::partners_of(index, members.len()).filter_map(|member| members.get(member).copied())
}

fn neighbours(plan: &ParallelPlan, rank: Rank) -> [Option<Rank>; 2] {
    let stages = plan.pipeline_group(rank);
    let stage = plan.coordinates(rank).pipeline;
    [stage.checked_sub(1), Some(stage + 1)].map(|stage| stages.get(stage?).copied())
}

#[cfg(test)]
mod tests {
    use sixfold_parallel::RankLinks;

    use super::*;
    use crate::links::LinkPurpose;
    use crate::testing::LocalLinks;

    fn on_gang<T: Send>(plan: &str, each: impl Fn(&ParallelPlan, Rank, Links) -> T + Sync) -> Vec<T> {
        let plan: ParallelPlan = plan.parse().unwrap();
        let board = LocalLinks::default();
        std::thread::scope(|scope| {
            let (plan, board, each) = (&plan, &board, &each);
            let spawn = |rank| {
                scope.spawn(move || {
                    let peers = RankLinks::peers(plan, rank);
                    each(plan, rank, board.take(rank, &peers, LinkPurpose::Records))
                })
            };
            let threads: Vec<_> = plan.ranks().map(spawn).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    }

    #[test]
    fn all_ranks_learn_the_least_and_the_greatest() {
        for plan in ["tp1", "tp2", "pp3", "dp4", "dp2.tp2.pp2"] {
            for odd in [0, 1, 2] {
                let ranges = on_gang(plan, |plan, rank, mut links| {
                    let number = if rank.0 == odd { 7 } else { 20 + u64::from(rank.0) };
                    agree(plan, rank, &mut links, number).unwrap()
                });
                assert!(ranges.iter().all(|range| *range == ranges[0]), "{plan}: {ranges:?}");
                assert_eq!(ranges[0].0 == 7, (odd as usize) < ranges.len(), "{plan}");
            }
        }
    }

    #[test]
    fn records_reach_the_first_rank_in_order() {
        for plan in ["tp1", "tp4", "pp3", "dp4", "dp2.tp2.pp2"] {
            let results = on_gang(plan, |plan, rank, links| {
                collect(plan, rank, links, &[rank.0 as u8; RECORD_BYTES]).unwrap()
            });
            let parsed: ParallelPlan = plan.parse().unwrap();
            let expected: Vec<_> = parsed.ranks().map(|rank| [rank.0 as u8; RECORD_BYTES]).collect();
            assert_eq!(results[0].as_ref(), Some(&expected), "{plan}");
            assert!(results[1..].iter().all(Option::is_none), "{plan}");
        }
    }
}
