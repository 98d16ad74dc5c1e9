//! A report of a training that has had everything happen to it.

use std::collections::{BTreeMap, BTreeSet};

use quick_xml::Reader;
use quick_xml::events::Event as Xml;
use sixfold_cluster::task::Metrics;
use sixfold_coordinator::message::{JobState, PlanChange, Recovery, StageState, StageView, TrainingView};
use sixfold_topology::ParallelPlan;
use sixfold_train::{CollectiveTimes, HISTORY_POINTS_MAX, HistoryPoint, NamedStraggler, RankTimes};
use sixfold_wire::id::TaskId;

use super::*;

const HOSTILE: &str = "</style><script>alert(\"1\")</script> & 'x'";

fn plan(text: &str) -> ParallelPlan {
    text.parse().unwrap()
}

fn account(rank: u32) -> RankAccount {
    let exchange =
        |seconds| CollectiveTimes { calls: 160, seconds, waited_seconds: seconds * 0.8, bytes_sent: 3 << 20 };
    let slow = f64::from(rank % 3);
    let collectives = [
        ("tensor_all_reduce", exchange(1.1 + slow * 0.2)),
        ("pipeline_receive", exchange(2.2 - slow * 0.3)),
        ("pipeline_send", exchange(0.2)),
        ("gradient_reduce_scatter", exchange(0.7)),
        ("parameter_all_gather", exchange(0.4)),
        ("figures", exchange(0.3)),
    ];
    let collectives = collectives.map(|(name, times)| (name.to_owned(), times));
    RankAccount {
        rank,
        steps: 40,
        bubble: 0.18,
        scheduled_bubble: 0.14,
        step_seconds: 0.3,
        flops: 180_000_000_000,
        bytes_sent: 90 << 20,
        peak_gflops: 55.5,
        hfu: 0.27,
        resident_bytes_max: 310 << 20,
        time: RankTimes {
            seconds: 12.0,
            compute_seconds: 5.4 + slow * 0.1,
            optimizer_seconds: 0.6,
            data_wait_seconds: 0.02,
            save_seconds: 0.5,
            collectives: BTreeMap::from(collectives),
        },
        ..RankAccount::default()
    }
}

fn curve(steps: u64) -> History {
    let mut history = History::default();
    for step in 0..steps {
        let at = step as f32;
        let wave = (at * 0.9).sin() * 0.05;
        history.push(HistoryPoint {
            loss: 1.7 + 3.4 / (1.0 + at / 25.0) + wave,
            gradient_norm: 0.6 + 1.4 / (1.0 + at / 10.0) + wave.abs(),
            learning_rate: 3e-3 * (at / 20.0).min(1.0),
            seconds: 0.3 + wave * 0.4,
            mfu: 0.31 - wave * 0.3,
            data_wait_seconds: if step == 0 { 0.004 } else { 0.00002 },
            bubble: 0.18 + wave * 0.5,
            resident_bytes: 3e8 + at * 1e4,
        });
    }
    history.name_straggler(NamedStraggler { step: steps / 2, rank: 3, to_median: 1.8 });
    history
}

fn recovery(step: u64) -> Recovery {
    Recovery {
        task: TaskId::default(),
        stage: "train".to_owned(),
        node: "node-2".into(),
        cause: format!("the worker ended {HOSTILE}"),
        last_sign_ms: 1000,
        detected_ms: 1010,
        placed_ms: Some(1100),
        resumed_ms: Some(2210),
        step: Some(step),
        redone: Some(2),
    }
}

fn plan_change(step: u64) -> PlanChange {
    PlanChange {
        number: 1,
        stage: "train".to_owned(),
        from: plan("dp2.tp2.pp2"),
        to: plan("tp2.pp2"),
        by_itself: true,
        why: "4 slots are left".to_owned(),
        at_ms: 5000,
        placed_ms: Some(5100),
        resumed_ms: Some(6000),
        step: Some(step),
        redone: Some(1),
    }
}

/// The report of a job of `ranks` ranks that has done `steps` steps.
pub(super) fn report(steps: u64, ranks: u32, state: JobState) -> TrainingReport {
    let source = format!(
        "name = \"x\"\n[stage.data]\nkind = \"import\"\ntext = \"/x\"\n[stage.tokens]\nkind = \"tokenize\"\n\
         inputs = [\"data\"]\n[stage.train]\nkind = \"train\"\ninputs = [\"tokens\"]\ntensor_parallel = 2\n\
         pipeline_parallel = 2\ndata_parallel = 2\nsteps = {}\n",
        steps.max(1)
    );
    let spec = crate::job::compile("job.toml", &source, &[]).unwrap();
    let metrics = |rank| {
        let account = serde_json::to_string(&account(rank)).unwrap();
        let mut metrics = Metrics::from([(ACCOUNT_FIGURE.to_owned(), Metric::Text(account))]);
        metrics.insert("weights_blake3".to_owned(), Metric::Text("ab".repeat(32)));
        metrics
    };
    let rank = |rank| RankView { rank, node: Some("node-1".into()), metrics: metrics(rank) };
    let training = TrainingView {
        stage: "train".to_owned(),
        plan: plan("dp2.tp2.pp2"),
        wanted_plan: plan("dp2.tp2.pp2"),
        metrics: metrics(0),
        ranks: (0..ranks).map(rank).collect(),
    };
    let stage = |name: &str, kind: &str, metrics| StageView {
        name: name.to_owned(),
        kind: kind.to_owned(),
        state: StageState::Succeeded,
        seconds: 1.0,
        metrics,
        tasks_done: 1,
        tasks_total: 1,
        outputs: vec![sixfold_wire::id::ArtifactId(sixfold_wire::id::ContentHash::of(name.as_bytes()))],
    };
    let perplexity = Metrics::from([("perplexity".to_owned(), Metric::Number(9.5))]);
    let view = JobView {
        job: JobId(7),
        name: format!("small {HOSTILE}"),
        state,
        message: Some("step 12: rank 1 had the first number that is not finite".to_owned()),
        seconds: 90.0,
        stages: vec![stage("train", "train", Metrics::new()), stage("evaluate", "evaluate", perplexity)],
        training: Some(training.clone()),
        recoveries: vec![recovery(steps / 4), recovery(steps / 4 + 1)],
        plan_changes: vec![plan_change(steps * 3 / 4)],
    };
    TrainingReport::new(view, training, &spec, curve(steps)).unwrap()
}

/// Reads a page as XML: every element is closed in order, and text is escaped. Returns the ids of its sections, the
/// names of its elements, and its words.
fn parse(page: &str) -> (BTreeSet<String>, BTreeSet<String>, String) {
    let mut reader = Reader::from_str(page);
    let (mut ids, mut names, mut words) = (BTreeSet::new(), BTreeSet::new(), String::new());
    loop {
        match reader.read_event().unwrap_or_else(|error| panic!("{error} at {}", reader.error_position())) {
            Xml::Start(element) | Xml::Empty(element) => {
                names.insert(element.name().as_ref().to_owned());
                for attribute in element.attributes() {
                    let attribute = attribute.unwrap();
                    assert!(!attribute.value.starts_with("http") || attribute.key.as_ref() == "xmlns");
                    if element.name().as_ref() == "section" && attribute.key.as_ref() == "id" {
                        ids.insert(attribute.value.to_string());
                    }
                }
            }
            Xml::Text(text) => words += &text,
            Xml::Eof => return (ids, names, words),
            _ => {}
        }
    }
}

#[test]
fn a_page_has_every_section_and_needs_nothing_else() {
    for (steps, ranks, state) in [
        (0, 0, JobState::Running),
        (1, 1, JobState::Running),
        (40, 8, JobState::Failed),
        (3000, 8, JobState::Succeeded),
    ] {
        let page = report(steps, ranks, state).page().unwrap();
        let (ids, names, words) = parse(&page);
        for id in ["figures", "loss", "curves", "time", "ranks", "events", "plan", "lineage"] {
            assert!(ids.contains(id), "{steps} steps: no section {id}");
        }
        for name in ["script", "link", "img", "iframe"] {
            assert!(!names.contains(name), "{name} is in the page");
        }
        for title in ["Gradient norm", "Learning rate", "Throughput", "MFU", "Waiting for data", "Memory"] {
            assert!(words.contains(title), "{steps} steps: no {title}");
        }
        assert!(names.contains("svg") && !page.contains("NaN") && !page.contains("url("));
        assert!(page.contains(&"ab".repeat(32)) && page.contains("at work again after 1.2 s"));
        assert_eq!(words.contains("rank 1 had the first number"), state == JobState::Failed);
        assert_eq!(words.contains("A point is the mean of 8 steps."), steps == 3000);
    }
}

#[test]
fn a_page_is_bounded_however_long_the_training_and_however_many_ranks() {
    let usual = report(HISTORY_POINTS_MAX as u64, 8, JobState::Running).page().unwrap();
    let mut large = report(200_000, 64, JobState::Running);
    large.view.recoveries = (0..1000).map(recovery).collect();
    large.events = events::of(&large.view, "train", &large.history);
    let page = large.page().unwrap();
    assert_eq!(large.events.len(), events::EVENTS_MAX);
    assert!(page.len() < 2 * usual.len() + 200_000, "{} and {} bytes", page.len(), usual.len());
    parse(&page);
}

#[test]
fn events_are_in_the_order_of_their_steps_and_a_failure_is_the_last() {
    let report = report(40, 8, JobState::Failed);
    let told: Vec<(&str, Option<u64>)> = report.events.iter().map(|event| (event.what, event.step)).collect();
    let expected = [("fault", 10), ("fault", 11), ("straggler", 20), ("plan", 30), ("failed", 40)]
        .map(|(what, step)| (what, Some(step)));
    assert_eq!(told, expected);
}

#[test]
fn programs_get_the_same_figures() {
    let report = report(40, 8, JobState::Succeeded);
    let object = report.to_json();
    assert_eq!((&object["steps"], &object["curves"]["steps_of_a_point"]), (&40.into(), &1.into()));
    for name in ["step", "loss", "gradient_norm", "learning_rate", "step_seconds", "mfu", "bubble"] {
        assert_eq!(object["curves"][name].as_array().map(Vec::len), Some(40), "{name}");
    }
    assert_eq!(object["ranks"][7]["account"]["time"]["collectives"]["figures"]["calls"], 160);
    assert_eq!(object["events"].as_array().map(Vec::len), Some(4));
    assert!((object["held_out_loss"].as_f64().unwrap() - 9.5_f64.ln()).abs() < 1e-9);
}

#[test]
fn a_page_is_written_where_it_was_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let report = report(40, 4, JobState::Running);
    let path = report.write(&folder.path().join("new/folder")).unwrap();
    assert!(path.ends_with("new/folder/training-report-job-7.html"));
    assert_eq!(std::fs::read_to_string(path).unwrap(), report.page().unwrap());
    if let Ok(to) = std::env::var("SIXFOLD_REPORT_SAMPLE") {
        report.write(std::path::Path::new(&to)).unwrap();
    }
}
