//! One host's requests of a round: in order, one at a time, with a pause between them and further
//! tries after failures that may pass. Knows no clock: the time, in milliseconds from any fixed
//! point, is an argument.
//!
//! Statuses and waits follow Scrapy's retry middleware; `Retry-After` (RFC 9110, section 10.2.3)
//! is heeded, which Scrapy does not.

use std::collections::VecDeque;

/// How a host is treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HostManners {
    /// Pause between the end of a request and the next one.
    pub delay_ms: u64,
    /// Further tries of one request.
    pub retries: u32,
    /// Wait before the first further try; doubles with each.
    pub retry_wait_ms: u64,
    /// Longest wait that a server may ask for.
    pub retry_after_ms_max: u64,
    /// Failures in a row after which the host is left alone.
    pub failures_max: u32,
}

/// What is to be done next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step<J> {
    /// Make this request now, and report with [`HostQueue::answered`].
    Request(J),
    /// Wait until this time.
    Wait(u64),
    /// Leave the remaining requests: the host is down. They come out of [`HostQueue::drain`].
    GiveUp,
    /// Nothing is left.
    Done,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// With something final.
    Final,
    /// With a failure that may pass.
    Transient {
        /// The wait that the server asked for.
        retry_after_ms: Option<u64>,
    },
}

/// What an answer means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The request is done; its outcome counts.
    Settled,
    /// It will be made again.
    Again,
}

/// The requests of one host.
#[derive(Clone, Debug)]
pub(crate) struct HostQueue<J> {
    waiting: VecDeque<J>,
    manners: HostManners,
    ready_ms: u64,
    tries: u32,
    failures: u32,
}

impl<J: Copy> HostQueue<J> {
    /// A queue of `requests`. The host may be asked from `ready_ms` on and has failed `failures`
    /// times in a row so far.
    pub(crate) fn new(
        requests: impl IntoIterator<Item = J>,
        manners: HostManners,
        ready_ms: u64,
        failures: u32,
    ) -> Self {
        Self { waiting: requests.into_iter().collect(), manners, ready_ms, tries: 0, failures }
    }

    /// What to do at `now_ms`.
    pub(crate) fn step(&self, now_ms: u64) -> Step<J> {
        match self.waiting.front() {
            None => Step::Done,
            Some(_) if self.failures >= self.manners.failures_max => Step::GiveUp,
            Some(_) if now_ms < self.ready_ms => Step::Wait(self.ready_ms),
            Some(&job) => Step::Request(job),
        }
    }

    /// The request that comes next, whenever that may be.
    pub(crate) fn front(&self) -> Option<J> {
        self.waiting.front().copied()
    }

    /// Takes the next request out without making it; no pause follows.
    pub(crate) fn pass(&mut self) {
        self.waiting.pop_front();
        self.tries = 0;
    }

    /// Takes all remaining requests out.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = J> {
        self.waiting.drain(..)
    }

    /// Reports how the request ended that [`Step::Request`] asked for.
    pub(crate) fn answered(&mut self, now_ms: u64, answer: Answer) -> Verdict {
        self.ready_ms = after_pause(now_ms, self.manners.delay_ms);
        if let Answer::Transient { retry_after_ms } = answer {
            let backoff = self.manners.retry_wait_ms.saturating_mul(1 << self.tries.min(16));
            let wait = backoff.max(retry_after_ms.unwrap_or(0));
            self.ready_ms = self.ready_ms.max(after_pause(now_ms, wait.min(self.manners.retry_after_ms_max)));
            // Coming back before the server wants us would only add to its trouble.
            let patient = retry_after_ms.is_none_or(|asked| asked <= self.manners.retry_after_ms_max);
            if self.tries < self.manners.retries && patient {
                self.tries += 1;
                return Verdict::Again;
            }
        }
        self.pass();
        Verdict::Settled
    }

    /// Counts a settled request for or against the host.
    pub(crate) fn judge(&mut self, host_failed: bool) {
        self.failures = if host_failed { self.failures.saturating_add(1) } else { 0 };
    }

    /// Lengthens the pause, as robots.txt may ask for. It counts from the last request on.
    pub(crate) fn slow_down(&mut self, delay_ms: u64) {
        let longer = delay_ms.saturating_sub(self.manners.delay_ms);
        self.manners.delay_ms += longer;
        self.ready_ms = self.ready_ms.saturating_add(longer);
    }

    /// When the host may be asked again.
    pub(crate) fn ready_ms(&self) -> u64 {
        self.ready_ms
    }
}

/// The end of a pause that begins at `now_ms`. Times are whole milliseconds, rounded down, so a pause
/// gets one more: it is never a moment too short.
pub(crate) fn after_pause(now_ms: u64, pause_ms: u64) -> u64 {
    match pause_ms {
        0 => now_ms,
        pause_ms => now_ms.saturating_add(pause_ms).saturating_add(1),
    }
}

/// Whether an answer with this status may be another one a little later.
pub(crate) fn is_transient(status: u16) -> bool {
    matches!(status, 408 | 429 | 500 | 502 | 503 | 504 | 522 | 524)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MANNERS: HostManners = HostManners {
        delay_ms: 1000,
        retries: 2,
        retry_wait_ms: 400,
        retry_after_ms_max: 60_000,
        failures_max: 3,
    };

    const TRANSIENT: Answer = Answer::Transient { retry_after_ms: None };

    #[test]
    fn pauses_from_the_end_of_a_request_to_the_next() {
        let mut queue = HostQueue::new(['a', 'b'], MANNERS, 0, 0);
        assert_eq!(queue.step(0), Step::Request('a'));
        assert_eq!(queue.answered(250, Answer::Final), Verdict::Settled);
        assert_eq!(queue.step(251), Step::Wait(1251));
        assert_eq!(queue.step(1251), Step::Request('b'));
        queue.answered(1300, Answer::Final);
        assert_eq!((queue.step(1300), queue.ready_ms()), (Step::Done, 2301));
    }

    #[test]
    fn tries_again_with_growing_waits_and_then_settles() {
        let manners = HostManners { delay_ms: 0, ..MANNERS };
        let mut queue = HostQueue::new(['a', 'b'], manners, 0, 0);
        assert_eq!(queue.answered(0, TRANSIENT), Verdict::Again);
        assert_eq!(queue.step(1), Step::Wait(401));
        assert_eq!(queue.step(401), Step::Request('a'));
        assert_eq!(queue.answered(401, TRANSIENT), Verdict::Again);
        assert_eq!(queue.step(402), Step::Wait(1202));
        assert_eq!(queue.answered(1202, TRANSIENT), Verdict::Settled);
        assert_eq!(queue.front(), Some('b'));
        // The next request has tries of its own.
        assert_eq!(queue.answered(9000, TRANSIENT), Verdict::Again);
    }

    #[test]
    fn heeds_retry_after_unless_it_is_too_long() {
        let mut queue = HostQueue::new(['a'], MANNERS, 0, 0);
        let asked = |ms| Answer::Transient { retry_after_ms: Some(ms) };
        assert_eq!(queue.answered(0, asked(7000)), Verdict::Again);
        assert_eq!(queue.step(7000), Step::Wait(7001));
        assert_eq!(queue.answered(7001, asked(60_001)), Verdict::Settled);
        assert_eq!(queue.ready_ms(), 67_002);
    }

    #[test]
    fn leaves_a_host_alone_that_fails_in_a_row() {
        let mut queue =
            HostQueue::new(0..9, HostManners { retries: 0, delay_ms: 0, retry_wait_ms: 0, ..MANNERS }, 0, 1);
        for failed in [true, false, true, true, true] {
            assert!(matches!(queue.step(0), Step::Request(_)));
            queue.answered(0, Answer::Final);
            queue.judge(failed);
        }
        assert_eq!(queue.step(0), Step::GiveUp);
        assert_eq!(queue.drain().collect::<Vec<_>>(), [5, 6, 7, 8]);
    }

    #[test]
    fn a_longer_delay_of_robots_txt_counts_at_once() {
        let mut queue = HostQueue::new(['r', 'a'], MANNERS, 0, 0);
        queue.answered(0, Answer::Final);
        queue.slow_down(3000);
        queue.slow_down(2000);
        assert_eq!(queue.step(3000), Step::Wait(3001));
        queue.answered(3001, Answer::Final);
        assert_eq!(queue.ready_ms(), 6002);
    }

    proptest! {
        /// Whatever a host answers: it is never asked before the pause is over, and the queue ends.
        #[test]
        fn never_hurries_and_always_ends(
            answers in proptest::collection::vec((0..3_u8, 0..90_000_u64, 0..500_u64), 1..60),
            delay_ms in 0..2000_u64,
        ) {
            let manners = HostManners { delay_ms, ..MANNERS };
            let mut queue = HostQueue::new(0..20, manners, 0, 0);
            let (mut now, mut last_end, mut requests) = (0, None::<u64>, 0);
            let mut answers = answers.into_iter().cycle();
            loop {
                match queue.step(now) {
                    Step::Wait(until) => {
                        prop_assert!(until > now);
                        now = until;
                    }
                    Step::Request(_) => {
                        prop_assert!(last_end.is_none_or(|end| now >= end + delay_ms));
                        let (kind, asked, took) = answers.next().unwrap();
                        now += took;
                        last_end = Some(now);
                        requests += 1;
                        let answer = match kind {
                            0 => Answer::Final,
                            1 => TRANSIENT,
                            _ => Answer::Transient { retry_after_ms: Some(asked) },
                        };
                        if queue.answered(now, answer) == Verdict::Settled {
                            queue.judge(kind != 0);
                        }
                    }
                    Step::GiveUp | Step::Done => break,
                }
                prop_assert!(requests <= 60);
            }
        }
    }
}
