//! Where the time of a step goes on one rank: [`StepProfile`].
//!
//! Measured around whole collectives, with two readings of the clock each; what of a collective is *waiting* the links
//! know ([`TensorLink::waited`](sixfold_transport::link::TensorLink::waited)), since only they can tell a peer that is
//! late from numbers that are moved and added. Nothing here is shared between threads.

use std::time::{Duration, Instant};

use crate::links::RankLinks;

/// An exchange between ranks, by what it is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Collective {
    /// Sums, and maxima of the head, over the tensor-parallel group.
    TensorAllReduce,
    /// Sums of which each rank of that group keeps its rows.
    TensorReduceScatter,
    /// The rows of all ranks of that group.
    TensorAllGather,
    /// Activations and gradients from neighbouring stages. Its waiting is the pipeline's bubble.
    PipelineReceive,
    /// The same on their way out: handed over, they wait for nobody.
    PipelineSend,
    /// Gradients over replicas that share the optimizer: the first half of a sum.
    GradientReduceScatter,
    /// Gradients that every replica updates: all, or those that are not shared.
    GradientAllReduce,
    /// Parameters that other replicas have updated.
    ParameterAllGather,
    /// Gradients of a table that both ends of a pipeline have.
    EmbeddingAllReduce,
    /// Loss, table of squares, and what ranks tell of themselves.
    Figures,
}

impl Collective {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 10] = [
        Self::TensorAllReduce,
        Self::TensorReduceScatter,
        Self::TensorAllGather,
        Self::PipelineReceive,
        Self::PipelineSend,
        Self::GradientReduceScatter,
        Self::GradientAllReduce,
        Self::ParameterAllGather,
        Self::EmbeddingAllReduce,
        Self::Figures,
    ];

    /// Its name in figures, for example `tensor_all_reduce`.
    pub fn name(self) -> &'static str {
        match self {
            Self::TensorAllReduce => "tensor_all_reduce",
            Self::TensorReduceScatter => "tensor_reduce_scatter",
            Self::TensorAllGather => "tensor_all_gather",
            Self::PipelineReceive => "pipeline_receive",
            Self::PipelineSend => "pipeline_send",
            Self::GradientReduceScatter => "gradient_reduce_scatter",
            Self::GradientAllReduce => "gradient_all_reduce",
            Self::ParameterAllGather => "parameter_all_gather",
            Self::EmbeddingAllReduce => "embedding_all_reduce",
            Self::Figures => "figures",
        }
    }
}

/// What collectives of one kind took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Spent {
    /// How often.
    pub calls: u64,
    /// Wall time, in which nothing else was computed.
    pub wall: Duration,
    /// The part of it in which the rank waited for others; the rest moves and adds numbers.
    pub waited: Duration,
    /// Bytes that the rank sent.
    pub bytes_sent: u64,
}

impl Spent {
    fn add(&mut self, other: &Self) {
        self.calls += other.calls;
        self.wall += other.wall;
        self.waited += other.waited;
        self.bytes_sent += other.bytes_sent;
    }
}

/// What each kind of collective took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Spending([Spent; Collective::ALL.len()]);

impl Spending {
    pub(crate) fn get(&self, collective: Collective) -> Spent {
        self.0[collective as usize]
    }

    /// Counts a call that began with `span`; its links have waited and sent so much by now.
    pub(crate) fn count(&mut self, collective: Collective, span: Span, waited: Duration, bytes_sent: u64) {
        let wall = span.since.elapsed();
        self.0[collective as usize].add(&Spent {
            calls: 1,
            wall,
            waited: waited.saturating_sub(span.waited).min(wall),
            bytes_sent: bytes_sent.saturating_sub(span.bytes_sent),
        });
    }

    fn add(&mut self, other: &Self) {
        self.0.iter_mut().zip(&other.0).for_each(|(sum, spent)| sum.add(spent));
    }
}

/// The beginning of a collective.
#[derive(Clone, Copy)]
pub(crate) struct Span {
    since: Instant,
    waited: Duration,
    bytes_sent: u64,
}

impl Span {
    /// Begins now, when the links have waited and sent so much.
    pub(crate) fn begin(waited: Duration, bytes_sent: u64) -> Self {
        Self { since: Instant::now(), waited, bytes_sent }
    }
}

impl RankLinks {
    /// Begins a collective over any of the links.
    pub(crate) fn begin(&self) -> Span {
        Span::begin(self.waited(), self.bytes_sent())
    }

    /// Ends a collective that was begun.
    pub(crate) fn end(&mut self, collective: Collective, span: Span) {
        let (waited, bytes_sent) = (self.waited(), self.bytes_sent());
        self.spending.count(collective, span, waited, bytes_sent);
    }

    /// What was spent since the last call.
    pub(crate) fn take_spending(&mut self) -> Spending {
        let mut spending = std::mem::take(&mut self.spending);
        spending.add(&std::mem::take(&mut self.tensor.spending));
        spending
    }
}

/// Where the wall time of steps went on this rank. The parts do not overlap.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StepProfile {
    /// All of it.
    pub wall: Duration,
    /// Updating the parameters.
    pub optimizer: Duration,
    spending: Spending,
}

impl StepProfile {
    pub(crate) fn new(wall: Duration, optimizer: Duration, spending: Spending) -> Self {
        Self { wall, optimizer, spending }
    }

    /// What collectives of a kind took.
    pub fn of(&self, collective: Collective) -> Spent {
        self.spending.get(collective)
    }

    /// What is left: passes through the model, and what is done with gradients before the update.
    pub fn compute(&self) -> Duration {
        let collectives: Duration = Collective::ALL.iter().map(|one| self.of(*one).wall).sum();
        self.wall.saturating_sub(self.optimizer + collectives)
    }

    /// Adds another step.
    pub fn add(&mut self, other: &Self) {
        self.wall += other.wall;
        self.optimizer += other.optimizer;
        self.spending.add(&other.spending);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use sixfold_model::MicroBatch;
    use sixfold_tensor::Device;
    use sixfold_topology::{ParallelPlan, Rank};
    use sixfold_transport::link::{LinkError, TensorLink};

    use super::*;
    use crate::job::StepBatch;
    use crate::trainer::Trainer;
    use crate::verify::gang::{Links, connect, run_gang};
    use crate::verify::small::{batch, config, job};

    const GROUPS: usize = 4;

    /// The profile of a step on every rank.
    fn profiles(plan: &str, links: Vec<Links>, zero_stage: u8) -> Vec<StepProfile> {
        let (job, plan): (_, ParallelPlan) = (job(config()), plan.parse().unwrap());
        let ranks = run_gang(&plan, links, |rank, links| {
            let links = RankLinks::new(&plan, rank, links).unwrap();
            let mut trainer = Trainer::new(&job, &plan, rank, links, Device::cpu().stream()).unwrap();
            if zero_stage > 0 {
                trainer.share_optimizer();
            }
            trainer.step(0, batch(&job, GROUPS, 2, 0, plan.groups(rank, GROUPS))).unwrap();
            Ok(trainer)
        });
        ranks.unwrap().iter().map(|trainer| *trainer.profile()).collect()
    }

    fn used(profile: &StepProfile) -> Vec<&'static str> {
        let used = Collective::ALL.into_iter().filter(|one| profile.of(*one).calls > 0);
        used.map(Collective::name).collect()
    }

    #[test]
    fn the_parts_of_a_step_are_within_it_and_each_plan_has_its_collectives() {
        let by_plan: [(&str, u8, &[&str]); 5] = [
            ("tp1", 0, &["figures"]),
            ("tp2", 0, &["tensor_all_reduce", "tensor_reduce_scatter", "tensor_all_gather", "figures"]),
            ("pp2", 0, &["pipeline_receive", "pipeline_send", "figures"]),
            ("dp2", 0, &["gradient_all_reduce", "figures"]),
            (
                "dp2",
                1,
                &["gradient_reduce_scatter", "gradient_all_reduce", "parameter_all_gather", "figures"],
            ),
        ];
        for (plan, zero_stage, expected) in by_plan {
            for profile in profiles(plan, connect(&plan.parse().unwrap()), zero_stage) {
                assert_eq!(used(&profile), expected, "{plan}");
                let parts = Collective::ALL.iter().map(|one| profile.of(*one).wall).sum::<Duration>();
                assert_eq!(profile.compute() + profile.optimizer + parts, profile.wall, "{plan}");
                assert!(profile.compute() > Duration::ZERO && profile.optimizer > Duration::ZERO, "{plan}");
                for one in Collective::ALL.map(|one| profile.of(one)) {
                    assert!(one.waited <= one.wall, "{plan}: {one:?}");
                }
                let sent = Collective::ALL.iter().map(|one| profile.of(*one).bytes_sent).sum::<u64>();
                assert_eq!(sent > 0, plan != "tp1", "{plan}");
            }
        }
    }

    #[test]
    fn every_byte_that_is_sent_is_counted_once() {
        let (job, plan): (_, ParallelPlan) = (job(config()), "dp2.tp2.pp2".parse().unwrap());
        let ranks = run_gang(&plan, connect(&plan), |rank, links| {
            let links = RankLinks::new(&plan, rank, links).unwrap();
            let mut trainer = Trainer::new(&job, &plan, rank, links, Device::cpu().stream()).unwrap();
            trainer.share_optimizer();
            let mut sum = StepProfile::default();
            for step in 0..2 {
                trainer.step(step, batch(&job, GROUPS, 2, step, plan.groups(rank, GROUPS))).unwrap();
                sum.add(trainer.profile());
            }
            let counted = Collective::ALL.iter().map(|one| sum.of(*one).bytes_sent).sum::<u64>();
            assert_eq!(counted, trainer.bytes_sent());
            Ok(trainer)
        });
        assert_eq!(ranks.unwrap().len(), 8);
    }

    /// Attention goes back through five products where the formula counts four.
    #[test]
    fn the_published_count_of_operations_is_what_kernels_do() {
        let tokens = 10;
        for family in sixfold_model::Family::ALL {
            // As many key-value heads as query heads: no shard has a copy.
            let job = job(sixfold_model::ModelConfig {
                family,
                num_key_value_heads: 8,
                hidden_size: 32,
                ..config()
            });
            let plan: ParallelPlan = "tp1".parse().unwrap();
            let ids = || (0..tokens as u32).collect::<Vec<_>>();
            let micro_batch = MicroBatch::of_documents(ids(), ids(), tokens);
            let batch = StepBatch { groups: vec![vec![micro_batch]], global_targets: tokens as u64 };
            let ranks = run_gang(&plan, connect(&plan), |rank, links| {
                let links = RankLinks::new(&plan, rank, links).unwrap();
                let mut trainer = Trainer::new(&job, &plan, rank, links, Device::cpu().stream()).unwrap();
                trainer.step(0, batch.clone()).unwrap();
                Ok(trainer)
            });
            let work = ranks.unwrap()[0].work();
            assert_eq!(work.kv_copies, 0);
            let counted = (work.projections + work.head) as f64 + work.attention as f64 * 6.0 / 7.0;
            let formula = job.geometry.config.training_flop_per_token(tokens) * tokens as f64;
            assert!(
                (counted / formula - 1.0).abs() < 1e-9,
                "{family:?}: {counted} counted, {formula} expected"
            );
        }
    }

    /// A link on which everything takes longer to arrive.
    struct LateLink {
        link: Box<dyn TensorLink>,
        delay: Duration,
        waited: Duration,
    }

    impl TensorLink for LateLink {
        fn send(&mut self, message: &[u8]) -> Result<(), LinkError> {
            self.link.send(message)
        }

        fn recv(&mut self, message: &mut [u8]) -> Result<(), LinkError> {
            std::thread::sleep(self.delay);
            self.waited += self.delay;
            self.link.recv(message)
        }

        fn bytes_sent(&self) -> u64 {
            self.link.bytes_sent()
        }

        fn waited(&self) -> Duration {
            self.link.waited() + self.waited
        }

        fn kind(&self) -> &'static str {
            self.link.kind()
        }
    }

    /// The links of a gang, of which the one from `peer` to `rank` is late.
    fn late(plan: &str, rank: Rank, peer: Rank, delay: Duration) -> Vec<Links> {
        let mut links = connect(&plan.parse().unwrap());
        let of_rank: &mut HashMap<_, _> = &mut links[rank.index()];
        let link = of_rank.remove(&peer).unwrap();
        of_rank.insert(peer, Box::new(LateLink { link, delay, waited: Duration::ZERO }));
        links
    }

    #[test]
    fn a_slow_link_shows_in_the_collective_that_uses_it() {
        let (plan, delay) = ("dp2.tp2.pp2", Duration::from_millis(15));
        let place = |rank| plan.parse::<ParallelPlan>().unwrap().coordinates(rank);
        for slow in [
            Collective::TensorAllReduce,
            Collective::PipelineReceive,
            Collective::GradientReduceScatter,
            Collective::ParameterAllGather,
        ] {
            let is_peer = |rank: &Rank| {
                let place = place(*rank);
                (place.data, place.tensor, place.pipeline)
                    == match slow {
                        Collective::TensorAllReduce => (0, 1, 0),
                        Collective::PipelineReceive => (0, 0, 1),
                        _ => (1, 0, 0),
                    }
            };
            let peer = (0..8).map(Rank).find(is_peer).unwrap();
            let spent = profiles(plan, late(plan, Rank(0), peer, delay), 1)[0].of(slow);
            assert!(spent.waited >= delay && spent.wall >= spent.waited, "{slow:?}: {spent:?}");
        }
    }
}
