//! All series of the process.
//!
//! A series that is known is found in a concurrent map without a common lock; only one that is new
//! goes through the mutex that keeps families whole: one kind a name, and a bound on all series.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use dashmap::DashMap;
use metrics::atomics::AtomicU64;
use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};

use super::histogram::{Buckets, Counts};
use super::summary::{Figures, Summary};
use super::text;

/// Counters and gauges at most.
const NUMBERS_MAX: usize = 8192;
/// Latencies at most; each that is a summary takes about 52 KiB.
const LATENCIES_MAX: usize = 512;

/// Counts the series that had no room, or a name or labels that Prometheus does not take.
const REFUSED: &str = "sixfold_metrics_refused_total";
const REFUSED_HELP: &str = "Registrations of series that had no room or no valid name.";

/// See the module.
#[derive(Default)]
pub(super) struct Registry {
    series: DashMap<Key, Series>,
    /// Bounds of the latencies that are shown as histograms, by name.
    buckets: HashMap<String, &'static [f64]>,
    families: Mutex<Families>,
    refused: AtomicU64,
}

#[derive(Default)]
struct Families {
    by_name: BTreeMap<String, Family>,
    help: BTreeMap<String, String>,
    numbers: usize,
    latencies: usize,
}

struct Family {
    kind: Kind,
    by_labels: BTreeMap<String, Series>,
}

/// What a family's series are; a histogram's have the same bounds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Kind {
    Counter,
    Gauge,
    Summary,
    Histogram(&'static [f64]),
}

/// Counters are numbers, gauges the bits of floating-point numbers.
#[derive(Clone)]
enum Series {
    Counter(Arc<AtomicU64>),
    Gauge(Arc<AtomicU64>),
    Summary(Arc<Summary>),
    Histogram(Arc<Buckets>),
}

/// A family at one moment.
pub(super) struct FamilySnapshot {
    pub(super) name: String,
    pub(super) help: Option<String>,
    pub(super) kind: Kind,
    /// By labels, in the text's form.
    pub(super) values: Vec<(String, Value)>,
}

/// A series at one moment.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Counter(u64),
    Gauge(f64),
    Summary(Figures),
    Histogram(Counts),
}

impl Registry {
    pub(super) fn new(buckets: &[(&str, &'static [f64])]) -> Self {
        let buckets = buckets.iter().map(|&(name, bounds_s)| (name.to_owned(), bounds_s));
        Self { buckets: buckets.collect(), ..Self::default() }
    }

    /// Everything as it is now, sorted.
    pub(super) fn snapshot(&self) -> Vec<FamilySnapshot> {
        let now = Instant::now();
        let mut all: Vec<FamilySnapshot> = {
            let families = self.families.lock().unwrap_or_else(PoisonError::into_inner);
            families.by_name.iter().map(|(name, family)| family.snapshot(name, &families.help, now)).collect()
        };
        let refused = self.refused.load(Ordering::Relaxed);
        all.push(FamilySnapshot {
            name: REFUSED.to_owned(),
            help: Some(REFUSED_HELP.to_owned()),
            kind: Kind::Counter,
            values: vec![(String::new(), Value::Counter(refused))],
        });
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// The series of a key, made where it is new; `None` where it is refused.
    fn series(&self, key: &Key, kind: Kind) -> Option<Series> {
        let known = self.series.get(key).map(|series| series.clone());
        let series = known.or_else(|| self.add(key, kind)).filter(|series| series.kind() == kind);
        if series.is_none() {
            self.refused.fetch_add(1, Ordering::Relaxed);
        }
        series
    }

    fn add(&self, key: &Key, kind: Kind) -> Option<Series> {
        let labels = text::labels(key)?;
        let mut families = self.families.lock().unwrap_or_else(PoisonError::into_inner);
        // Another thread may have added it since.
        if let Some(known) = self.series.get(key) {
            return Some(known.clone());
        }
        let series = families.add(key.name(), labels, kind)?;
        self.series.insert(key.to_retained(), series.clone());
        Some(series)
    }

    fn describe(&self, name: &KeyName, help: SharedString) {
        let mut families = self.families.lock().unwrap_or_else(PoisonError::into_inner);
        families.help.insert(name.as_str().to_owned(), help.to_string());
    }
}

impl Families {
    fn add(&mut self, name: &str, labels: String, kind: Kind) -> Option<Series> {
        let (count, max) = match kind {
            Kind::Counter | Kind::Gauge => (&mut self.numbers, NUMBERS_MAX),
            Kind::Summary | Kind::Histogram(_) => (&mut self.latencies, LATENCIES_MAX),
        };
        let other_kind = self.by_name.get(name).is_some_and(|family| family.kind != kind);
        if *count >= max || other_kind || name == REFUSED {
            return None;
        }
        *count += 1;
        let family = self.by_name.entry(name.to_owned());
        let family = family.or_insert_with(|| Family { kind, by_labels: BTreeMap::new() });
        Some(family.by_labels.entry(labels).or_insert_with(|| Series::new(kind)).clone())
    }
}

impl Family {
    fn snapshot(&self, name: &str, help: &BTreeMap<String, String>, now: Instant) -> FamilySnapshot {
        let values = self.by_labels.iter().map(|(labels, series)| (labels.clone(), series.value(now)));
        let help = help.get(name).cloned();
        FamilySnapshot { name: name.to_owned(), help, kind: self.kind, values: values.collect() }
    }
}

impl Series {
    fn new(kind: Kind) -> Self {
        match kind {
            Kind::Counter => Self::Counter(Arc::default()),
            Kind::Gauge => Self::Gauge(Arc::default()),
            Kind::Summary => Self::Summary(Arc::new(Summary::new(Instant::now()))),
            Kind::Histogram(bounds_s) => Self::Histogram(Arc::new(Buckets::new(bounds_s))),
        }
    }

    fn kind(&self) -> Kind {
        match self {
            Self::Counter(_) => Kind::Counter,
            Self::Gauge(_) => Kind::Gauge,
            Self::Summary(_) => Kind::Summary,
            Self::Histogram(buckets) => Kind::Histogram(buckets.bounds_s()),
        }
    }

    fn value(&self, now: Instant) -> Value {
        match self {
            Self::Counter(count) => Value::Counter(count.load(Ordering::Relaxed)),
            Self::Gauge(bits) => Value::Gauge(f64::from_bits(bits.load(Ordering::Relaxed))),
            Self::Summary(summary) => Value::Summary(summary.figures(now)),
            Self::Histogram(buckets) => Value::Histogram(buckets.counts()),
        }
    }
}

impl Recorder for Registry {
    fn describe_counter(&self, name: KeyName, _unit: Option<Unit>, help: SharedString) {
        self.describe(&name, help);
    }

    fn describe_gauge(&self, name: KeyName, _unit: Option<Unit>, help: SharedString) {
        self.describe(&name, help);
    }

    fn describe_histogram(&self, name: KeyName, _unit: Option<Unit>, help: SharedString) {
        self.describe(&name, help);
    }

    fn register_counter(&self, key: &Key, _metadata: &Metadata<'_>) -> Counter {
        match self.series(key, Kind::Counter) {
            Some(Series::Counter(count)) => Counter::from_arc(count),
            _ => Counter::noop(),
        }
    }

    fn register_gauge(&self, key: &Key, _metadata: &Metadata<'_>) -> Gauge {
        match self.series(key, Kind::Gauge) {
            Some(Series::Gauge(bits)) => Gauge::from_arc(bits),
            _ => Gauge::noop(),
        }
    }

    fn register_histogram(&self, key: &Key, _metadata: &Metadata<'_>) -> Histogram {
        let bounds_s = self.buckets.get(key.name()).copied();
        match self.series(key, bounds_s.map_or(Kind::Summary, Kind::Histogram)) {
            Some(Series::Summary(summary)) => Histogram::from_arc(summary),
            Some(Series::Histogram(buckets)) => Histogram::from_arc(buckets),
            _ => Histogram::noop(),
        }
    }
}
