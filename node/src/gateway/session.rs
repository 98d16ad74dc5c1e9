//! An answer with what is counted about it.

use std::sync::Arc;

use futures::stream::{self, StreamExt};
use sixfold_infer::message::{GenerateRequest, TokenEvent};
use sixfold_infer::replica::EventStream;

use super::Shared;
use super::failover::{Answer, AnswerError, Patience};
use super::measure::AnswerTimes;
use super::openai::{ApiError, ChoiceEvents, Collected};

/// One choice of a response in the making.
pub(super) struct Session {
    shared: Arc<Shared>,
    model: String,
    answer: Answer,
    times: AnswerTimes,
}

impl Session {
    pub(super) fn new(shared: &Arc<Shared>, request: GenerateRequest) -> Self {
        let options = &shared.options;
        let patience = Patience { event: options.event_deadline(), replica: options.replica_wait() };
        let (model, times) = (request.model.clone(), AnswerTimes::new(&request.model));
        let answer = Answer::new(Arc::clone(&shared.pool), patience, request);
        Self { shared: Arc::clone(shared), model, answer, times }
    }

    async fn next(&mut self) -> Option<Result<TokenEvent, AnswerError>> {
        let event = self.answer.next().await?;
        match &event {
            Ok(event) => self.times.record(event),
            Err(_) => self.times.failed(),
        }
        if let Ok(TokenEvent::Started { prompt_tokens }) = &event {
            self.shared.asked.record(&self.model, prompt_tokens);
        }
        Some(event)
    }

    /// The whole answer.
    ///
    /// # Errors
    /// Where there is none.
    pub(super) async fn collect(mut self) -> Result<Collected, ApiError> {
        let mut collected = Collected::default();
        while let Some(event) = self.next().await {
            collected.add(event.map_err(ApiError::from)?);
        }
        Ok(collected)
    }

    /// The events, once the first one has come: an error before it is one of the whole response.
    ///
    /// # Errors
    /// Where there will be no answer.
    pub(super) async fn begin(mut self) -> Result<ChoiceEvents, ApiError> {
        let first = self.next().await.transpose().map_err(ApiError::from)?;
        let rest = stream::unfold(self, |mut session| async move {
            let event = session.next().await?.map_err(ApiError::from);
            Some((event, session))
        });
        Ok(stream::iter(first.map(Ok)).chain(rest).boxed())
    }

    /// The events as a replica would send them.
    pub(super) fn into_events(self) -> EventStream {
        let events = stream::unfold(self, |mut session| async move {
            let event = session.next().await?.unwrap_or_else(|error| TokenEvent::Failed(error.into()));
            Some((event, session))
        });
        events.boxed()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.times.close(self.answer.resumed());
    }
}
