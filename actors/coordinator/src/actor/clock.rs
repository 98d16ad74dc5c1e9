//! The time that the state machine is told: milliseconds since 1970 that never go back, neither
//! when the machine's clock is set nor from one coordinator to the next.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

pub(super) struct Clock {
    started: Instant,
    started_ms: u64,
}

impl Clock {
    /// A clock that shows the machine's time, but not less than `newest_ms`.
    pub(super) fn starting_after(newest_ms: u64) -> Self {
        // A machine whose clock is before 1970 goes on from the log's newest time.
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let machine_ms = u64::try_from(since_1970.as_millis()).unwrap_or(0);
        Self { started: Instant::now(), started_ms: machine_ms.max(newest_ms) }
    }

    pub(super) fn now_ms(&self) -> u64 {
        let passed_ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.started_ms.saturating_add(passed_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_shows_less_than_the_log() {
        let future_ms = 99_999_999_999_999;
        assert!(Clock::starting_after(future_ms).now_ms() >= future_ms);
    }
}
