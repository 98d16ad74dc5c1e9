//! What the macros record, as it is shown.

use std::time::Duration;

use metrics::{counter, describe_counter, gauge, histogram, with_local_recorder};

use super::registry::Registry;
use super::text;

fn shown(registry: &Registry) -> String {
    text::render(&registry.snapshot())
}

fn refused(registry: &Registry) -> u64 {
    let text = shown(registry);
    let line = text.lines().find_map(|line| line.strip_prefix("sixfold_metrics_refused_total "));
    line.unwrap().parse().unwrap()
}

#[test]
fn the_text_is_pinned() {
    let registry = Registry::default();
    with_local_recorder(&registry, || {
        describe_counter!("b_total", "Back\\slash and\nline.");
        counter!("b_total", "route" => "/v1", "code" => "200").increment(2);
        counter!("b_total", "code" => "200", "route" => "/v1").increment(1);
        counter!("b_total", "route" => "a\"b\\c\nd").increment(1);
        gauge!("a_bytes").set(1.5);
        gauge!("a_infinite").set(f64::INFINITY);
        histogram!("c_seconds", "model" => "m").record(Duration::from_millis(250));
    });
    let expected = r#"# TYPE a_bytes gauge
a_bytes 1.5
# TYPE a_infinite gauge
a_infinite +Inf
# HELP b_total Back\\slash and\nline.
# TYPE b_total counter
b_total{code="200",route="/v1"} 3
b_total{route="a\"b\\c\nd"} 1
# TYPE c_seconds summary
c_seconds{model="m",quantile="0.5"} 0.250879
c_seconds{model="m",quantile="0.9"} 0.250879
c_seconds{model="m",quantile="0.99"} 0.250879
c_seconds{model="m",quantile="0.999"} 0.250879
c_seconds_sum{model="m"} 0.25
c_seconds_count{model="m"} 1
# HELP sixfold_metrics_refused_total Registrations of series that had no room or no valid name.
# TYPE sixfold_metrics_refused_total counter
sixfold_metrics_refused_total 0
"#;
    assert_eq!(shown(&registry), expected);
}

#[test]
fn a_latency_with_buckets_is_a_histogram() {
    let registry = Registry::new(&[("d_seconds", &[0.25, 1.0])]);
    with_local_recorder(&registry, || {
        for time_ms in [1, 250, 251, 1000, 3000] {
            histogram!("d_seconds", "model" => "m").record(Duration::from_millis(time_ms));
        }
        histogram!("d_seconds", "model" => "m").record(f64::NAN);
        histogram!("d_seconds").record(-1.0);
        histogram!("d_seconds", "le" => "1").record(1.0);
    });
    let expected = r#"# TYPE d_seconds histogram
d_seconds_bucket{le="0.25"} 0
d_seconds_bucket{le="1"} 0
d_seconds_bucket{le="+Inf"} 0
d_seconds_sum 0
d_seconds_count 0
d_seconds_bucket{model="m",le="0.25"} 2
d_seconds_bucket{model="m",le="1"} 4
d_seconds_bucket{model="m",le="+Inf"} 5
d_seconds_sum{model="m"} 4.502
d_seconds_count{model="m"} 5
"#;
    let text = shown(&registry);
    assert!(text.starts_with(expected), "{text}");
    assert_eq!(refused(&registry), 1, "the bound's label is the histogram's own");
}

#[test]
fn series_are_bounded_and_what_has_no_room_is_counted() {
    let registry = Registry::default();
    with_local_recorder(&registry, || {
        for index in 0..600 {
            histogram!("latency_seconds", "peer" => index.to_string()).record(0.1);
        }
        for index in 0..9000 {
            counter!("calls_total", "peer" => index.to_string()).increment(1);
        }
        counter!("calls_total", "peer" => "0").increment(1);
    });
    let text = shown(&registry);
    let series = |name: &str| text.lines().filter(|line| line.starts_with(name)).count();
    assert_eq!(series("latency_seconds_count{"), 512);
    assert_eq!(series("calls_total{"), 8192);
    assert!(text.contains("calls_total{peer=\"0\"} 2\n"), "a known series goes on");
    assert_eq!(refused(&registry), 88 + 808);
}

#[test]
fn names_that_would_break_the_text_are_refused() {
    let registry = Registry::default();
    with_local_recorder(&registry, || {
        counter!("bad name").increment(1);
        counter!("1st").increment(1);
        counter!("a_total", "bad-label" => "1").increment(1);
        histogram!("a_seconds", "quantile" => "1").record(1.0);
        counter!("a_total", "twice" => "1", "twice" => "2").increment(1);
        counter!("b_total").increment(1);
        gauge!("b_total", "other" => "kind").set(1.0);
        gauge!("b_total").set(1.0);
    });
    assert_eq!(refused(&registry), 7);
    let text = shown(&registry);
    assert_eq!(text.lines().filter(|line| !line.starts_with('#')).count(), 2, "{text}");
}

#[test]
fn threads_lose_no_count() {
    let registry = Registry::default();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                with_local_recorder(&registry, || {
                    for index in 0..1000 {
                        counter!("n_total", "i" => (index % 10).to_string()).increment(1);
                        histogram!("n_seconds").record(0.001);
                    }
                });
            });
        }
    });
    let text = shown(&registry);
    for index in 0..10 {
        assert!(text.contains(&format!("n_total{{i=\"{index}\"}} 800\n")), "{text}");
    }
    assert!(text.contains("n_seconds_count 8000\n"), "{text}");
}
