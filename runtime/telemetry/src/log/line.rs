//! A line as `tracing-subscriber` forms it, with the process's fields.
//!
//! A root span would not do: tasks are spawned from everywhere and do not inherit it.

use std::fmt;

use serde_json::Value;
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::{Format, Full, Json, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use super::Process;

/// Adds the process's fields to the lines of `F`.
pub(super) struct ProcessLine<F> {
    form: F,
    /// Text before the line, in place of its first `replaced` bytes.
    before: String,
    replaced: usize,
    after: String,
}

impl ProcessLine<Format<Full>> {
    /// Fields at the end: `... role=worker node=node-1 job=3 rank=0`.
    pub(super) fn human(process: &Process) -> Self {
        let after = fields(process).iter().map(|(name, value)| format!(" {name}={}", plain(value))).collect();
        Self { form: Format::default(), before: String::new(), replaced: 0, after }
    }
}

impl ProcessLine<Format<Json>> {
    /// Fields at the beginning: `{"role":"worker","node":"node-1",...`.
    pub(super) fn json(process: &Process) -> Self {
        let fields: String =
            fields(process).iter().map(|(name, value)| format!("\"{name}\":{value},")).collect();
        Self {
            form: Format::default().json(),
            before: format!("{{{fields}"),
            replaced: 1,
            after: String::new(),
        }
    }
}

/// The fields that the process has, in their order.
fn fields(process: &Process) -> Vec<(&'static str, Value)> {
    let Process { role, node, job, rank } = process;
    let role = (!role.is_empty()).then(|| role.as_str().into());
    let text = |text: &Option<String>| text.as_deref().map(Value::from);
    let all = [("role", role), ("node", text(node)), ("job", text(job)), ("rank", rank.map(Value::from))];
    all.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
}

/// A word as it is, anything else in quotes.
fn plain(value: &Value) -> String {
    let is_word = |text: &&str| text.chars().all(|c| c.is_ascii_alphanumeric() || "-_./:".contains(c));
    value.as_str().filter(is_word).map_or_else(|| value.to_string(), str::to_owned)
}

impl<S, N, F> FormatEvent<S, N> for ProcessLine<F>
where
    S: Subscriber + for<'lookup> LookupSpan<'lookup>,
    N: for<'writer> FormatFields<'writer> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut line = String::new();
        let inner = Writer::new(&mut line);
        self.form.format_event(context, inner, event)?;
        let line = line.trim_end_matches('\n');
        let rest = line.get(self.replaced..).ok_or(fmt::Error)?;
        writeln!(writer, "{}{rest}{}", self.before, self.after)
    }
}
