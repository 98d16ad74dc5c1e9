//! Frames on their way to a stream. Senders append to one buffer; one task writes whatever has
//! gathered, so that many small frames leave in few packets.

use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use sixfold_wire::channel::ChannelFrame;
use tokio::sync::Notify;

/// An acceptor that has this much unread output gives the channel up: the peer does not read.
const BACKLOG_BYTES_MAX: usize = 64 << 20;

/// The gathered frames of one direction of a channel, and the credits to return with them.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    state: Mutex<State>,
    wake: Notify,
}

#[derive(Debug, Default)]
struct State {
    frames: Vec<u8>,
    /// Credits to return with the next write.
    credits: u32,
    /// Credits that the peer has spent and not got back.
    outstanding: u32,
    ended: bool,
}

/// The channel has ended, or its peer does not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ended;

impl Outbox {
    /// Appends frames.
    pub(super) fn push(&self, frames: &[u8]) -> Result<(), Ended> {
        let mut state = self.lock();
        if state.ended {
            return Err(Ended);
        }
        if state.frames.len() + frames.len() > BACKLOG_BYTES_MAX {
            state.ended = true;
            state.frames = Vec::new();
            drop(state);
            self.wake.notify_one();
            return Err(Ended);
        }
        let idle = state.frames.is_empty();
        state.frames.extend_from_slice(frames);
        drop(state);
        if idle {
            self.wake.notify_one();
        }
        Ok(())
    }

    /// Notes that the peer has spent credits; `false` if it had fewer than that.
    #[must_use]
    pub(super) fn spend(&self, credits: u32, window: u32) -> bool {
        let mut state = self.lock();
        state.outstanding = state.outstanding.saturating_add(credits);
        state.outstanding <= window
    }

    /// Returns credits to the peer: soon, or once enough have gathered to be worth a frame.
    pub(super) fn give_back(&self, credits: u32, window: u32) {
        let mut state = self.lock();
        let due = |state: &State| state.credits >= window / 8 || state.credits == state.outstanding;
        let was_due = state.credits > 0 && due(&state);
        state.credits += credits;
        let wake = !was_due && due(&state);
        drop(state);
        if wake {
            self.wake.notify_one();
        }
    }

    /// Appends a last frame and lets nothing follow it.
    pub(super) fn end(&self, last: Option<ChannelFrame<'_>>) {
        let mut state = self.lock();
        if let (Some(frame), false) = (last, state.ended) {
            frame.write(&mut state.frames);
        }
        state.ended = true;
        drop(state);
        self.wake.notify_one();
    }

    /// Whether nothing more can be sent.
    pub(super) fn ended(&self) -> bool {
        self.lock().ended
    }

    /// Writes until the outbox has ended and is empty, then finishes the stream.
    pub(super) async fn write_to(&self, mut stream: quinn::SendStream) -> Result<(), quinn::WriteError> {
        loop {
            let (batch, ended) = self.take();
            if !batch.is_empty() {
                stream.write_chunk(Bytes::from(batch)).await?;
            } else if ended {
                // An error means that the peer has already stopped the stream.
                let _ = stream.finish();
                return Ok(());
            } else {
                self.wake.notified().await;
            }
        }
    }

    /// Credits leave the books here, not before: a peer that does not read gets none.
    fn take(&self) -> (Vec<u8>, bool) {
        let mut state = self.lock();
        if state.credits > 0 && !state.ended {
            let credits = std::mem::take(&mut state.credits);
            state.outstanding = state.outstanding.saturating_sub(credits);
            ChannelFrame::Credit(credits).write(&mut state.frames);
        }
        (std::mem::take(&mut state.frames), state.ended)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every section leaves the state whole, also when it panics.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credits_return_in_batches_and_always_when_all_is_handled() {
        let outbox = Outbox::default();
        assert!(outbox.spend(9, 64));
        outbox.give_back(1, 64);
        outbox.give_back(8, 64);
        let (frames, _) = outbox.take();
        let mut expected = Vec::new();
        ChannelFrame::Credit(9).write(&mut expected);
        assert_eq!(frames, expected);
    }

    #[test]
    fn a_peer_that_spends_more_than_its_window_is_noticed() {
        let outbox = Outbox::default();
        assert!(outbox.spend(64, 64));
        outbox.give_back(64, 64);
        assert!(!outbox.spend(1, 64), "credits that were not sent yet do not count");
    }

    #[test]
    fn a_peer_that_does_not_read_is_given_up() {
        let outbox = Outbox::default();
        let frame = vec![0; 1 << 20];
        let pushed = (0..100).take_while(|_| outbox.push(&frame).is_ok()).count();
        assert_eq!(pushed, BACKLOG_BYTES_MAX >> 20);
        assert!(outbox.ended());
    }
}
