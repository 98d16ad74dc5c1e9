//! A gang of ranks as threads of one process, joined by channels.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use sixfold_model::{HostUnits, MicroBatch, UnitId, Work};
use sixfold_parallel::{
    Execution, ParameterShare, RankLinks, StepBatch, Trainer, TrainingJob, balanced_layout,
};
use sixfold_tensor::{Device, IGNORED_TARGET};
use sixfold_topology::{ParallelPlan, PipelineLayout, Rank};
use sixfold_transport::link::{LinkError, TensorLink};

/// Bits of a parameter and of its two moments.
type State = [Vec<u32>; 3];

/// Stands for a moment that another replica holds; no number of a training has these bits.
const ELSEWHERE: u32 = u32::MAX;

/// What a run came to, put together from all ranks.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Outcome {
    /// Loss, gradient norm and learning rate of each step, as every rank reported them.
    pub(crate) reports: Vec<[u32; 3]>,
    pub(crate) units: BTreeMap<UnitId, State>,
    /// Sums of losses of a batch that is not trained on, before each step and after the last.
    pub(crate) evaluations: Vec<u32>,
}

impl Outcome {
    pub(crate) fn weights_blake3(&self) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        for [parameters, _, _] in self.units.values() {
            for bits in parameters {
                hasher.update(&bits.to_le_bytes());
            }
        }
        hasher.finalize()
    }
}

/// What one rank held and did.
pub(crate) struct Account {
    pub(crate) units: Vec<UnitId>,
    pub(crate) parameters: ParameterShare,
    pub(crate) work: Work,
    pub(crate) bytes_sent: u64,
    pub(crate) moment_bytes: u64,
}

/// A run of some steps on one plan.
pub(crate) struct Run<'a> {
    pub(crate) job: &'a TrainingJob,
    /// Degrees, such as `tp2.pp2`; behind a space how stages are laid out, if not plainly: `v2` for two virtual stages
    /// each, `1+2+3` for their layers, `v2 2+1+1+1` for both.
    pub(crate) plan: &'a str,
    pub(crate) groups: usize,
    /// Tokens of a sequence.
    pub(crate) length: usize,
    pub(crate) steps: Range<u64>,
    /// State to begin with; initial parameters without.
    pub(crate) from: Option<&'a Outcome>,
    /// Two ranks that take each other's place in the trees of sums.
    pub(crate) swapped: Option<(Rank, Rank)>,
    pub(crate) execution: Execution,
    /// Whether replicas share the optimizer.
    pub(crate) shared: bool,
    /// Whether targets are left out, in some sequences nearly all of them, in some none.
    pub(crate) masked: bool,
    /// Whether a batch is evaluated between steps.
    pub(crate) evaluates: bool,
}

impl<'a> Run<'a> {
    /// Three steps of four data groups from initial parameters, computed as by default.
    pub(crate) fn new(job: &'a TrainingJob, plan: &'a str) -> Self {
        Self {
            job,
            plan,
            groups: super::GROUPS,
            length: 10,
            steps: 0..3,
            from: None,
            swapped: None,
            execution: Execution::default(),
            shared: false,
            masked: false,
            evaluates: false,
        }
    }

    /// Runs every rank in a thread. Links live until the last rank has ended.
    pub(crate) fn go(&self) -> (Outcome, Vec<Account>) {
        let (plan, layout) = parse(self.plan, self.job);
        let (plan, layout) = (&plan, &layout);
        let mut links: Vec<Option<_>> = connect(plan).into_iter().map(Some).collect();
        let results: Vec<(Outcome, Account, Trainer)> = thread::scope(|scope| {
            let ranks: Vec<_> = plan
                .ranks()
                .map(|rank| {
                    let position = self.position(rank);
                    let links = links[position.index()].take().unwrap();
                    let links = RankLinks::new(plan, position, links).unwrap();
                    scope.spawn(move || self.rank((plan, layout), rank, links))
                })
                .collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
        });
        let mut whole = Outcome {
            reports: results[0].0.reports.clone(),
            units: BTreeMap::new(),
            evaluations: results[0].0.evaluations.clone(),
        };
        let mut accounts = Vec::new();
        for (outcome, account, _) in results {
            assert_eq!(outcome.reports, whole.reports, "ranks disagree");
            assert_eq!(outcome.evaluations, whole.evaluations, "ranks disagree");
            for (unit, state) in outcome.units {
                let known = whole.units.entry(unit).or_insert_with(|| state.clone());
                for (known, bits) in known.iter_mut().flatten().zip(state.iter().flatten()) {
                    let both = *known != ELSEWHERE && *bits != ELSEWHERE;
                    assert!(!both || known == bits, "replicas of {unit} differ");
                    if *known == ELSEWHERE {
                        *known = *bits;
                    }
                }
            }
            accounts.push(account);
        }
        let mut all = whole.units.values().flatten().flatten();
        assert!(all.all(|bits| *bits != ELSEWHERE), "nobody holds some moments");
        (whole, accounts)
    }

    fn batch(&self, plan: &ParallelPlan, rank: Rank, step: u64) -> StepBatch {
        let batch = batch_of_length(self.job, plan, rank, step, (self.groups, self.length));
        if !self.masked {
            return batch;
        }
        // As the whole step has it, whatever the rank's groups are.
        let alone = "dp1".parse().unwrap();
        let all = batch_of_length(self.job, &alone, Rank(0), step, (self.groups, self.length));
        let masked = |batch: StepBatch| -> Vec<Vec<MicroBatch>> {
            batch.groups.into_iter().map(|group| group.into_iter().map(mask).collect()).collect()
        };
        let counted = |batch: &MicroBatch| batch.counted_targets() as u64;
        let global_targets = masked(all).iter().flatten().map(counted).sum();
        StepBatch { groups: masked(batch), global_targets }
    }

    fn position(&self, rank: Rank) -> Rank {
        match self.swapped {
            Some((a, b)) if rank == a => b,
            Some((a, b)) if rank == b => a,
            _ => rank,
        }
    }

    fn rank(
        &self,
        (plan, layout): (&ParallelPlan, &PipelineLayout),
        rank: Rank,
        links: RankLinks,
    ) -> (Outcome, Account, Trainer) {
        let stream = Device::strict_cpu().stream();
        let mut trainer = Trainer::with_layout(self.job, plan, layout, rank, links, stream).unwrap();
        trainer.set_execution(self.execution);
        if let Some(from) = self.from {
            restore(&mut trainer, from);
        }
        if self.shared {
            trainer.share_optimizer();
        }
        let mut evaluations = Vec::new();
        let mut evaluate = |trainer: &mut Trainer| {
            if self.evaluates {
                evaluations.push(trainer.evaluate(self.batch(plan, rank, 99)).unwrap().to_bits());
            }
        };
        let reports = self.steps.clone().map(|step| {
            evaluate(&mut trainer);
            let report = trainer.step(step, self.batch(plan, rank, step)).unwrap();
            [report.loss, report.gradient_norm, report.learning_rate].map(f32::to_bits)
        });
        let reports = reports.collect();
        evaluate(&mut trainer);
        let units: Vec<UnitId> = trainer.parameters().iter().map(|(unit, _)| unit).collect();
        let account = Account {
            units: units.clone(),
            parameters: trainer.parameter_share(),
            work: trainer.work(),
            bytes_sent: trainer.bytes_sent(),
            moment_bytes: trainer.moment_bytes(),
        };
        let [parameters, moments @ ..] = trainer.state();
        let bits_of = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
        let bits = |unit: UnitId| {
            let parameter = bits_of(parameters.unit(unit));
            let moments = moments.each_ref().map(|moment| {
                let mut all = vec![ELSEWHERE; parameter.len()];
                if let Some(part) = trainer.optimizer().parts().get(&unit) {
                    all[part.clone()].copy_from_slice(&bits_of(moment.unit(unit)));
                }
                all
            });
            let [first, second] = moments;
            [parameter, first, second]
        };
        let units = units.into_iter().map(|unit| (unit, bits(unit))).collect();
        (Outcome { reports, units, evaluations }, account, trainer)
    }
}

/// Leaves out targets: in the first sequences all but one, in others none, in some all.
fn mask(mut batch: MicroBatch) -> MicroBatch {
    let length = batch.length;
    for (row, target) in batch.targets.iter_mut().enumerate() {
        let (sample, at) = (batch.first_sample as usize + row / length, row % length);
        let counts = match sample % 5 {
            0 => at == 2,
            1 => false,
            2 => at % 3 == 0,
            _ => true,
        };
        if !counts {
            *target = IGNORED_TARGET;
        }
    }
    batch
}

/// A plan and the layout of its stages, from the text of [`Run::plan`].
pub(crate) fn parse(text: &str, job: &TrainingJob) -> (ParallelPlan, PipelineLayout) {
    let mut words = text.split(' ');
    let plan: ParallelPlan = words.next().unwrap().parse().unwrap();
    let (mut virtual_stages, mut lengths) = (1, Vec::new());
    for word in words {
        match word.strip_prefix('v') {
            Some(number) => virtual_stages = number.parse().unwrap(),
            None => lengths = word.split('+').map(|layers| layers.parse().unwrap()).collect(),
        }
    }
    let layout = if lengths.is_empty() {
        balanced_layout(&job.geometry, &plan, virtual_stages)
    } else {
        let layers = job.geometry.config.num_hidden_layers;
        PipelineLayout::new(plan.pipeline_parallel, virtual_stages, &lengths, layers)
    };
    (plan, layout.unwrap())
}

fn restore(trainer: &mut Trainer, from: &Outcome) {
    let units: Vec<UnitId> = trainer.parameters().iter().map(|(unit, _)| unit).collect();
    let mut state = trainer.state().map(HostUnits::into_owned);
    for (kind, buffer) in state.iter_mut().enumerate() {
        for unit in &units {
            let values = buffer.unit_mut(*unit).iter_mut().zip(&from.units[unit][kind]);
            values.for_each(|(value, bits)| *value = f32::from_bits(*bits));
        }
    }
    trainer.restore(state.each_ref());
}

struct ChannelLink {
    to: Sender<Vec<u8>>,
    from: Receiver<Vec<u8>>,
    sent: u64,
    waited: Duration,
}

impl TensorLink for ChannelLink {
    fn send(&mut self, message: &[u8]) -> Result<(), LinkError> {
        self.sent += message.len() as u64;
        let gone = |_| LinkError::Closed { peer: "peer".into(), reason: "its thread ended".into() };
        self.to.send(message.to_vec()).map_err(gone)
    }

    fn recv(&mut self, message: &mut [u8]) -> Result<(), LinkError> {
        let late = |_| LinkError::Timeout { peer: "peer".into(), waited_ms: 10_000 };
        let since = Instant::now();
        let got = self.from.recv_timeout(Duration::from_secs(10)).map_err(late);
        self.waited += since.elapsed();
        let got = got?;
        if got.len() != message.len() {
            let (expected, got) = (message.len(), got.len() as u64);
            return Err(LinkError::Length { peer: "peer".into(), expected, got });
        }
        message.copy_from_slice(&got);
        Ok(())
    }

    fn bytes_sent(&self) -> u64 {
        self.sent
    }

    fn waited(&self) -> Duration {
        self.waited
    }

    fn kind(&self) -> &'static str {
        "local"
    }
}

/// The links of every rank, by peer.
pub(crate) fn connect(plan: &ParallelPlan) -> Vec<HashMap<Rank, Box<dyn TensorLink>>> {
    let mut links: Vec<HashMap<Rank, Box<dyn TensorLink>>> = plan.ranks().map(|_| HashMap::new()).collect();
    for rank in plan.ranks() {
        let peers = RankLinks::peers(plan, rank);
        for peer in peers.into_iter().filter(|peer| *peer > rank) {
            let ((to_peer, from_rank), (to_rank, from_peer)) = (channel(), channel());
            let near = ChannelLink { to: to_peer, from: from_peer, sent: 0, waited: Duration::ZERO };
            let far = ChannelLink { to: to_rank, from: from_rank, sent: 0, waited: Duration::ZERO };
            links[rank.index()].insert(peer, Box::new(near));
            links[peer.index()].insert(rank, Box::new(far));
        }
    }
    links
}

/// The step's data groups that a rank works on.
pub(crate) fn batch(
    job: &TrainingJob,
    plan: &ParallelPlan,
    rank: Rank,
    step: u64,
    groups: usize,
) -> StepBatch {
    batch_of_length(job, plan, rank, step, (groups, Run::new(job, "dp1").length))
}

fn batch_of_length(
    job: &TrainingJob,
    plan: &ParallelPlan,
    rank: Rank,
    step: u64,
    (groups, length): (usize, usize),
) -> StepBatch {
    const PER_GROUP: usize = 2;
    const SEQUENCES: usize = 2;
    const SECOND_DOCUMENT: usize = 3;
    let second_document = length > SECOND_DOCUMENT;
    let vocabulary = job.geometry.config.vocab_size as u64;
    // The next token follows from the last one, so that there is something to learn.
    let token = |sample: u64, i: u64| ((sample * 31 + step * 13 + i * 5) % vocabulary) as u32;
    let micro_batch = |index: usize| {
        let first_sample = (index * SEQUENCES) as u64;
        let samples = first_sample..first_sample + SEQUENCES as u64;
        let all = |shift: u64| {
            let positions = move |sample| (shift..length as u64 + shift).map(move |i| token(sample, i));
            samples.clone().flat_map(positions).collect()
        };
        let mut batch = MicroBatch::of_documents(all(0), all(1), length);
        if second_document {
            // The second sequence of each micro-batch begins with the last tokens of a document.
            batch.document_starts.push(length + SECOND_DOCUMENT);
            batch.targets[length + SECOND_DOCUMENT - 1] = IGNORED_TARGET;
        }
        MicroBatch { first_sample, ..batch }
    };
    let own = plan.groups(rank, groups);
    let groups_of_rank =
        own.map(|group| (0..PER_GROUP).map(|i| micro_batch(group * PER_GROUP + i)).collect()).collect();
    let global_targets = (groups * PER_GROUP * (SEQUENCES * length - usize::from(second_document))) as u64;
    StepBatch { groups: groups_of_rank, global_targets }
}
