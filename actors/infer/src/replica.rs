//! A replica: text in, token events out, over an engine on its own thread.
//!
//! [`Replica`] is what the [actor](crate::actor) serves to other processes, and what a single
//! process may use directly: both are a [`ReplicaClient`].

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use async_trait::async_trait;
use futures::stream::{self, Stream, StreamExt};
use tokio::sync::Semaphore;

use crate::engine::Load;
use crate::latency::Latencies;
use crate::message::{GenerateRequest, Prompt, ReplicaError, TokenEvent};
use crate::pulse::{self, SIGN_EVERY};
use crate::text::{EncodedPrompt, TextCodec};
use crate::thread::{EngineEvents, EngineHandle};

/// Token events until `Finished` or `Failed`, with signs of life where they pause. A stream that ends
/// before was cut off. Dropping it cancels the request.
pub type EventStream = Pin<Box<dyn Stream<Item = TokenEvent> + Send>>;

/// Whatever answers requests: a replica of this process, one elsewhere, or a test's.
#[async_trait]
pub trait ReplicaClient: Send + Sync {
    /// Asks for an answer.
    ///
    /// # Errors
    /// [`ReplicaError`] where the replica does not take it.
    async fn generate(&self, request: GenerateRequest) -> Result<EventStream, ReplicaError>;

    /// How full it is.
    ///
    /// # Errors
    /// [`ReplicaError`] where it does not say.
    async fn load(&self) -> Result<Load, ReplicaError>;
}

/// Prompts that are tokenized at the same time; more would take the engine's cores.
const TOKENIZING_MAX: usize = 2;

/// A served model of this process. Cheap to clone.
#[derive(Clone)]
pub struct Replica {
    inner: Arc<Inner>,
}

struct Inner {
    model: String,
    text: Arc<TextCodec>,
    engine: EngineHandle,
    prompt_bytes_max: usize,
    tokenizing: Semaphore,
    draining: AtomicBool,
    latencies: Latencies,
}

impl Replica {
    /// A replica that serves under the name `model`.
    pub fn new(model: String, text: Arc<TextCodec>, engine: EngineHandle, prompt_bytes_max: usize) -> Self {
        let inner = Inner {
            model,
            text,
            engine,
            prompt_bytes_max,
            tokenizing: Semaphore::new(TOKENIZING_MAX),
            draining: AtomicBool::new(false),
            latencies: Latencies::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// The engine.
    pub fn engine(&self) -> &EngineHandle {
        &self.inner.engine
    }

    /// Latencies of the answers so far.
    pub fn latencies(&self) -> &Latencies {
        &self.inner.latencies
    }

    /// Takes nothing new from now on; what runs goes on.
    pub fn drain(&self) {
        self.inner.draining.store(true, Ordering::Release);
    }

    fn check_length(&self, prompt: &Prompt) -> Result<(), ReplicaError> {
        let bytes = match prompt {
            Prompt::Text(text) => text.len(),
            Prompt::Tokens(tokens) => tokens.len() * size_of::<u32>(),
            Prompt::Chat(messages) => messages.iter().map(|m| m.role.len() + m.content.len()).sum(),
        };
        let most = self.inner.prompt_bytes_max;
        if bytes > most {
            return Err(ReplicaError::invalid(
                "prompt",
                format_args!("{bytes} bytes exceed the limit of {most}"),
            ));
        }
        Ok(())
    }

    async fn encode(&self, prompt: &Prompt) -> Result<EncodedPrompt, ReplicaError> {
        let lost = |error: &dyn std::fmt::Display| ReplicaError::Lost(error.to_string());
        let _permit = self.inner.tokenizing.acquire().await.map_err(|error| lost(&error))?;
        let (text, prompt) = (Arc::clone(&self.inner.text), prompt.clone());
        let encoded = tokio::task::spawn_blocking(move || text.encode(&prompt)).await;
        self.inner.engine.pulse().beat();
        encoded.map_err(|error| lost(&error))?.map_err(|error| ReplicaError::invalid("prompt", error))
    }

    /// Hands the request to the engine, once it is its turn to be tokenized.
    async fn submit(self, request: GenerateRequest) -> Result<EngineEvents, ReplicaError> {
        let prompt = self.encode(&request.prompt).await?;
        self.inner.engine.submit(request, prompt)
    }
}

#[async_trait]
impl ReplicaClient for Replica {
    async fn generate(&self, request: GenerateRequest) -> Result<EventStream, ReplicaError> {
        let started = Instant::now();
        if self.inner.draining.load(Ordering::Acquire) {
            return Err(ReplicaError::Draining);
        }
        if request.model != self.inner.model {
            return Err(ReplicaError::OtherModel { serves: self.inner.model.clone() });
        }
        request.validate()?;
        self.check_length(&request.prompt)?;
        // Tokenizing is a part of the stream: it may have to wait too, and gives signs of life.
        let events = stream::once(self.clone().submit(request)).flat_map(|submitted| match submitted {
            Ok(events) => events.left_stream(),
            Err(error) => stream::iter([TokenEvent::Failed(error)]).right_stream(),
        });
        let inner = Arc::clone(&self.inner);
        let mut answer = inner.latencies.begin(started);
        let events = events.inspect(move |event| inner.latencies.record(&mut answer, event, Instant::now()));
        let pulse = self.inner.engine.pulse().clone();
        Ok(Box::pin(pulse::with_signs_of_life(Box::pin(events), pulse, SIGN_EVERY)))
    }

    async fn load(&self) -> Result<Load, ReplicaError> {
        Ok(self.inner.engine.load())
    }
}
