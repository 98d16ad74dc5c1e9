//! The curves of a report.

use anyhow::Result;
use sixfold_train::HistoryPoint;

use super::TrainingReport;
use super::plot::{Chart, Line, Look, SMALL, WIDE, running_mean};

/// The running mean is over one point in so many.
const MEAN_SHARE: usize = 20;
const MEBIBYTE: f64 = 1_048_576.0;

/// A picture with its words.
pub(super) struct Figure {
    pub(super) title: &'static str,
    pub(super) caption: String,
    /// For half of a page, and for telephones.
    pub(super) small: String,
    /// For the width of a page; none where the small one does.
    pub(super) wide: Option<String>,
}

impl TrainingReport {
    /// Steps at which something happened, with their numbers in the list of events.
    fn marks(&self) -> Vec<(u64, usize)> {
        let numbered = (1..).zip(&self.events);
        numbered.filter_map(|(number, event)| Some((event.step.filter(|step| *step > 0)?, number))).collect()
    }

    /// A value of each point that there is one of, by step.
    fn points(&self, value: impl Fn(&HistoryPoint) -> f64) -> Vec<(f64, f64)> {
        self.history.by_step().map(|(step, point)| (step as f64, value(&point))).collect()
    }

    /// The curve of the loss.
    pub(super) fn loss_figure(&self) -> Result<Figure> {
        let raw = self.points(|point| f64::from(point.loss));
        let mean = running_mean(&raw, raw.len() / MEAN_SHARE + 1);
        let mut lines = vec![
            Line { name: "each step", look: Look::Raw, points: raw },
            Line { name: "running mean", look: Look::Line, points: mean },
        ];
        let mut caption = format!("Mean loss of each step's targets, in nats. {}", self.of_points());
        let evaluations = &self.history.evaluations;
        if !evaluations.is_empty() {
            let points =
                evaluations.iter().map(|one| (one.step.max(1) as f64, f64::from(one.loss))).collect();
            lines.push(Line { name: "held out, while training", look: Look::Other, points });
            caption +=
                " The other line is the loss of held-out tokens, computed by the ranks while they train.";
        }
        if let Some(loss) = self.evaluated_loss() {
            let at = self.history.steps.max(1) as f64;
            lines.push(Line { name: "held out", look: Look::Dots, points: vec![(at, loss)] });
            caption += &format!(" The dot is the loss of held-out text after the training, {loss:.4}.");
        }
        let (marks, last_step) = (self.marks(), self.history.steps);
        if !marks.is_empty() {
            caption += " Dashed lines are events, numbered as in the list below.";
        }
        let chart = Chart { unit: "loss, nats", lines, last_step, from_zero: false, marks: &marks };
        Ok(Figure { title: "Loss", caption, small: chart.draw(SMALL)?, wide: Some(chart.draw(WIDE)?) })
    }

    /// What a point of a curve is.
    fn of_points(&self) -> String {
        match self.history.stride {
            1 => "A point is a step.".to_owned(),
            stride => format!("A point is the mean of {stride} steps."),
        }
    }

    /// All other curves that there are.
    pub(super) fn small_figures(&self) -> Result<Vec<Figure>> {
        let measured = |value: f32, point: &HistoryPoint| match point.seconds > 0.0 {
            true => f64::from(value),
            false => f64::NAN,
        };
        let known = |value: f64| if value > 0.0 { value } else { f64::NAN };
        let tokens = self.options.batch_tokens() as f64;
        let is_pipeline = self.training.plan.pipeline_parallel > 1
            || self.history.points.iter().any(|point| point.bubble > 0.0);
        let mut figures = vec![
            self.small(
                "Gradient norm",
                "global norm",
                "Global norm of the gradient, before clipping.",
                true,
                self.points(|point| measured(point.gradient_norm, point)),
            )?,
            self.small(
                "Learning rate",
                "learning rate",
                "As scheduled.",
                true,
                self.points(|point| measured(point.learning_rate, point)),
            )?,
            self.small(
                "Throughput",
                "tokens/s",
                "Tokens of a step by its wall time, with all that came between steps.",
                true,
                self.points(|point| known(tokens / f64::from(point.seconds))),
            )?,
            self.small(
                "MFU",
                "% of peak",
                "Model FLOPs utilization: what the model needs, as a part of what the ranks' machines could have done. \
                 The peak is that of products of matrices, measured or told.",
                true,
                self.points(|point| known(100.0 * f64::from(point.mfu))),
            )?,
        ];
        if is_pipeline {
            let scheduled = 100.0 * self.mean(|account| account.scheduled_bubble);
            let measured = self.points(|point| 100.0 * measured(point.bubble, point));
            let last = self.history.steps.max(2) as f64;
            let lines = vec![
                Line { name: "measured", look: Look::Line, points: measured },
                Line {
                    name: "scheduled",
                    look: Look::Other,
                    points: vec![(1.0, scheduled), (last, scheduled)],
                },
            ];
            let caption = "Time in which ranks waited for their pipelines, mean over ranks; and as the schedule has it.";
            figures.push(self.small_of_lines("Pipeline bubble", "% of a step", caption, true, lines)?);
        }
        figures.push(self.small(
            "Waiting for data",
            "milliseconds",
            "Time in which a step of the first rank waited for its batch: zero where the trainer never starves.",
            true,
            self.points(|point| 1e3 * measured(point.data_wait_seconds, point)),
        )?);
        figures.push(self.small(
            "Memory",
            "MiB",
            "Resident memory of the first rank's process.",
            true,
            self.points(|point| known(f64::from(point.resident_bytes) / MEBIBYTE)),
        )?);
        Ok(figures)
    }

    fn small(
        &self,
        title: &'static str,
        unit: &str,
        caption: &str,
        from_zero: bool,
        points: Vec<(f64, f64)>,
    ) -> Result<Figure> {
        let lines = vec![Line { name: title, look: Look::Line, points }];
        self.small_of_lines(title, unit, caption, from_zero, lines)
    }

    fn small_of_lines(
        &self,
        title: &'static str,
        unit: &str,
        caption: &str,
        from_zero: bool,
        lines: Vec<Line>,
    ) -> Result<Figure> {
        let marks = self.marks();
        let chart = Chart { unit, lines, last_step: self.history.steps, from_zero, marks: &marks };
        Ok(Figure { title, caption: caption.to_owned(), small: chart.draw(SMALL)?, wide: None })
    }
}
