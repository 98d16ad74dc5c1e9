//! How much at once: all requests, and those of one key. A request has its place before its body is
//! read, so that bodies are bounded too.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::keys::KeyName;
use super::measure;

/// Why a request has to come again later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Overload {
    /// The gateway answers as many as it may.
    Gateway,
    /// The key has as many in the making as it may.
    Key,
}

/// Counts requests in the making.
#[derive(Clone)]
pub(super) struct Limits {
    requests_max: usize,
    per_key_max: usize,
    running: Arc<Mutex<Running>>,
}

#[derive(Default)]
struct Running {
    all: usize,
    by_key: HashMap<KeyName, usize>,
}

/// A place among the requests in the making; given back when dropped.
pub(super) struct Place {
    limits: Limits,
    key: KeyName,
    weight: usize,
}

impl Limits {
    pub(super) fn new(requests_max: usize, per_key_max: usize) -> Self {
        Self { requests_max, per_key_max, running: Arc::default() }
    }

    /// A place for a request whose prompts are not counted yet.
    pub(super) fn enter(&self, key: &KeyName) -> Result<Place, Overload> {
        let mut place = Place { limits: self.clone(), key: key.clone(), weight: 0 };
        place.widen(1)?;
        Ok(place)
    }

    fn lock(&self) -> MutexGuard<'_, Running> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// Makes it wide enough for so many prompts. A request alone always fits.
    pub(super) fn widen(&mut self, weight: usize) -> Result<(), Overload> {
        let more = weight.saturating_sub(self.weight);
        let mut running = self.limits.lock();
        let of_key = running.by_key.get(&self.key).copied().unwrap_or_default();
        if of_key > self.weight && of_key + more > self.limits.per_key_max {
            return Err(Overload::Key);
        }
        if running.all > self.weight && running.all + more > self.limits.requests_max {
            return Err(Overload::Gateway);
        }
        running.all += more;
        measure::running(running.all);
        *running.by_key.entry(self.key.clone()).or_default() += more;
        self.weight += more;
        Ok(())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut running = self.limits.lock();
        running.all -= self.weight;
        measure::running(running.all);
        if let Some(count) = running.by_key.get_mut(&self.key) {
            *count -= self.weight;
            if *count == 0 {
                running.by_key.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flooding_key_leaves_room_for_others() {
        let limits = Limits::new(4, 3);
        let (one, two) = (KeyName("one".into()), KeyName("two".into()));
        let places: Vec<_> = (0..3).map(|_| limits.enter(&one).ok()).collect();
        assert!(places.iter().all(Option::is_some));
        assert_eq!(limits.enter(&one).err(), Some(Overload::Key));
        let other = limits.enter(&two);
        assert!(other.is_ok());
        assert_eq!(limits.enter(&two).err(), Some(Overload::Gateway));
        drop((places, other));
        let mut large = limits.enter(&one).ok().unwrap();
        assert_eq!(large.widen(9), Ok(()), "a large request alone");
        assert_eq!(limits.enter(&two).err(), Some(Overload::Gateway));
        drop(large);
        let (mut first, _second) = (limits.enter(&one).ok().unwrap(), limits.enter(&one));
        assert_eq!(first.widen(3), Err(Overload::Key));
        assert_eq!(first.widen(2), Ok(()));
        drop(first);
        assert_eq!(limits.lock().by_key.get(&one), Some(&1));
    }
}
