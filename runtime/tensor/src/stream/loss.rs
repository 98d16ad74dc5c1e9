//! Softmax and cross entropy over a vocabulary cut into shards; see `cpu/cross_entropy.rs` for the order of the calls.

use crate::cpu::{self, VocabularyShard};
use crate::cuda::loss;
use crate::device::Kind;
use crate::{IndexView, Stream, View, ViewMut};

impl Stream {
    /// The largest logit of each row.
    ///
    /// # Panics
    /// The shapes disagree.
    pub fn logit_maxima(&self, logits: View<'_>, shard: VocabularyShard, maxima: ViewMut<'_>) {
        match &self.device().0 {
            Kind::Cpu(_) => cpu::logit_maxima(logits.on_cpu(), shard, maxima.on_cpu()),
            Kind::Cuda(cuda) => loss::logit_maxima(cuda, logits.on_cuda(), shard, maxima.on_cuda()),
        }
    }

    /// The sum of `exp(logit - maximum)` of each row.
    ///
    /// # Panics
    /// The shapes disagree.
    pub fn logit_exp_sums(
        &self,
        logits: View<'_>,
        shard: VocabularyShard,
        maxima: View<'_>,
        sums: ViewMut<'_>,
    ) {
        match &self.device().0 {
            Kind::Cpu(_) => cpu::logit_exp_sums(logits.on_cpu(), shard, maxima.on_cpu(), sums.on_cpu()),
            Kind::Cuda(cuda) => {
                loss::logit_exp_sums(cuda, logits.on_cuda(), shard, maxima.on_cuda(), sums.on_cuda());
            }
        }
    }

    /// The logit of each row's target where this shard holds it; other rows keep their content.
    ///
    /// # Panics
    /// The shapes disagree.
    pub fn target_logits(
        &self,
        logits: View<'_>,
        shard: VocabularyShard,
        targets: IndexView<'_>,
        out: ViewMut<'_>,
    ) {
        match &self.device().0 {
            Kind::Cpu(_) => cpu::target_logits(logits.on_cpu(), shard, targets.on_cpu(), out.on_cpu()),
            Kind::Cuda(cuda) => {
                loss::target_logits(cuda, logits.on_cuda(), shard, targets.on_cuda(), out.on_cuda());
            }
        }
    }

    /// Each row's loss; zero where its target is [`IGNORED_TARGET`](crate::IGNORED_TARGET).
    ///
    /// # Panics
    /// The lengths differ.
    pub fn cross_entropy_losses(
        &self,
        maxima: View<'_>,
        sums: View<'_>,
        target_logits: View<'_>,
        targets: IndexView<'_>,
        losses: ViewMut<'_>,
    ) {
        let of_rows = [maxima, sums, target_logits];
        match &self.device().0 {
            Kind::Cpu(_) => {
                cpu::cross_entropy_losses(of_rows.map(View::on_cpu), targets.on_cpu(), losses.on_cpu());
            }
            Kind::Cuda(cuda) => {
                let of_rows = of_rows.map(View::on_cuda);
                loss::cross_entropy_losses(cuda, of_rows, targets.on_cuda(), losses.on_cuda());
            }
        }
    }

    /// Replaces the logits by their gradient, where each row's loss counts `scale` times.
    ///
    /// # Panics
    /// The shapes disagree.
    pub fn cross_entropy_gradient(
        &self,
        logits: ViewMut<'_>,
        shard: VocabularyShard,
        targets: IndexView<'_>,
        maxima: View<'_>,
        sums: View<'_>,
        scale: f32,
    ) {
        match &self.device().0 {
            Kind::Cpu(_) => {
                let (maxima, sums) = (maxima.on_cpu(), sums.on_cpu());
                cpu::cross_entropy_gradient(logits.on_cpu(), shard, targets.on_cpu(), maxima, sums, scale);
            }
            Kind::Cuda(cuda) => {
                let of_rows = [maxima, sums].map(View::on_cuda);
                let (logits, targets) = (logits.on_cuda(), targets.on_cuda());
                loss::cross_entropy_gradient(cuda, logits, shard, targets, of_rows, scale);
            }
        }
    }
}
