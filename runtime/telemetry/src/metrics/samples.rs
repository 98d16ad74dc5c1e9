//! Series that are made anew whenever somebody asks: [`Samples`].

use std::collections::BTreeMap;

use metrics::{Key, Label};

use super::registry::{FamilySnapshot, Kind, Value};
use super::text;

/// Counters and gauges that come and go with what they speak of, such as a process that was moved elsewhere. The
/// `metrics` macros have no way to forget a series.
#[derive(Default)]
pub struct Samples {
    families: BTreeMap<&'static str, FamilySnapshot>,
}

impl Samples {
    /// Adds the value of a gauge. What has no valid name, or labels that Prometheus does not take, is left out.
    pub fn gauge(&mut self, name: &'static str, help: &str, labels: &[(&'static str, &str)], value: f64) {
        self.add(name, help, Kind::Gauge, labels, value);
    }

    /// Adds the value of a counter, whose name ends with `_total`.
    pub fn counter(&mut self, name: &'static str, help: &str, labels: &[(&'static str, &str)], value: f64) {
        self.add(name, help, Kind::Counter, labels, value);
    }

    fn add(
        &mut self,
        name: &'static str,
        help: &str,
        kind: Kind,
        labels: &[(&'static str, &str)],
        value: f64,
    ) {
        let labels: Vec<Label> =
            labels.iter().map(|(name, value)| Label::new(*name, (*value).to_owned())).collect();
        let Some(labels) = text::labels(&Key::from_parts(name, labels)) else { return };
        let family = self.families.entry(name).or_insert_with(|| FamilySnapshot {
            name: name.to_owned(),
            help: Some(help.to_owned()),
            kind,
            values: Vec::new(),
        });
        family.values.push((labels, Value::Gauge(value)));
    }

    /// In Prometheus' text format, version 0.0.4.
    pub fn render(self) -> String {
        text::render(&self.into_families())
    }

    /// By name; the series of each by their labels.
    pub(super) fn into_families(self) -> Vec<FamilySnapshot> {
        let sorted = |mut family: FamilySnapshot| {
            family.values.sort_by(|(a, _), (b, _)| a.cmp(b));
            family
        };
        self.families.into_values().map(sorted).collect()
    }
}
