//! Prometheus' text format, version 0.0.4:
//! <https://prometheus.io/docs/instrumenting/exposition_formats/>.

use std::collections::BTreeMap;
use std::fmt::Write;

use metrics::Key;

use super::histogram::Counts;
use super::registry::{FamilySnapshot, Kind, Value};
use super::summary::{Figures, QUANTILES};

/// The label of a summary's own.
const QUANTILE: &str = "quantile";
/// The label of a histogram's own.
const BOUND: &str = "le";

/// Writes families in their order.
pub(super) fn render(families: &[FamilySnapshot]) -> String {
    let mut text = String::new();
    for family in families {
        write_family(&mut text, family).expect("a string takes everything");
    }
    text
}

/// A key's labels, `a="1",b="2"`, sorted; `None` where the key's name or a label's is not one that
/// Prometheus takes, or a label is there twice.
pub(super) fn labels(key: &Key) -> Option<String> {
    if !is_name(key.name(), true) {
        return None;
    }
    let mut sorted = BTreeMap::new();
    for label in key.labels() {
        let own = [QUANTILE, BOUND].contains(&label.key());
        let valid = is_name(label.key(), false) && !own && !label.key().starts_with("__");
        if !valid || sorted.insert(label.key(), label.value()).is_some() {
            return None;
        }
    }
    let pairs = sorted.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value, true)));
    Some(pairs.collect::<Vec<_>>().join(","))
}

fn is_name(name: &str, with_colons: bool) -> bool {
    let valid = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || (with_colons && byte == b':');
    name.bytes().all(valid) && name.bytes().next().is_some_and(|first| !first.is_ascii_digit())
}

fn escaped(text: &str, with_quotes: bool) -> String {
    let text = text.replace('\\', "\\\\").replace('\n', "\\n");
    if with_quotes { text.replace('"', "\\\"") } else { text }
}

fn write_family(text: &mut String, family: &FamilySnapshot) -> std::fmt::Result {
    let name = &family.name;
    if let Some(help) = &family.help {
        writeln!(text, "# HELP {name} {}", escaped(help, false))?;
    }
    let kind = match family.kind {
        Kind::Counter => "counter",
        Kind::Gauge => "gauge",
        Kind::Summary => "summary",
        Kind::Histogram(_) => "histogram",
    };
    writeln!(text, "# TYPE {name} {kind}")?;
    for (labels, value) in &family.values {
        match value {
            Value::Counter(count) => writeln!(text, "{name}{} {count}", braced(labels))?,
            Value::Gauge(value) => writeln!(text, "{name}{} {}", braced(labels), number(*value))?,
            Value::Summary(figures) => write_summary(text, name, labels, figures)?,
            Value::Histogram(counts) => write_histogram(text, name, labels, counts)?,
        }
    }
    Ok(())
}

fn write_summary(text: &mut String, name: &str, labels: &str, figures: &Figures) -> std::fmt::Result {
    for (quantile, value) in QUANTILES.into_iter().zip(figures.quantiles) {
        let comma = if labels.is_empty() { "" } else { "," };
        writeln!(text, "{name}{{{labels}{comma}{QUANTILE}=\"{quantile}\"}} {}", number(value))?;
    }
    let labels = braced(labels);
    writeln!(text, "{name}_sum{labels} {}", number(figures.sum))?;
    writeln!(text, "{name}_count{labels} {}", figures.count)
}

fn write_histogram(text: &mut String, name: &str, labels: &str, counts: &Counts) -> std::fmt::Result {
    let comma = if labels.is_empty() { "" } else { "," };
    for (bound, count) in &counts.cumulative {
        writeln!(text, "{name}_bucket{{{labels}{comma}{BOUND}=\"{}\"}} {count}", number(*bound))?;
    }
    let labels = braced(labels);
    writeln!(text, "{name}_sum{labels} {}", number(counts.sum_s))?;
    writeln!(text, "{name}_count{labels} {}", counts.count())
}

fn braced(labels: &str) -> String {
    if labels.is_empty() { String::new() } else { format!("{{{labels}}}") }
}

/// A floating-point number as Go reads it.
fn number(value: f64) -> String {
    if value.is_infinite() {
        return if value > 0.0 { "+Inf".to_owned() } else { "-Inf".to_owned() };
    }
    value.to_string()
}
