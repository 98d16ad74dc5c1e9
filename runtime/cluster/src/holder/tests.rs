//! The table of held states: order, attempts, bound, and what it lets go.

use sixfold_artifact::FileEntry;
use sixfold_wire::id::JobId;

use super::*;

mod faults;

const GANG: GangId = GangId { job: JobId(1), phase: 2 };
const LIMIT: u64 = 1000;

fn tag(epoch: u64, step: u64, complete: u64) -> HoldTag {
    HoldTag { gang: GANG, epoch: Epoch(epoch), step, complete }
}

/// The state of a rank after a step; every state has other bytes.
fn state(rank: u64, step: u64, bytes: usize) -> Held {
    let mut content = vec![rank as u8; bytes];
    content[0] = step as u8;
    let hash = ContentHash::of(&content);
    let mut manifest = Manifest::new("checkpoint", "train").with("rank", rank).with("step", step);
    manifest.files.push(FileEntry { name: "units".to_owned(), hash, bytes: bytes as u64 });
    Held { manifest, files: vec![content.into()] }
}

fn hold(holder: &mut Holder, tag: HoldTag, state: Held) -> Result<(), HoldError> {
    holder.reserve(&tag, state.manifest.bytes())?;
    holder.put(&tag, state)
}

fn steps(holder: &Holder) -> Vec<u64> {
    holder.list(GANG).0.into_iter().map(|(step, _)| step).collect()
}

#[test]
fn keeps_a_step_until_a_newer_one_is_complete() {
    let mut holder = Holder::new(LIMIT);
    hold(&mut holder, tag(1, 5, 4), state(0, 5, 10)).unwrap();
    hold(&mut holder, tag(1, 6, 4), state(0, 6, 10)).unwrap();
    assert_eq!(steps(&holder), [5, 6], "5 may be the only complete one");
    hold(&mut holder, tag(1, 7, 6), state(0, 7, 10)).unwrap();
    assert_eq!(steps(&holder), [6, 7]);
    let late = hold(&mut holder, tag(1, 5, 4), state(1, 5, 10));
    assert_eq!(late, Err(HoldError::Old { complete: 6 }));
    assert_eq!(holder.bytes(), 20);
}

#[test]
fn refuses_an_attempt_older_than_one_that_was_seen() {
    let mut holder = Holder::new(LIMIT);
    let on_its_way = (tag(1, 5, 4), state(0, 5, 10));
    holder.reserve(&on_its_way.0, 10).unwrap();
    hold(&mut holder, tag(2, 5, 4), state(1, 5, 10)).unwrap();
    assert_eq!(hold(&mut holder, tag(1, 6, 5), state(0, 6, 10)), Err(HoldError::Stale));
    assert_eq!(holder.put(&on_its_way.0, on_its_way.1), Err(HoldError::Stale), "it was overtaken");
    assert_eq!((steps(&holder), holder.bytes()), (vec![5], 10));
}

#[test]
fn an_attempt_that_has_asked_what_is_held_is_not_overtaken_by_an_older_one() {
    let mut holder = Holder::new(LIMIT);
    hold(&mut holder, tag(1, 6, 5), state(0, 6, 10)).unwrap();
    holder.see(GANG, Epoch(3));
    assert_eq!(hold(&mut holder, tag(2, 4, 2), state(0, 4, 10)), Err(HoldError::Stale));
    assert_eq!(steps(&holder), [6]);
    hold(&mut holder, tag(3, 7, 6), state(0, 7, 10)).unwrap();
    assert_eq!(steps(&holder), [6, 7]);
}

#[test]
fn a_newer_attempt_keeps_the_step_that_it_went_on_from() {
    let mut holder = Holder::new(LIMIT);
    hold(&mut holder, tag(1, 5, 4), state(0, 5, 10)).unwrap();
    hold(&mut holder, tag(1, 6, 5), state(0, 6, 10)).unwrap();
    hold(&mut holder, tag(2, 7, 5), state(1, 7, 10)).unwrap();
    assert_eq!(steps(&holder), [5, 7], "6 was not complete");
    assert_eq!(holder.bytes(), 20);
}

#[test]
fn an_attempt_that_went_further_back_is_not_refused_for_what_was_complete_before() {
    let mut holder = Holder::new(LIMIT);
    hold(&mut holder, tag(1, 18, 17), state(0, 18, 10)).unwrap();
    hold(&mut holder, tag(2, 11, 10), state(0, 11, 10)).unwrap();
    hold(&mut holder, tag(2, 12, 11), state(0, 12, 10)).unwrap();
    assert_eq!(steps(&holder), [11, 12]);
}

#[test]
fn what_does_not_fit_is_refused_with_the_figures() {
    let mut holder = Holder::new(100);
    hold(&mut holder, tag(1, 5, 0), state(0, 5, 60)).unwrap();
    let refused = hold(&mut holder, tag(1, 6, 0), state(0, 6, 60)).unwrap_err();
    assert_eq!(refused.to_string(), "60 more bytes do not fit beside 60 that are held; the limit is 100");
    hold(&mut holder, tag(1, 6, 6), state(0, 6, 60)).unwrap();
    assert_eq!((steps(&holder), holder.bytes()), (vec![6], 60), "5 made room");
}

#[test]
fn room_for_what_did_not_arrive_is_given_back() {
    let mut holder = Holder::new(100);
    holder.reserve(&tag(1, 5, 0), 80).unwrap();
    assert!(holder.reserve(&tag(1, 5, 0), 80).is_err());
    holder.give_up(80);
    hold(&mut holder, tag(1, 5, 0), state(0, 5, 80)).unwrap();
    hold(&mut holder, tag(1, 5, 0), state(0, 5, 10)).unwrap();
    assert_eq!(holder.bytes(), 90);
}

#[test]
fn a_state_that_comes_twice_counts_once() {
    let mut holder = Holder::new(LIMIT);
    for _ in 0..3 {
        hold(&mut holder, tag(1, 5, 0), state(0, 5, 10)).unwrap();
    }
    assert_eq!((steps(&holder), holder.bytes()), (vec![5], 10));
}

#[test]
fn all_goes_when_the_gang_no_longer_runs() {
    let other = GangId { job: JobId(2), phase: 0 };
    let mut holder = Holder::new(LIMIT);
    hold(&mut holder, tag(1, 5, 0), state(0, 5, 10)).unwrap();
    holder.set_running(&[other]);
    assert_eq!(steps(&holder), [5], "the coordinator has not named it yet");
    holder.set_running(&[GANG, other]);
    holder.reserve(&tag(1, 6, 0), 10).unwrap();
    holder.set_running(&[other]);
    assert_eq!((steps(&holder), holder.bytes()), (vec![], 10), "one is on its way");
    assert_eq!(holder.put(&tag(1, 6, 0), state(0, 6, 10)), Err(HoldError::Ended));
    assert_eq!(hold(&mut holder, tag(1, 7, 0), state(0, 7, 10)), Err(HoldError::Ended));
    assert_eq!(holder.bytes(), 0);
}

#[test]
fn a_file_is_read_by_its_state_and_name() {
    let mut holder = Holder::new(LIMIT);
    let held = state(3, 5, 10);
    let id = held.manifest.id();
    hold(&mut holder, tag(1, 5, 0), held.clone()).unwrap();
    assert_eq!(holder.read(GANG, id, "units").as_ref(), Some(&held.files[0]));
    assert_eq!(holder.read(GANG, id, "losses"), None);
    assert_eq!(holder.read(GANG, state(3, 6, 10).manifest.id(), "units"), None);
}

#[test]
fn the_furthest_step_is_that_of_the_newest_attempt() {
    let mut holder = Holder::new(LIMIT);
    holder.reached(GANG, Epoch(1), 20);
    holder.reached(GANG, Epoch(1), 19);
    assert_eq!(holder.list(GANG).1, (Epoch(1), 20));
    holder.reached(GANG, Epoch(2), 18);
    holder.reached(GANG, Epoch(1), 21);
    assert_eq!(holder.list(GANG).1, (Epoch(2), 18));
}
