//! How much at once: all requests, and those of one key.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

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
    key: KeyName,
    weight: usize,
    running: Arc<Mutex<Running>>,
}

impl Limits {
    pub(super) fn new(requests_max: usize, per_key_max: usize) -> Self {
        Self { requests_max, per_key_max, running: Arc::default() }
    }

    /// Takes places for a request of `weight` prompts. One alone always fits.
    pub(super) fn enter(&self, key: &KeyName, weight: usize) -> Result<Place, Overload> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let of_key = running.by_key.get(key).copied().unwrap_or_default();
        if of_key > 0 && of_key + weight > self.per_key_max {
            return Err(Overload::Key);
        }
        if running.all > 0 && running.all + weight > self.requests_max {
            return Err(Overload::Gateway);
        }
        running.all += weight;
        measure::running(running.all);
        *running.by_key.entry(key.clone()).or_default() += weight;
        Ok(Place { key: key.clone(), weight, running: Arc::clone(&self.running) })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
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
        let places: Vec<_> = (0..3).map(|_| limits.enter(&one, 1).ok()).collect();
        assert!(places.iter().all(Option::is_some));
        assert_eq!(limits.enter(&one, 1).err(), Some(Overload::Key));
        let other = limits.enter(&two, 1);
        assert!(other.is_ok());
        assert_eq!(limits.enter(&two, 1).err(), Some(Overload::Gateway));
        drop((places, other));
        assert!(limits.enter(&one, 9).is_ok(), "a large request alone");
    }
}
