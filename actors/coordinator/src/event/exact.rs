//! Metrics in a JSON log without loss: a floating-point figure is kept as its bits, since JSON has
//! no NaN and a decimal may come back as its neighbour.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sixfold_cluster::task::{Metric, Metrics};

#[derive(Serialize, Deserialize)]
enum Exact {
    Count(u64),
    Bits(u64),
    Text(String),
}

pub(super) fn serialize<S: Serializer>(metrics: &Metrics, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(metrics.iter().map(|(name, metric)| {
        let exact = match metric {
            Metric::Count(count) => Exact::Count(*count),
            Metric::Number(number) => Exact::Bits(number.to_bits()),
            Metric::Text(text) => Exact::Text(text.clone()),
        };
        (name, exact)
    }))
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Metrics, D::Error> {
    let exact = BTreeMap::<String, Exact>::deserialize(deserializer)?;
    let metrics = exact.into_iter().map(|(name, exact)| {
        let metric = match exact {
            Exact::Count(count) => Metric::Count(count),
            Exact::Bits(bits) => Metric::Number(f64::from_bits(bits)),
            Exact::Text(text) => Metric::Text(text),
        };
        (name, metric)
    });
    Ok(metrics.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize, Deserialize)]
    struct Holder(#[serde(with = "super")] Metrics);

    #[test]
    fn every_number_survives_to_the_bit() {
        for number in [0.1 + 0.2, -0.0, f64::MIN_POSITIVE / 8.0, f64::INFINITY, 4.35e300, f64::NAN] {
            let holder = Holder(Metrics::from([("loss".to_owned(), Metric::Number(number))]));
            let text = serde_json::to_string(&holder).unwrap();
            let Holder(back) = serde_json::from_str(&text).unwrap();
            assert!(matches!(back["loss"], Metric::Number(read) if read.to_bits() == number.to_bits()));
        }
    }
}
