//! The monitor without its actor: observations in, verdicts out.

use crate::counts::{Divergence, SampleCounts};
use crate::error::ObserveError;
use crate::message::{DriftReport, DriftState, OBSERVED_ENTRIES_MAX, OBSERVED_TOKENS_MAX};
use crate::options::DriftOptions;
use crate::reference::Reference;
use crate::window::AskedWindow;

/// Compares what is asked with what was trained on. No clock is in it: it looks when it is told to.
#[derive(Clone, Debug)]
pub struct Monitor {
    options: DriftOptions,
    reference: Reference,
    window: AskedWindow,
    tokens_asked: u64,
    state: DriftState,
    alarms: u64,
}

/// What a look found that people should know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Drift began.
    Alarm,
    /// Drift is over.
    Recovered,
}

impl Monitor {
    /// A monitor that has seen nothing yet.
    pub fn new(options: DriftOptions, reference: Reference) -> Self {
        let window = AskedWindow::new(options.window_tokens);
        Self { options, reference, window, tokens_asked: 0, state: DriftState::TooFew, alarms: 0 }
    }

    /// Counts what was asked of `model`.
    ///
    /// # Errors
    /// [`ObserveError`] where it is about another model, too large, or has unknown tokens.
    pub fn observe(&mut self, model: &str, counts: &[(u32, u64)]) -> Result<(), ObserveError> {
        if model != self.options.model_name {
            return Err(ObserveError::OtherModel(self.options.model_name.clone()));
        }
        let tokens = counts.iter().try_fold(0_u64, |sum, (_, count)| sum.checked_add(*count));
        let Some(tokens) =
            tokens.filter(|tokens| *tokens <= OBSERVED_TOKENS_MAX && counts.len() <= OBSERVED_ENTRIES_MAX)
        else {
            return Err(ObserveError::TooLarge {
                entries: OBSERVED_ENTRIES_MAX,
                tokens: OBSERVED_TOKENS_MAX,
            });
        };
        let vocabulary = self.reference.counts.vocabulary();
        if let Some(&(token, _)) = counts.iter().find(|(token, _)| *token >= vocabulary) {
            return Err(ObserveError::Token { token, vocabulary });
        }
        let mut observation = SampleCounts::new();
        counts.iter().for_each(|(token, count)| *observation.entry(*token).or_default() += count);
        self.window.push(observation);
        self.tokens_asked = self.tokens_asked.saturating_add(tokens);
        Ok(())
    }

    /// Compares, judges, and says whether the verdict has changed for better or worse.
    pub fn look(&mut self) -> (DriftReport, Option<Change>) {
        let divergence = self.reference.counts.divergence_of(self.window.counts());
        let verdict = self.judge(divergence.js_distance);
        let before = std::mem::replace(&mut self.state, verdict);
        let change = match (before, self.state) {
            (DriftState::TooFew | DriftState::NoDrift, DriftState::Drift) => Some(Change::Alarm),
            (DriftState::Drift, DriftState::NoDrift) => Some(Change::Recovered),
            _ => None,
        };
        self.alarms += u64::from(change == Some(Change::Alarm));
        (self.report(divergence), change)
    }

    /// Drift begins above the limit and ends below a lower one.
    fn judge(&self, js_distance: f64) -> DriftState {
        let level = self.reference.noise.level(self.window.tokens());
        let limit = match self.state {
            DriftState::Drift => level.clear(self.options.effect_min),
            DriftState::TooFew | DriftState::NoDrift => level.limit(self.options.effect_min),
        };
        match self.window.tokens() < self.options.min_tokens {
            true => DriftState::TooFew,
            false if js_distance > limit => DriftState::Drift,
            false => DriftState::NoDrift,
        }
    }

    fn report(&self, divergence: Divergence) -> DriftReport {
        let level = self.reference.noise.level(self.window.tokens());
        DriftReport {
            model: self.options.model_name.clone(),
            state: self.state,
            window_tokens: self.window.tokens(),
            tokens_asked: self.tokens_asked,
            kl_nats: divergence.kl_nats,
            js_distance: divergence.js_distance,
            js_limit: level.limit(self.options.effect_min),
            alarms: self.alarms,
        }
    }
}

#[cfg(test)]
mod tests;
