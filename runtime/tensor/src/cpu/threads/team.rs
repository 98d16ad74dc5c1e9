//! Threads that help whoever calls a kernel: [`Team`].
//!
//! Kernels follow each other within microseconds, and waking a thread takes longer than some of them do. So the caller works too instead
//! of handing its work over, it does not wait for helpers that have not begun when nothing is left to do, and helpers look out
//! for the next call a moment before they sleep.
#![allow(unsafe_code)]

use std::any::Any;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How long a thread looks out for another before it sleeps: about what waking it takes. Whoever wants the core gets it meanwhile.
const LOOK_OUT: Duration = Duration::from_micros(50);

/// What all threads do until nothing is left of it.
type Work<'a> = dyn Fn() + Sync + 'a;

/// Threads that wait for calls. They end with it.
pub(super) struct Team {
    shared: Arc<Shared>,
    helpers: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    /// Held by the caller that has the helpers.
    turn: Mutex<()>,
    /// How many calls there were.
    calls: AtomicUsize,
    /// Helpers that work on the call; changes under the lock of `state`.
    working: AtomicUsize,
    state: Mutex<State>,
    called: Condvar,
    idle: Condvar,
}

#[derive(Default)]
struct State {
    /// While it is there its caller is in [`Team::call`].
    work: Option<&'static Work<'static>>,
    /// Helpers that may join yet.
    vacancies: usize,
    /// Helpers that sleep.
    asleep: usize,
    /// What a helper panicked with.
    panic: Option<Box<dyn Any + Send>>,
    /// No call comes any more.
    is_over: bool,
}

impl Team {
    /// Starts `helpers` threads; each runs `begin` with its index first.
    ///
    /// # Errors
    /// The system refuses.
    pub(super) fn start(helpers: usize, begin: impl Fn(usize) + Clone + Send + 'static) -> io::Result<Self> {
        let mut team = Self { shared: Arc::default(), helpers: Vec::new() };
        for index in 0..helpers {
            let (shared, begin) = (team.shared.clone(), begin.clone());
            let work = move || {
                begin(index);
                shared.help();
            };
            team.helpers.push(thread::Builder::new().name(format!("engine-{index}")).spawn(work)?);
        }
        Ok(team)
    }

    /// Threads, with the caller's.
    pub(super) fn size(&self) -> usize {
        self.helpers.len() + 1
    }

    /// Has the calling thread and up to `helpers` others run `work`, and returns when none does. While another caller has the helpers, the
    /// calling thread is alone.
    pub(super) fn call(&self, helpers: usize, work: &Work<'_>) {
        let _turn = match self.shared.turn.try_lock() {
            Ok(turn) => turn,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return work(),
        };
        // SAFETY: helpers take the reference only while it is in the state and count as working until they are done with it.
        // `Call` takes it from the state and waits for them when it is dropped, however `work` ends; so it is used only here.
        let lent = unsafe { std::mem::transmute::<&Work<'_>, &'static Work<'static>>(work) };
        self.shared.begin(lent, helpers);
        let call = Call(&self.shared);
        work();
        drop(call);
        let panic = self.shared.state().panic.take();
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.state().is_over = true;
        self.shared.called.notify_all();
        for helper in self.helpers.drain(..) {
            helper.join().ok();
        }
    }
}

/// A call that has begun; it has ended when this is dropped.
struct Call<'a>(&'a Shared);

impl Drop for Call<'_> {
    fn drop(&mut self) {
        let shared = self.0;
        let mut state = shared.state();
        state.work = None;
        drop(state);
        let nobody = || shared.working.load(Ordering::Acquire) == 0;
        if look_out(nobody) {
            return;
        }
        state = shared.state();
        while !nobody() {
            state = shared.idle.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self, work: &'static Work<'static>, helpers: usize) {
        let mut state = self.state();
        (state.work, state.vacancies, state.panic) = (Some(work), helpers, None);
        // Under the lock, so that no helper falls asleep that has seen neither.
        self.calls.fetch_add(1, Ordering::Release);
        let asleep = state.asleep;
        drop(state);
        match asleep {
            0 => {}
            asleep if asleep > helpers => (0..helpers).for_each(|_| self.called.notify_one()),
            _ => self.called.notify_all(),
        }
    }

    /// What a helper does all its life.
    fn help(&self) {
        let mut state = self.state();
        while !state.is_over {
            let seen = self.calls.load(Ordering::Acquire);
            if let Some(work) = state.work
                && state.vacancies > 0
            {
                state.vacancies -= 1;
                self.working.fetch_add(1, Ordering::Relaxed);
                drop(state);
                let ended = catch_unwind(AssertUnwindSafe(work));
                state = self.state();
                if let Err(panic) = ended {
                    state.panic = Some(panic);
                }
                if self.working.fetch_sub(1, Ordering::Release) == 1 {
                    self.idle.notify_one();
                }
                continue;
            }
            drop(state);
            let called = look_out(|| self.calls.load(Ordering::Acquire) != seen);
            state = self.state();
            if !called && self.calls.load(Ordering::Acquire) == seen && !state.is_over {
                state.asleep += 1;
                state = self.called.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.asleep -= 1;
            }
        }
    }
}

/// Whether `condition` came true within [`LOOK_OUT`].
fn look_out(condition: impl Fn() -> bool) -> bool {
    let since = Instant::now();
    loop {
        for _ in 0..16 {
            if condition() {
                return true;
            }
            std::hint::spin_loop();
        }
        if since.elapsed() > LOOK_OUT {
            return false;
        }
        thread::yield_now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Barrier;

    fn team(helpers: usize) -> Team {
        Team::start(helpers, |_| {}).unwrap()
    }

    #[test]
    fn the_caller_and_as_many_helpers_as_it_wants_work_at_once() {
        let team = team(3);
        assert_eq!(team.size(), 4);
        for wanted in [1, 3, 2, 0] {
            for _ in 0..50 {
                // Returns when so many threads are here, no more of which come.
                let (all, count) = (Barrier::new(wanted + 1), AtomicUsize::new(0));
                team.call(wanted, &|| {
                    all.wait();
                    count.fetch_add(1, Ordering::Relaxed);
                });
                assert_eq!(count.into_inner(), wanted + 1);
            }
        }
    }

    #[test]
    fn helpers_that_sleep_are_woken() {
        let team = team(1);
        for _ in 0..3 {
            thread::sleep(20 * LOOK_OUT);
            let both = Barrier::new(2);
            team.call(1, &|| {
                both.wait();
            });
        }
    }

    #[test]
    fn a_call_within_a_call_or_beside_one_is_done_by_its_own_thread() {
        let (team, here) = (team(1), thread::current().id());
        let both = Barrier::new(2);
        team.call(1, &|| {
            both.wait();
            let caller = thread::current().id();
            let (count, inner) = (AtomicUsize::new(0), || assert_eq!(thread::current().id(), caller));
            team.call(1, &|| {
                inner();
                count.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(count.into_inner(), 1);
        });
        team.call(0, &|| assert_eq!(thread::current().id(), here));
    }

    #[test]
    fn callers_that_come_at_once_all_get_their_work_done() {
        let team = team(2);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for round in 0..500 {
                        let left = AtomicUsize::new(round);
                        let done = AtomicUsize::new(0);
                        team.call(2, &|| {
                            let take = |left: usize| left.checked_sub(1);
                            while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok() {
                                done.fetch_add(1, Ordering::Relaxed);
                            }
                        });
                        assert_eq!(done.into_inner(), round);
                    }
                });
            }
        });
    }

    #[test]
    fn a_panic_of_any_thread_reaches_the_caller_and_the_team_goes_on() {
        let team = team(1);
        let here = thread::current().id();
        for (of_caller, of_helper) in [(true, false), (false, true), (true, true)] {
            let both = Barrier::new(2);
            let work = || {
                both.wait();
                let panics = if thread::current().id() == here { of_caller } else { of_helper };
                assert!(!panics, "planted");
            };
            let panic = catch_unwind(AssertUnwindSafe(|| team.call(1, &work))).unwrap_err();
            assert_eq!(panic.downcast_ref::<&str>(), Some(&"planted"));
        }
        let both = Barrier::new(2);
        team.call(1, &|| {
            both.wait();
        });
    }
}
