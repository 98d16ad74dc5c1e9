//! Signs of life: what tells a replica that is slow from one that is stuck.
//!
//! Whatever computes beats a [`Pulse`]: the model with every layer, the engine with every step, the
//! tokenizer with every prompt. While an answer has nothing to say and the pulse goes on,
//! [`TokenEvent::Alive`] is said instead, once in an interval. So a deadline for a replica's silence
//! does not depend on how long a prompt or a queue is, only on how long a layer takes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::stream::{self, Stream, StreamExt};
use tokio::time::timeout;

use crate::message::TokenEvent;

/// How long an answer may have nothing to say before a sign of life is due.
pub(crate) const SIGN_EVERY: Duration = Duration::from_secs(2);

/// Counts pieces of work. Clones count together.
#[derive(Clone, Debug, Default)]
pub struct Pulse {
    beats: Arc<AtomicU64>,
}

impl Pulse {
    /// A piece of work is done.
    pub fn beat(&self) {
        self.beats.fetch_add(1, Ordering::Relaxed);
    }

    /// Pieces of work so far.
    pub fn beats(&self) -> u64 {
        self.beats.load(Ordering::Relaxed)
    }
}

/// Puts signs of life where `events` pause for `every` and longer, as long as the pulse goes on. They
/// are made when they are read, so that none wait for a client that does not read.
pub(crate) fn with_signs_of_life<S>(
    events: S,
    pulse: Pulse,
    every: Duration,
) -> impl Stream<Item = TokenEvent> + Send
where
    S: Stream<Item = TokenEvent> + Send + Unpin,
{
    let seen = pulse.beats();
    stream::unfold((events, pulse, seen), move |(mut events, pulse, mut seen)| async move {
        loop {
            if let Ok(event) = timeout(every, events.next()).await {
                return event.map(|event| (event, (events, pulse, seen)));
            }
            let before = std::mem::replace(&mut seen, pulse.beats());
            if seen != before {
                return Some((TokenEvent::Alive, (events, pulse, seen)));
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, channel};

    use super::*;
    use crate::engine::{Decoder, DecoderShape, Engine, ModelError, Work};
    use crate::message::{GenerateRequest, Prompt};
    use crate::scheduler::Limits;
    use crate::testing::{ToyDecoder, ToyLogits, codec, request};
    use crate::thread;

    /// A toy model whose calls beat once, and then wait until they are let through.
    struct Gated {
        toy: ToyDecoder,
        gate: Receiver<()>,
    }

    impl Decoder for Gated {
        type Cache = Vec<u32>;
        type Logits = ToyLogits;

        fn shape(&self) -> DecoderShape {
            self.toy.shape()
        }

        fn cache(&self) -> Vec<u32> {
            self.toy.cache()
        }

        fn forward(
            &mut self,
            work: &mut [Work<'_, Vec<u32>>],
            pulse: &Pulse,
        ) -> Result<ToyLogits, ModelError> {
            pulse.beat();
            // A gate that is gone is open.
            let _ = self.gate.recv();
            self.toy.forward(work, pulse)
        }
    }

    /// Signs of life until there is silence for many intervals.
    async fn signs(events: &mut (impl Stream<Item = TokenEvent> + Unpin)) -> usize {
        let mut signs = 0;
        while let Ok(event) = timeout(Duration::from_millis(300), events.next()).await {
            assert_eq!(event, Some(TokenEvent::Alive));
            signs += 1;
            assert!(signs < 50, "no end of signs of life");
        }
        signs
    }

    #[tokio::test]
    async fn a_slow_prefill_gives_signs_of_life_and_a_stuck_one_none() {
        let (open, gate) = channel();
        let text = Arc::new(codec());
        let limits =
            Limits { kv_blocks: 32, block_tokens: 4, batch_max: 4, waiting_max: 8, step_tokens_max: 8 };
        let engine = Engine::new(Gated { toy: ToyDecoder::default(), gate }, Arc::clone(&text), limits, 0);
        let (engine, _end) = thread::spawn(engine, 16).unwrap();
        let submit = |request: GenerateRequest| {
            let events = engine.submit(request.clone(), text.encode(&request.prompt).unwrap()).unwrap();
            Box::pin(with_signs_of_life(events, engine.pulse().clone(), Duration::from_millis(20)))
        };
        // Three chunks of prompt, and a request that waits behind it.
        let mut events = submit(GenerateRequest { prompt: Prompt::Tokens(vec![1; 20]), ..request("") });
        assert!(matches!(events.next().await, Some(TokenEvent::Started { .. })));
        let mut queued = submit(request("queued"));
        signs(&mut events).await;
        for _chunk in 0..2 {
            assert_eq!(signs(&mut events).await, 0, "a call that is stuck");
            open.send(()).unwrap();
            // The call has ended, and the next one has begun.
            assert!((1..=2).contains(&signs(&mut events).await));
        }
        assert!(matches!(queued.next().await, Some(TokenEvent::Started { .. })));
        assert_eq!(signs(&mut queued).await, 1, "the engine works, if for others");
        assert_eq!(signs(&mut queued).await, 0);
        drop(open);
        for answer in [events, queued] {
            let tokens = answer.filter(|event| std::future::ready(matches!(event, TokenEvent::Token(_))));
            assert_eq!(tokens.count().await, 12);
        }
    }
}
