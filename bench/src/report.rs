//! A run's figures, as a table for people, a result file and JSON.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use anyhow::Result;
use serde::Serialize;

/// Figures of one benchmark run, with what is needed to repeat it.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The benchmark.
    pub benchmark: String,
    /// CPU and kernel.
    pub machine: String,
    /// Commit of the working tree; `+` where it was changed.
    pub commit: String,
    /// The command line.
    pub command: String,
    /// Repetitions of each row; rows are medians.
    pub repeats: usize,
    /// Names of columns of words, which stand after the first.
    pub word_columns: Vec<String>,
    /// Names of the columns of figures.
    pub columns: Vec<String>,
    /// Rows.
    pub rows: Vec<Row>,
    /// Paragraphs after the table.
    pub notes: Vec<String>,
}

/// One row.
#[derive(Debug, Serialize)]
pub struct Row {
    /// What was measured.
    pub name: String,
    /// One text a column of words.
    pub words: Vec<String>,
    /// One figure a column; none where it does not apply.
    pub figures: Vec<Option<f64>>,
}

impl Report {
    /// An empty report of this program.
    pub fn new(benchmark: &str, repeats: usize, columns: &[&str]) -> Self {
        Self {
            benchmark: benchmark.to_owned(),
            machine: machine(),
            commit: commit(),
            command: command(benchmark),
            repeats,
            word_columns: Vec::new(),
            columns: columns.iter().map(|&column| column.to_owned()).collect(),
            rows: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// The same report with columns of words.
    pub fn with_words(mut self, columns: &[&str]) -> Self {
        self.word_columns = columns.iter().map(|&column| column.to_owned()).collect();
        self
    }

    /// Adds a row of one run, which has words.
    pub fn add_told(&mut self, name: &str, words: Vec<String>, figures: Vec<Option<f64>>) {
        self.rows.push(Row { name: name.to_owned(), words, figures });
    }

    /// Adds a row of the medians of `runs`, one list of figures a run.
    pub fn add(&mut self, name: &str, runs: &[Vec<Option<f64>>]) {
        self.add_picked(name, runs, |values| values.get(values.len() / 2).copied());
    }

    /// Adds a row of the largest figures of `runs`, one list of figures a run.
    pub fn add_largest(&mut self, name: &str, runs: &[Vec<Option<f64>>]) {
        self.add_picked(name, runs, |values| values.last().copied());
    }

    /// Adds a row of what `pick` takes of each column's figures, the smallest first.
    fn add_picked(&mut self, name: &str, runs: &[Vec<Option<f64>>], pick: fn(&[f64]) -> Option<f64>) {
        let column = |index: usize| {
            let mut values: Vec<f64> =
                runs.iter().filter_map(|run| run.get(index).copied().flatten()).collect();
            values.sort_by(f64::total_cmp);
            pick(&values)
        };
        let figures = (0..self.columns.len()).map(column).collect();
        self.rows.push(Row { name: name.to_owned(), words: Vec::new(), figures });
    }

    /// The report in Markdown.
    pub fn markdown(&self) -> String {
        let mut text = format!(
            "# {}\n\nMachine: {}. Commit: {}. Command: `{}`. Medians of {} runs.\n\n| |",
            self.benchmark, self.machine, self.commit, self.command, self.repeats
        );
        // Writing to a String cannot fail.
        for column in self.word_columns.iter().chain(&self.columns) {
            let _ = write!(text, " {column} |");
        }
        text.push_str("\n|---|");
        text.push_str(&"---|".repeat(self.word_columns.len()));
        text.push_str(&"---:|".repeat(self.columns.len()));
        for row in &self.rows {
            let _ = write!(text, "\n| {} |", row.name);
            let figures = row.figures.iter().map(|figure| figure.map(readable).unwrap_or_default());
            for cell in row.words.iter().cloned().chain(figures) {
                let _ = write!(text, " {cell} |");
            }
        }
        text.push('\n');
        for note in &self.notes {
            let _ = write!(text, "\n{note}\n");
        }
        text
    }

    /// Prints the table, or one line of JSON, and writes the result file if asked to.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn publish(&self, json: bool, file: Option<&Path>) -> Result<()> {
        if json {
            println!("{}", serde_json::to_string(self)?);
        } else {
            print!("{}", self.markdown());
        }
        match file {
            Some(file) => Ok(std::fs::write(file, self.markdown())?),
            None => Ok(()),
        }
    }
}

fn readable(figure: f64) -> String {
    match figure.abs() {
        size if size >= 1000.0 => format!("{figure:.0}"),
        size if size >= 10.0 => format!("{figure:.1}"),
        _ => format!("{figure:.3}"),
    }
}

fn machine() -> String {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    let model = model.map_or("unknown CPU", |(_, name)| name.trim());
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("{cores} cores of {model}, Linux {}", kernel.trim())
}

fn commit() -> String {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let hash = git(&["rev-parse", "--short", "HEAD"]).unwrap_or_else(|| "unknown".to_owned());
    // Only code counts as changed.
    let measured = ["status", "--porcelain", "--", "*.rs", "*.toml"];
    let changed = git(&measured).is_some_and(|status| !status.is_empty());
    if changed { hash + "+" } else { hash }
}

fn command(benchmark: &str) -> String {
    let mut command = format!("cargo run --release -p sixfold-bench --bin {benchmark} --");
    for argument in std::env::args().skip(1) {
        command.push(' ');
        command.push_str(if argument.is_empty() { "\"\"" } else { &argument });
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_medians_and_missing_figures_stay_empty() {
        let mut report = Report::new("x", 3, &["a", "b"]);
        report.add("row", &[vec![Some(3.0), None], vec![Some(1.0), None], vec![Some(2000.0), None]]);
        assert_eq!(report.rows[0].figures, [Some(3.0), None]);
        assert!(report.markdown().ends_with("| row | 3.000 |  |\n"));
        report.add_largest("row", &[vec![Some(3.0), None], vec![Some(1.0), Some(4.0)]]);
        assert_eq!(report.rows[1].figures, [Some(3.0), Some(4.0)]);
    }

    #[test]
    fn words_stand_before_figures_and_notes_after_the_table() {
        let mut report = Report::new("x", 1, &["a"]).with_words(&["hash"]);
        report.add_told("row", vec!["ab12".to_owned()], vec![Some(1.0)]);
        report.notes.push("As they are.".to_owned());
        assert!(
            report
                .markdown()
                .ends_with("| | hash | a |\n|---|---|---:|\n| row | ab12 | 1.000 |\n\nAs they are.\n")
        );
    }
}
