//! A ring of bytes with one writer and one reader, in different processes.
//!
//! `head` counts the bytes written, `tail` those read; both only grow. The other process is
//! authenticated but not trusted with memory safety: counters that make no sense end the link.

use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::fence;
use std::time::{Duration, Instant};

use super::region::{Counter, Flag, Region, Side};

/// Bytes copied before the other side is told, so that both copy at the same time.
const PIECE_BYTES: usize = 128 << 10;

/// Looks at the ring before the thread sleeps: a few microseconds.
const SPINS: u32 = 200;

/// How often a sleeping end looks whether the other is alive.
const LIVENESS: Duration = Duration::from_millis(20);

/// The other process has broken the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the counters of the shared ring make no sense")]
pub(super) struct Broken;

/// Why a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wake {
    Ready,
    Timeout,
    /// The other end will never make it ready.
    Gone(&'static str),
}

/// One direction of a link, seen from one end.
#[derive(Debug)]
pub(super) struct Ring {
    region: Arc<Region>,
    /// Who writes to it.
    direction: Side,
    /// Which end this is.
    side: Side,
}

impl Ring {
    pub(super) fn writer(region: &Arc<Region>, side: Side) -> Self {
        Self { region: region.clone(), direction: side, side }
    }

    pub(super) fn reader(region: &Arc<Region>, side: Side) -> Self {
        Self { region: region.clone(), direction: side.other(), side }
    }

    /// Writes as much as fits, a piece at most; returns how much.
    pub(super) fn write(&self, bytes: &[u8]) -> Result<usize, Broken> {
        let capacity = self.region.ring_bytes();
        let head = self.counter(Counter::Head).load(Relaxed);
        let count = (capacity - self.used()?).min(bytes.len()).min(PIECE_BYTES);
        if count > 0 {
            self.region.copy_in(self.direction, offset(head, capacity), &bytes[..count]);
            self.counter(Counter::Head).store(head.wrapping_add(count as u64), Release);
            self.wake(Flag::ReaderWaits);
        }
        Ok(count)
    }

    /// Reads what is there, a piece at most; returns how much.
    pub(super) fn read(&self, buffer: &mut [u8]) -> Result<usize, Broken> {
        let capacity = self.region.ring_bytes();
        let tail = self.counter(Counter::Tail).load(Relaxed);
        let count = self.used()?.min(buffer.len()).min(PIECE_BYTES);
        if count > 0 {
            self.region.copy_out(self.direction, offset(tail, capacity), &mut buffer[..count]);
            self.counter(Counter::Tail).store(tail.wrapping_add(count as u64), Release);
            self.wake(Flag::WriterWaits);
        }
        Ok(count)
    }

    /// Waits until something can be written.
    pub(super) fn wait_for_room(&self, until: Instant) -> Wake {
        let capacity = self.region.ring_bytes();
        // Room counts for nothing once the reader has gone.
        if let Some(reason) = self.peer_gone() {
            return Wake::Gone(reason);
        }
        self.wait(Flag::WriterWaits, until, || self.used().map_or(true, |used| used < capacity))
    }

    /// Waits until something can be read.
    pub(super) fn wait_for_data(&self, until: Instant) -> Wake {
        self.wait(Flag::ReaderWaits, until, || self.used().map_or(true, |used| used > 0))
    }

    /// Bytes that the reader has taken so far.
    pub(super) fn taken(&self) -> u64 {
        self.counter(Counter::Tail).load(Relaxed)
    }

    /// Whether the other end has said that it left.
    pub(super) fn peer_gone(&self) -> Option<&'static str> {
        self.region.gone(self.side.other()).then_some(LEFT)
    }

    /// Tells the other end that this one has gone.
    pub(super) fn leave(&self) {
        self.region.leave(self.side);
        for flag in [Flag::ReaderWaits, Flag::WriterWaits] {
            self.wake(flag);
        }
    }

    fn wait(&self, flag: Flag, until: Instant, ready: impl Fn() -> bool) -> Wake {
        for _ in 0..SPINS {
            if ready() {
                return Wake::Ready;
            }
            std::hint::spin_loop();
        }
        loop {
            let waits = self.region.flag(self.direction, flag);
            waits.store(1, SeqCst);
            // Either this sees what the other side did before it looked at the flag, or that side
            // sees the flag and wakes us.
            fence(SeqCst);
            let left = until.saturating_duration_since(Instant::now());
            let (was_ready, gone) = (ready(), self.region.gone(self.side.other()));
            if !was_ready && !gone && !left.is_zero() {
                Region::sleep(waits, left.min(LIVENESS));
            }
            waits.store(0, Relaxed);
            // The order counts: what the other end wrote before it went is still to be read.
            let dead = gone || !self.region.alive(self.side.other());
            match (was_ready || ready(), gone, dead, left.is_zero()) {
                (true, ..) => return Wake::Ready,
                (_, true, ..) => return Wake::Gone(LEFT),
                (_, _, true, _) => return Wake::Gone(DIED),
                (_, _, _, true) => return Wake::Timeout,
                _ => {}
            }
        }
    }

    fn wake(&self, flag: Flag) {
        fence(SeqCst);
        let waits = self.region.flag(self.direction, flag);
        if waits.load(Relaxed) != 0 {
            waits.store(0, Relaxed);
            Region::wake(waits);
        }
    }

    fn used(&self) -> Result<usize, Broken> {
        let head = self.counter(Counter::Head).load(Acquire);
        let tail = self.counter(Counter::Tail).load(Acquire);
        let used = usize::try_from(head.wrapping_sub(tail)).map_err(|_| Broken)?;
        if used <= self.region.ring_bytes() { Ok(used) } else { Err(Broken) }
    }

    fn counter(&self, counter: Counter) -> &std::sync::atomic::AtomicU64 {
        self.region.counter(self.direction, counter)
    }
}

const LEFT: &str = "it dropped the link";
const DIED: &str = "its process has ended";

#[expect(clippy::cast_possible_truncation, reason = "less than the capacity, which is a usize")]
fn offset(count: u64, capacity: usize) -> usize {
    (count % capacity as u64) as usize
}
