//! What a rank exchanges with others once its passes are done: losses, the table of squares, what ranks tell of
//! themselves, and the gradients of a tied head.

use std::sync::atomic::Ordering;

use sixfold_collective::Kind;
use sixfold_model::{GroupError, SquareSums, UnitId, tied_sums};
use sixfold_topology::Rank;

use super::Trainer;
use crate::error::StepError;
use crate::health::{NUMBERS_OF_RANK, NotFinite, Origin, RankTime, encode};
use crate::links::{receive, send};
use crate::profile::Collective;
use crate::slice::RankSlice;

impl Trainer {
    /// Gives both ends of a pipeline the sum of the gradients of the table that they share, the first stage's first.
    pub(super) fn add_tied_ends(&mut self) -> Result<(), StepError> {
        let ends = self.slice.chunks().iter().filter(|chunk| chunk.input != chunk.output);
        for chunk in ends {
            let span = self.links.begin();
            let Some(link) = self.links.other_end() else { continue };
            let sums = tied_sums(chunk, self.gradients.index());
            let (stream, mut values) = (&self.stream, self.gradients.slice_mut(sums));
            if chunk.input {
                let mut others = stream.uninit(values.len());
                receive(stream, link, Kind::Figures, others.view_mut())?;
                stream.add_assign(values.reborrow(), others.view());
                send(stream, link, Kind::Figures, values.as_view())?;
            } else {
                send(stream, link, Kind::Figures, values.as_view())?;
                receive(stream, link, Kind::Figures, values)?;
            }
            self.links.end(Collective::EmbeddingAllReduce, span);
        }
        Ok(())
    }

    /// The first rank that holds `unit`.
    fn holder(&self, unit: UnitId) -> Option<Rank> {
        let slice = |rank| RankSlice::new(&self.geometry, &self.plan, &self.layout, rank);
        self.plan.ranks().find(|&rank| slice(rank).holds(unit))
    }

    /// Where this rank's part of the step first had a number that is not finite.
    pub(super) fn not_finite(&mut self) -> Option<Origin> {
        let (stream, gradients) = (&self.stream, &self.gradients);
        let pass = self.links.tensor.leave().map(Origin::Pass);
        // Of a single replica's gradients the squares tell as much.
        if pass.is_some() || self.links.data.size() == 1 || stream.are_finite(gradients.view()) {
            return pass;
        }
        let mut units = gradients.index().iter();
        let (unit, _) = units.find(|(_, range)| !stream.are_finite(gradients.slice(range.clone())))?;
        // A tied head's gradient is still apart from the embedding's.
        let is_parameter = self.parameters.get(unit).is_some();
        Some(Origin::Gradient(if is_parameter { unit } else { UnitId::embedding(unit.shard as usize) }))
    }

    /// The first parameter whose square sum is not finite; its gradient may be.
    pub(super) fn not_finite_square(&self, squares: &SquareSums) -> Option<NotFinite> {
        let unit = squares.first_not_finite()?;
        let rank = self.holder(unit)?;
        Some(NotFinite { rank, origin: Origin::Gradient(unit) })
    }

    /// Adds the losses of the ranks that work on other data groups. Also returns what they and this rank tell of
    /// themselves, with zeros for all other ranks.
    pub(super) fn share_with_replicas(
        &mut self,
        loss: f32,
        not_finite: Option<Origin>,
    ) -> Result<(f32, Vec<f32>), StepError> {
        let lap = self.stopwatch.lap(&self.links);
        let flops = self.work.flops();
        let gflop = (flops - std::mem::replace(&mut self.told_flops, flops)) as f32 / 1e9;
        let flag = self.flag.load(Ordering::Acquire);
        let time = RankTime {
            compute_ms: lap.computed().as_secs_f32() * 1e3,
            gflop,
            bubble: lap.bubble(),
            peak_gflops: self.peak_gflops,
        };
        let own = encode(time, flag, not_finite, &self.units);
        let mut message = vec![0.0; NUMBERS_OF_RANK * self.plan.data_parallel];
        message[NUMBERS_OF_RANK * self.place.data..][..NUMBERS_OF_RANK].copy_from_slice(&own);
        message.push(loss);
        let span = self.links.begin();
        self.links.data.sum(&mut message)?;
        self.links.end(Collective::Figures, span);
        let loss = message.pop().unwrap_or(loss);
        let mut told = vec![0.0; NUMBERS_OF_RANK * self.plan.world_size()];
        for (rank, record) in
            self.plan.data_group(self.rank).into_iter().zip(message.chunks_exact(NUMBERS_OF_RANK))
        {
            told[NUMBERS_OF_RANK * rank.index()..][..NUMBERS_OF_RANK].copy_from_slice(record);
        }
        Ok((loss, told))
    }

    /// Completes the table of squares and what ranks told over the ranks of one replica, and tells all of
    /// them the last pipeline stage's loss. Every number comes from one rank and is zero elsewhere, so the
    /// sums are exact.
    pub(super) fn share_with_replica(
        &mut self,
        squares: &mut SquareSums,
        loss: f32,
        told: &[f32],
    ) -> Result<(f32, Vec<f32>), StepError> {
        let mut table = std::mem::take(&mut squares.values);
        let units = table.len();
        table.extend_from_slice(told);
        let span = self.links.begin();
        self.links.tensor.tree.sum(&mut table).map_err(|error| GroupError(Box::new(error)))?;
        table.push(loss);
        if let Some(previous) = self.links.previous.as_mut() {
            let mut before = vec![0.0; table.len()];
            previous.receive(Kind::Figures, &mut before)?;
            table.iter_mut().zip(before).for_each(|(sum, before)| *sum += before);
        }
        if let Some(next) = self.links.next.as_mut() {
            next.send(Kind::Figures, table.clone())?;
            next.receive(Kind::Figures, &mut table)?;
        }
        if let Some(previous) = self.links.previous.as_mut() {
            previous.send(Kind::Figures, table.clone())?;
        }
        self.links.end(Collective::Figures, span);
        let loss = table.pop().unwrap_or(loss);
        let told = table.split_off(units);
        squares.values = table;
        Ok((loss, told))
    }
}
