//! Tests of `monitor`.

use super::*;

const VOCABULARY: u32 = 200;

/// Text has each of so many words in turn: a sample of whole rounds is exactly like the rest.
const ROUND: u32 = 97;
const MIN_TOKENS: u32 = ROUND;
const WINDOW: u32 = 4 * ROUND;
const EFFECT_MIN: f64 = 0.1;

/// Words of the training text (from 0), or others.
fn text(tokens: u32, from: u32) -> Vec<u32> {
    (0..tokens).map(|at| from + at % ROUND).collect()
}

fn asked(tokens: u32, from: u32) -> Vec<(u32, u64)> {
    text(tokens, from).into_iter().map(|token| (token, 1)).collect()
}

fn options() -> DriftOptions {
    DriftOptions {
        model_name: "m".to_owned(),
        window_tokens: WINDOW.into(),
        min_tokens: MIN_TOKENS.into(),
        effect_min: EFFECT_MIN,
        ..Default::default()
    }
}

fn monitor() -> Monitor {
    Monitor::new(options(), Reference::new(&text(100 * ROUND, 0), VOCABULARY, &options()).unwrap())
}

#[test]
fn few_tokens_get_no_verdict_however_strange_they_are() {
    let mut monitor = monitor();
    assert_eq!(monitor.look().0.state, DriftState::TooFew);
    monitor.observe("m", &asked(MIN_TOKENS - 1, 100)).unwrap();
    let (report, change) = monitor.look();
    assert_eq!(
        (report.state, report.tokens_asked, change),
        (DriftState::TooFew, u64::from(MIN_TOKENS) - 1, None)
    );
    assert!(report.js_distance > report.js_limit);
    monitor.observe("m", &asked(1, 100)).unwrap();
    assert_eq!(monitor.look().1, Some(Change::Alarm));
}

#[test]
fn an_alarm_is_told_once_and_its_end_once() {
    let mut monitor = monitor();
    let mut changes = Vec::new();
    for from in [0, 0, 100, 100, 100, 100, 100, 0, 0, 0, 0, 0] {
        monitor.observe("m", &asked(2 * ROUND, from)).unwrap();
        changes.extend(monitor.look().1);
        changes.extend(monitor.look().1);
    }
    assert_eq!(changes, [Change::Alarm, Change::Recovered]);
    let (report, _) = monitor.look();
    assert_eq!(
        (report.state, report.alarms, report.tokens_asked),
        (DriftState::NoDrift, 1, u64::from(24 * ROUND))
    );
    assert_eq!(report.window_tokens, u64::from(WINDOW));
}

#[test]
fn a_distance_between_the_two_limits_keeps_the_verdict() {
    let (mut calm, mut alarmed) = (monitor(), monitor());
    let level = *calm.reference.noise.level(WINDOW.into());
    let (limit, clear) = (level.limit(EFFECT_MIN), level.clear(EFFECT_MIN));
    // Ever more foreign tokens, until the distance is between the limits.
    let mixed = |foreign: u64| {
        let mut counts: Vec<(u32, u64)> = asked(WINDOW, 0);
        counts.extend([(150, foreign)]);
        counts
    };
    let distance = |foreign| {
        let mut probe = monitor();
        probe.observe("m", &mixed(foreign)).unwrap();
        probe.look().0.js_distance
    };
    let foreign = (0..400).find(|foreign| distance(*foreign) > clear).unwrap();
    assert!(distance(foreign) < limit, "{} is not within {clear} to {limit}", distance(foreign));
    calm.observe("m", &mixed(foreign)).unwrap();
    assert_eq!(calm.look().0.state, DriftState::NoDrift);
    alarmed.observe("m", &asked(WINDOW, 100)).unwrap();
    assert_eq!(alarmed.look().1, Some(Change::Alarm));
    alarmed.observe("m", &mixed(foreign)).unwrap();
    let (report, change) = alarmed.look();
    assert_eq!((report.state, change), (DriftState::Drift, None));
    alarmed.observe("m", &asked(WINDOW, 0)).unwrap();
    assert_eq!(alarmed.look().1, Some(Change::Recovered));
}

#[test]
fn what_makes_no_sense_is_refused_and_changes_nothing() {
    let mut monitor = monitor();
    let refusals = [
        monitor.observe("other", &[(1, 1)]),
        monitor.observe("m", &[(1, 1), (VOCABULARY, 1)]),
        monitor.observe("m", &[(1, u64::MAX), (2, u64::MAX)]),
        monitor.observe("m", &[(1, OBSERVED_TOKENS_MAX + 1)]),
        monitor.observe("m", &vec![(1, 1); OBSERVED_ENTRIES_MAX + 1]),
    ];
    let words = ["watches `m`", "token 200", "at most", "at most", "at most"];
    for (refusal, words) in refusals.into_iter().zip(words) {
        assert!(refusal.as_ref().unwrap_err().to_string().contains(words), "{refusal:?}");
    }
    let (report, _) = monitor.look();
    assert_eq!((report.tokens_asked, report.window_tokens), (0, 0));
    monitor.observe("m", &[(1, 1), (1, 2), (2, 0)]).unwrap();
    assert_eq!(monitor.look().0.tokens_asked, 3, "an entry may come twice");
}

#[test]
fn a_reference_that_is_too_small_is_refused() {
    let refused = Reference::new(&text(700, 0), VOCABULARY, &options()).unwrap_err();
    assert!(refused.to_string().contains("700 tokens"), "{refused}");
}
