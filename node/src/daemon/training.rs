//! The trainings of this node as Prometheus reads them.
//!
//! Made anew from what the workers told last, so that a rank that was placed elsewhere leaves no series behind.

use sixfold_cluster::daemon::TaskFigures;
use sixfold_cluster::task::{ACCOUNT_FIGURE, Metric, Metrics};
use sixfold_telemetry::Samples;
use sixfold_train::RankAccount;

type Labels<'a> = [(&'static str, &'a str); 3];

/// Figures of a job, which its first rank tells: name of the figure, of the gauge, and what it is.
const OF_JOB: [(&str, &str, &str); 13] = [
    ("step", "sixfold_train_step", "Optimizer steps done."),
    ("steps", "sixfold_train_steps", "Optimizer steps of the whole training."),
    ("committed_step", "sixfold_train_committed_step", "Newest step of which every rank's state is held."),
    ("loss", "sixfold_train_loss", "Mean loss of the step's targets, in nats."),
    (
        "held_out_loss",
        "sixfold_train_held_out_loss",
        "Mean loss of held-out targets at the last evaluation, in nats.",
    ),
    ("gradient_norm", "sixfold_train_gradient_norm", "Global norm of the gradient before clipping."),
    ("learning_rate", "sixfold_train_learning_rate", "Learning rate of the step."),
    ("tokens_per_second", "sixfold_train_tokens_per_second", "Tokens of the step by its wall time."),
    ("mfu", "sixfold_train_mfu_ratio", "Model FLOPs utilization, of the measured peak of products."),
    ("eta_seconds", "sixfold_train_eta_seconds", "Time that the steps that are left are expected to take."),
    ("bubble", "sixfold_train_bubble_ratio", "Part of a step in which ranks waited for their pipelines."),
    (
        "scheduled_bubble",
        "sixfold_train_scheduled_bubble_ratio",
        "The same as scheduled, if all ranks were as fast.",
    ),
    (
        "slowest_rank_to_median",
        "sixfold_train_slowest_rank_ratio",
        "Time that the slowest rank computed, as a multiple of the median rank's.",
    ),
];

/// Adds the series of the tasks that train.
pub(super) fn sample(tasks: &[TaskFigures], samples: &mut Samples) {
    for TaskFigures { task, stage, figures } in tasks {
        let Some(account) = account(figures) else { continue };
        let (job, rank) = (task.job.to_string(), task.index.to_string());
        let labels = [("job", job.as_str()), ("stage", stage.as_str()), ("rank", rank.as_str())];
        for (figure, name, help) in OF_JOB {
            match figures.get(figure) {
                Some(Metric::Number(value)) => samples.gauge(name, help, &labels, *value),
                Some(Metric::Count(count)) => samples.gauge(name, help, &labels, *count as f64),
                Some(Metric::Text(_)) | None => {}
            }
        }
        sample_rank(&account, &labels, samples);
        sample_collectives(&account, &labels, samples);
    }
}

/// What a rank accounts for, if it is one of a training.
fn account(figures: &Metrics) -> Option<RankAccount> {
    match figures.get(ACCOUNT_FIGURE) {
        Some(Metric::Text(json)) => serde_json::from_str(json).ok(),
        _ => None,
    }
}

fn sample_rank(account: &RankAccount, labels: &Labels<'_>, samples: &mut Samples) {
    let RankAccount { time, .. } = account;
    for (name, help, value) in [
        ("sixfold_train_rank_steps_total", "Steps of the rank's attempt.", account.steps as f64),
        ("sixfold_train_step_seconds_total", "Wall time of these steps.", time.seconds),
        ("sixfold_train_compute_seconds_total", "Time in passes through the model.", time.compute_seconds),
        ("sixfold_train_optimizer_seconds_total", "Time in updates of parameters.", time.optimizer_seconds),
        ("sixfold_train_save_seconds_total", "Time in which states were copied.", time.save_seconds),
        (
            "sixfold_train_data_wait_seconds_total",
            "Time in which steps waited for their batches.",
            time.data_wait_seconds,
        ),
        (
            "sixfold_train_starved_steps_total",
            "Steps, but for an attempt's first, whose batch had not been read in time.",
            account.starved_steps as f64,
        ),
        (
            "sixfold_train_flop_total",
            "Floating-point operations done, computed again ones among them.",
            account.flops as f64,
        ),
        ("sixfold_train_sent_bytes_total", "Bytes sent to other ranks.", account.bytes_sent as f64),
    ] {
        samples.counter(name, help, labels, value);
    }
    for (name, help, value) in [
        (
            "sixfold_train_rank_bubble_ratio",
            "Part of its steps in which the rank waited for its pipeline.",
            account.bubble,
        ),
        ("sixfold_train_hfu_ratio", "Hardware FLOPs utilization of the rank.", account.hfu),
        ("sixfold_train_peak_flops", "Peak of products, in operations a second.", account.peak_gflops * 1e9),
        (
            "sixfold_train_resident_memory_bytes",
            "Memory of the rank's process.",
            account.resident_bytes as f64,
        ),
        ("sixfold_train_resident_memory_max_bytes", "The most of it.", account.resident_bytes_max as f64),
        (
            "sixfold_train_device_memory_bytes",
            "Buffers of the rank's device in use.",
            account.device_bytes as f64,
        ),
        ("sixfold_train_device_memory_max_bytes", "The most of them.", account.device_bytes_max as f64),
    ] {
        samples.gauge(name, help, labels, value);
    }
}

fn sample_collectives(account: &RankAccount, [job, stage, rank]: &Labels<'_>, samples: &mut Samples) {
    for (collective, times) in &account.time.collectives {
        let labels = [*job, *stage, *rank, ("collective", collective.as_str())];
        for (name, help, value) in [
            (
                "sixfold_train_collective_seconds_total",
                "Time in exchanges between ranks, by what they are for.",
                times.seconds,
            ),
            (
                "sixfold_train_collective_wait_seconds_total",
                "The part of it in which the rank waited for others.",
                times.waited_seconds,
            ),
            (
                "sixfold_train_collective_sent_bytes_total",
                "Bytes that the rank sent in them.",
                times.bytes_sent as f64,
            ),
            ("sixfold_train_collective_calls_total", "How many there were.", times.calls as f64),
        ] {
            samples.counter(name, help, &labels, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use sixfold_train::{CollectiveTimes, RankTimes};
    use sixfold_wire::id::{JobId, TaskId};

    use super::*;

    fn rank(index: u32, stage: &str) -> TaskFigures {
        let times = CollectiveTimes { calls: 6, seconds: 0.5, waited_seconds: 0.25, bytes_sent: 4096 };
        let account = RankAccount {
            rank: index,
            steps: 3,
            starved_steps: 0,
            peak_gflops: 50.0,
            time: RankTimes {
                seconds: 2.0,
                compute_seconds: 1.25,
                collectives: BTreeMap::from([("tensor_all_reduce".to_owned(), times)]),
                ..RankTimes::default()
            },
            ..RankAccount::default()
        };
        let mut figures =
            Metrics::from([(ACCOUNT_FIGURE.to_owned(), serde_json::to_string(&account).unwrap().into())]);
        if index == 0 {
            figures.insert("loss".to_owned(), Metric::Number(2.5));
            figures.insert("step".to_owned(), Metric::Count(3));
        }
        let task = TaskId { job: JobId(7), phase: 2, index };
        TaskFigures { task, stage: stage.to_owned(), figures }
    }

    #[test]
    fn every_rank_has_its_series_and_the_text_is_one_that_prometheus_reads() {
        let other = TaskFigures { figures: Metrics::new(), ..rank(9, "crawl") };
        let mut samples = Samples::default();
        sample(&[rank(0, "tr\"ain\\\n"), rank(1, "train"), other], &mut samples);
        let text = samples.render();
        for line in [
            r#"sixfold_train_loss{job="7",rank="0",stage="tr\"ain\\\n"} 2.5"#,
            r#"sixfold_train_starved_steps_total{job="7",rank="1",stage="train"} 0"#,
            r#"sixfold_train_peak_flops{job="7",rank="1",stage="train"} 50000000000"#,
            r#"sixfold_train_collective_seconds_total{collective="tensor_all_reduce",job="7",rank="1",stage="train"} 0.5"#,
            "# TYPE sixfold_train_collective_sent_bytes_total counter",
            "# TYPE sixfold_train_loss gauge",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        assert!(!text.contains("crawl"), "{text}");
        check_exposition(&text);
    }

    /// Each family has its help and type before its series, once; each series is there once, under a name that fits
    /// its type, with a value that is a number.
    fn check_exposition(text: &str) {
        let (mut types, mut helps, mut series) = (BTreeMap::new(), BTreeSet::new(), BTreeSet::new());
        for line in text.lines() {
            if let Some(help) = line.strip_prefix("# HELP ") {
                assert!(helps.insert(help.split_once(' ').unwrap().0), "{line}");
            } else if let Some(kind) = line.strip_prefix("# TYPE ") {
                let (name, kind) = kind.split_once(' ').unwrap();
                assert!(helps.contains(name) && types.insert(name, kind).is_none(), "{line}");
                assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
            } else {
                let (of, value) = line.rsplit_once(' ').unwrap();
                let (name, labels) = of.split_once('{').unwrap();
                assert!(types.contains_key(name) && labels.ends_with('}'), "{line}");
                assert!(value.parse::<f64>().unwrap().is_finite() && series.insert(of), "{line}");
            }
        }
        assert!(series.len() > 30, "{text}");
    }
}
