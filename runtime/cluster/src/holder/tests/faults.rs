//! Gangs that lose workers and nodes at random moments, on the real table and the real schedule: whatever is lost,
//! the gang goes on from a step that is complete, and that is no older than the newest that was known to be.

use proptest::prelude::*;

use super::*;
use crate::task::CommitSchedule;

const STATE_BYTES: usize = 10;

/// What happens next.
#[derive(Clone, Copy, Debug)]
enum Happens {
    /// All ranks do a step.
    Step,
    /// A state that is under way arrives.
    Delivery(usize),
    /// A rank's worker dies.
    Worker,
    /// A node is lost with what it holds, and comes back empty.
    Node(usize),
}

fn anything() -> impl Strategy<Value = Happens> {
    prop_oneof![
        8 => Just(Happens::Step),
        16 => any::<usize>().prop_map(Happens::Delivery),
        1 => Just(Happens::Worker),
        1 => any::<usize>().prop_map(Happens::Node),
    ]
}

/// A state on its way from a rank to a holder.
struct Message {
    rank: usize,
    to: usize,
    tag: HoldTag,
}

struct World {
    nodes: Vec<Holder>,
    ranks: usize,
    every: u64,
    epoch: u64,
    step: u64,
    schedule: CommitSchedule,
    messages: Vec<Message>,
    /// Each rank's messages of the commit under way that have not arrived.
    missing: Vec<u32>,
    /// A complete step, and how many of the two copies of its states may be lost.
    promised: (u64, usize),
}

impl World {
    fn new(nodes: usize, ranks: usize, every: u64, limit: u64) -> Self {
        Self {
            nodes: (0..nodes).map(|_| Holder::new(limit)).collect(),
            ranks,
            every,
            epoch: 1,
            step: 0,
            schedule: CommitSchedule::new(every, 0),
            messages: Vec::new(),
            missing: vec![0; ranks],
            promised: (0, 0),
        }
    }

    /// A rank's own node, and one of another failure domain.
    fn holders(&self, rank: usize) -> Vec<usize> {
        let mut holders = vec![rank % self.nodes.len(), (rank + 1) % self.nodes.len()];
        holders.dedup();
        holders
    }

    fn step(&mut self) {
        let under_way = self.missing.iter().filter(|missing| **missing > 0).count() as u32;
        self.step += 1;
        let commit = self.schedule.after_step(self.step, under_way);
        if self.schedule.complete() > self.promised.0 {
            self.promised = (self.schedule.complete(), 0);
        }
        let Some(complete) = commit else { return };
        for rank in 0..self.ranks {
            let (to, tag) = (self.holders(rank), tag(self.epoch, self.step, complete));
            self.missing[rank] = to.len() as u32;
            self.messages.extend(to.into_iter().map(|to| Message { rank, to, tag }));
        }
    }

    fn deliver(&mut self, which: usize) {
        if self.messages.is_empty() {
            return;
        }
        let Message { rank, to, tag } = self.messages.swap_remove(which % self.messages.len());
        let held = hold(&mut self.nodes[to], tag, state(rank as u64, tag.step, STATE_BYTES));
        let is_of_now = tag.epoch == Epoch(self.epoch);
        match held {
            Ok(()) if is_of_now => self.missing[rank] -= 1,
            // A state that nobody takes is offered again.
            Err(HoldError::Full { .. }) if is_of_now => self.messages.push(Message { rank, to, tag }),
            Ok(()) => {}
            Err(error) => assert!(!is_of_now, "{error}"),
        }
    }

    /// The newest step of which every rank's state is held somewhere.
    fn newest(&self) -> u64 {
        let all: Vec<(u64, Manifest)> = self.nodes.iter().flat_map(|node| node.list(GANG).0).collect();
        let has = |step: u64, rank: u64| {
            let wanted = state(rank, step, STATE_BYTES).manifest.id();
            all.iter().any(|(held, manifest)| *held == step && manifest.id() == wanted)
        };
        let complete = |step: &u64| (0..self.ranks as u64).all(|rank| has(*step, rank));
        all.iter().map(|(step, _)| *step).filter(complete).max().unwrap_or(0)
    }

    fn go_on(&mut self) -> Result<(), TestCaseError> {
        self.epoch += 1;
        let epoch = Epoch(self.epoch);
        self.nodes.iter_mut().for_each(|node| node.see(GANG, epoch));
        let step = self.newest();
        if self.promised.1 <= 1 {
            prop_assert!(step >= self.promised.0, "from {step}, {:?} was promised", self.promised);
        }
        prop_assert!(step <= self.step);
        // Until the gang has a new complete step there may be one copy only, and another node lost is one too many:
        // then a durable checkpoint stands in.
        self.promised = (step, 1);
        self.step = step;
        self.schedule = CommitSchedule::new(self.every, step);
        self.missing.fill(0);
        Ok(())
    }

    fn check(&self) -> Result<(), TestCaseError> {
        for node in &self.nodes {
            prop_assert!(node.bytes() <= node.limit_bytes);
            let held = node.list(GANG).0;
            prop_assert_eq!(node.bytes(), (held.len() * STATE_BYTES) as u64);
            // The complete step, and the one under way.
            let steps: BTreeSet<u64> = held.iter().map(|(step, _)| *step).collect();
            prop_assert!(steps.len() <= 2, "{:?}", steps);
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn whatever_dies_a_gang_goes_on_from_the_newest_step_known_to_be_complete(
        nodes in 1_usize..5,
        ranks in 1_usize..5,
        every in 1_u64..4,
        room in prop_oneof![Just(1000_u64), 30_u64..120],
        story in prop::collection::vec(anything(), 1..300),
    ) {
        let mut world = World::new(nodes, ranks, every, room);
        for happens in story {
            match happens {
                Happens::Step => world.step(),
                Happens::Delivery(which) => world.deliver(which),
                Happens::Worker => world.go_on()?,
                Happens::Node(which) => {
                    world.nodes[which % nodes] = Holder::new(room);
                    // The only failure domain takes everything with it.
                    world.promised.1 += if nodes == 1 { 2 } else { 1 };
                    world.go_on()?;
                }
            }
            world.check()?;
        }
    }
}
