//! Losses of batches that are not trained on, computed by the ranks of the plan: [`Trainer::evaluate`].

use sixfold_collective::Kind;
use sixfold_model::{StepSeed, Work};

use super::{Trainer, weights};
use crate::error::StepError;
use crate::job::StepBatch;
use crate::passes::passes;
use crate::pipeline::Passes;

impl Trainer {
    /// The sum of the losses of a batch's targets that count, with the parameters as they are, and without dropout: forward
    /// only. Equal on all ranks and on any plan, to the bit; losses are added in the order of a step's. It is no part of any
    /// step: profile, work and health are as they were. After an error the rank is of no further use.
    ///
    /// # Errors
    /// [`StepError`] if the batch does not fit or another rank is gone.
    pub fn evaluate(&mut self, batch: StepBatch) -> Result<f32, StepError> {
        self.check(&batch)?;
        let (micro_batches, per_sum) =
            passes(batch.groups, self.plan.pipeline_parallel, self.execution.pass_tokens);
        self.draw_missing_base();
        let (parameters, adapters) = weights(self.base.as_ref(), &self.parameters);
        let loss = self.pipeline.evaluate(Passes {
            micro_batches: &micro_batches,
            per_sum,
            seed: StepSeed { seed: self.seed, step: 0, dropout: 0.0, adapter_dropout: 0.0 },
            scale: 0.0,
            parameters,
            adapters,
            gradients: &mut self.gradients,
            links: &mut self.links,
            work: &mut Work::default(),
        })?;
        // Where a number is not finite, the loss is not either.
        self.links.tensor.leave();
        let mut sum = [loss];
        self.links.data.sum(&mut sum)?;
        // Only the last stage's is not zero.
        if let Some(previous) = self.links.previous.as_mut() {
            let mut before = [0.0];
            previous.receive(Kind::Figures, &mut before)?;
            sum[0] += before[0];
        }
        if let Some(next) = self.links.next.as_mut() {
            next.send(Kind::Figures, sum.to_vec())?;
            next.receive(Kind::Figures, &mut sum)?;
        }
        if let Some(previous) = self.links.previous.as_mut() {
            previous.send(Kind::Figures, sum.to_vec())?;
        }
        self.links.take_spending();
        Ok(sum[0])
    }
}
