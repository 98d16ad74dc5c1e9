//! The monitor's figures for Prometheus.

use metrics::{counter, gauge};

use crate::message::DriftReport;
use crate::monitor::Change;

const JS_DISTANCE: &str = "sixfold_drift_js_distance";
const KL_NATS: &str = "sixfold_drift_kl_nats";
const ALARMS: &str = "sixfold_drift_alarms_total";

/// Records what a look found. The counter is there before the first alarm, so that it can be alerted on.
pub(crate) fn record(report: &DriftReport, change: Option<Change>) {
    let model = || report.model.clone();
    gauge!(JS_DISTANCE, "model" => model()).set(report.js_distance);
    gauge!(KL_NATS, "model" => model()).set(report.kl_nats);
    counter!(ALARMS, "model" => model()).increment(u64::from(change == Some(Change::Alarm)));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::DriftState;

    #[test]
    fn figures_and_alarms_are_there_for_prometheus() {
        let handle = sixfold_telemetry::Metrics::install(&[]).unwrap();
        let report = DriftReport {
            model: "m".to_owned(),
            state: DriftState::NoDrift,
            window_tokens: 1,
            tokens_asked: 1,
            kl_nats: 1.5,
            js_distance: 0.25,
            js_limit: 0.5,
            alarms: 0,
        };
        record(&report, None);
        let text = handle.render();
        assert!(text.contains("sixfold_drift_js_distance{model=\"m\"} 0.25"), "{text}");
        assert!(text.contains("sixfold_drift_kl_nats{model=\"m\"} 1.5"), "{text}");
        assert!(text.contains("sixfold_drift_alarms_total{model=\"m\"} 0"), "{text}");
        record(&report, Some(Change::Alarm));
        record(&report, Some(Change::Recovered));
        let text = handle.render();
        assert!(text.contains("sixfold_drift_alarms_total{model=\"m\"} 1"), "{text}");
    }
}
