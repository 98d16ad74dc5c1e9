//! Messages on their way out of a link, bounded in bytes. The sender blocks; the other side may be
//! a thread or a task.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use tokio::sync::Notify;

/// Small enough that the allocator keeps the memory, and that writing starts before copying ends.
const PIECE_BYTES: usize = 1 << 20;

/// A queue with one sender and one receiver.
#[derive(Debug)]
pub(super) struct Queue {
    state: Mutex<State>,
    changed: Condvar,
    ready: Notify,
    window_bytes: usize,
}

#[derive(Debug, Default)]
struct State {
    messages: VecDeque<Bytes>,
    /// Bytes pushed and not released.
    held_bytes: usize,
    /// Nothing more will be pushed.
    closed: bool,
    /// Nothing more will be taken, and why.
    failed: Option<String>,
}

/// What a receiver found.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// A message; its bytes count until they are released.
    Message(Bytes),
    /// The sender has gone and everything was taken.
    Closed,
    /// Nothing came in time.
    Timeout,
}

impl Queue {
    pub(super) fn new(window_bytes: usize) -> Self {
        Self { state: Mutex::default(), changed: Condvar::new(), ready: Notify::new(), window_bytes }
    }

    /// Adds a message, once there is room. One that is longer than the window waits until the queue
    /// is empty.
    pub(super) fn push(&self, message: Bytes) -> Result<(), String> {
        let full =
            |state: &State| state.held_bytes > 0 && state.held_bytes + message.len() > self.window_bytes;
        let mut state = self.lock();
        while full(&state) && state.failed.is_none() {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        self.add(state, message)
    }

    /// Adds a message, whether there is room or not.
    pub(super) fn push_now(&self, message: Bytes) -> Result<(), String> {
        self.add(self.lock(), message)
    }

    fn add(&self, mut state: MutexGuard<'_, State>, message: Bytes) -> Result<(), String> {
        if let Some(reason) = &state.failed {
            return Err(reason.clone());
        }
        state.held_bytes += message.len();
        state.messages.push_back(message);
        drop(state);
        self.changed.notify_all();
        self.ready.notify_one();
        Ok(())
    }

    /// Whether everything that was pushed has been dealt with.
    pub(super) fn is_idle(&self) -> bool {
        self.lock().held_bytes == 0
    }

    /// Adds bytes in pieces, for a stream that does not care where they were cut.
    pub(super) fn push_pieces(&self, bytes: &[u8]) -> Result<(), String> {
        bytes.chunks(PIECE_BYTES).try_for_each(|piece| self.push(Bytes::copy_from_slice(piece)))
    }

    /// Takes the next message, on a thread.
    pub(super) fn pop(&self, until: Option<Instant>) -> Next {
        let mut state = self.lock();
        loop {
            if let Some(next) = state.next() {
                return next;
            }
            state = match until {
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(until) => {
                    let left = until.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Next::Timeout;
                    }
                    self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    /// Takes the next message, in a task.
    pub(super) async fn pop_async(&self) -> Next {
        loop {
            if let Some(next) = self.lock().next() {
                return next;
            }
            self.ready.notified().await;
        }
    }

    /// Gives room back once a message has been dealt with.
    pub(super) fn release(&self, bytes: usize) {
        self.lock().held_bytes -= bytes;
        self.changed.notify_all();
    }

    /// Nothing more will be pushed; what is there may still be taken.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
        self.ready.notify_one();
    }

    /// Nothing more will be taken: what is there is dropped and `push` fails with this reason.
    pub(super) fn fail(&self, reason: &str) {
        let mut state = self.lock();
        state.failed.get_or_insert_with(|| reason.to_owned());
        state.messages.clear();
        drop(state);
        self.changed.notify_all();
        self.ready.notify_one();
    }

    /// Waits until everything that was pushed has been dealt with; `false` if it has not by then.
    /// The error is why it never will.
    pub(super) fn wait_idle(&self, until: Instant) -> Result<bool, String> {
        let mut state = self.lock();
        loop {
            if let Some(reason) = &state.failed {
                return Err(reason.clone());
            }
            let left = until.saturating_duration_since(Instant::now());
            if state.held_bytes == 0 || left.is_zero() {
                return Ok(state.held_bytes == 0);
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn next(&mut self) -> Option<Next> {
        match self.messages.pop_front() {
            Some(message) => Some(Next::Message(message)),
            None if self.closed || self.failed.is_some() => Some(Next::Closed),
            None => None,
        }
    }
}
