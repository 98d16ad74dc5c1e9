//! The data card: what a corpus holds, what was left out and why, with plots.
//!
//! It is made of a clean stage's [`Figures`] and options, and says nothing that they do not.

mod plot;

use std::fmt::Write;

use crate::error::CleanError;
use crate::figures::Figures;
use crate::options::CleanOptions;
use plot::bars;

/// Bars of a plot and rows of a table.
const ROWS_MAX: usize = 20;

/// A file of the card: its name and content.
pub type CardFile = (&'static str, String);

/// `data-card.md`, `data-card.html` and the plots as SVG.
///
/// # Errors
/// [`CleanError::Output`] where a plot cannot be drawn.
pub fn data_card(
    stage: &str,
    figures: &Figures,
    options: &CleanOptions,
    sources: &[String],
) -> Result<Vec<CardFile>, CleanError> {
    let mut files = Vec::new();
    for (name, title, rows) in tables(figures) {
        if !rows.is_empty() {
            files.push((name, bars(title, &rows)?));
        }
    }
    let markdown = markdown(stage, figures, options, sources, &files)?;
    let html = html(stage, figures, options, sources, &files)?;
    files.insert(0, ("data-card.md", markdown));
    files.insert(1, ("data-card.html", html));
    Ok(files)
}

type Rows = Vec<(String, u64)>;

/// The tables of the card, each with the file of its plot.
fn tables(figures: &Figures) -> [(&'static str, &'static str, Rows); 4] {
    let lengths = figures.lengths.iter().map(|(&power, &count)| {
        let (low, high) = (1_u64 << power, (1_u128 << (power + 1)) - 1);
        (format!("{low} to {high}"), count)
    });
    let rejected = figures.rejected.iter().map(|(reason, &count)| (reason.name(), count));
    [
        ("languages.svg", "Documents by language", largest(figures.languages.clone())),
        ("lengths.svg", "Documents by characters", lengths.collect()),
        ("rejected.svg", "Rejected by reason", largest(rejected)),
        ("hosts.svg", "Documents by host or file", largest(figures.hosts.clone())),
    ]
}

/// The largest counts first, equal ones by name.
fn largest(counts: impl IntoIterator<Item = (String, u64)>) -> Rows {
    let mut rows: Rows = counts.into_iter().collect();
    rows.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    rows.truncate(ROWS_MAX);
    rows
}

fn summary(figures: &Figures) -> Rows {
    let mut rows: Rows = [
        ("Documents read", figures.documents_in),
        ("Documents kept", figures.documents_kept),
        ("Documents rejected", figures.documents_rejected()),
        ("Characters", figures.chars),
        ("Words", figures.words),
    ]
    .map(|(name, count)| (name.to_owned(), count))
    .into();
    rows.extend(figures.masks.iter().map(|(kind, &count)| (format!("Masked: {}", kind.name()), count)));
    rows
}

fn markdown(
    stage: &str,
    figures: &Figures,
    options: &CleanOptions,
    sources: &[String],
    plots: &[CardFile],
) -> Result<String, CleanError> {
    let mut out = format!("# Data card: {}\n", escape_markdown(stage));
    let mut section = |title: &str, rows: &Rows, plot: Option<&str>| {
        if rows.is_empty() {
            return;
        }
        let _ = write!(out, "\n## {title}\n\n");
        if let Some(plot) = plot.filter(|plot| plots.iter().any(|(name, _)| name == plot)) {
            let _ = write!(out, "![{title}]({plot})\n\n");
        }
        out.push_str("| | |\n|---|---:|\n");
        for (name, count) in rows {
            let _ = writeln!(out, "| {} | {count} |", escape_markdown(name));
        }
    };
    section("Summary", &summary(figures), None);
    for (plot, title, rows) in tables(figures) {
        section(title, &rows, Some(plot));
    }
    let _ = write!(out, "\n## Options\n\n```json\n{}\n```\n\n## Sources\n\n", options_json(options)?);
    for source in sources {
        let _ = writeln!(out, "- `{source}`");
    }
    Ok(out)
}

fn html(
    stage: &str,
    figures: &Figures,
    options: &CleanOptions,
    sources: &[String],
    plots: &[CardFile],
) -> Result<String, CleanError> {
    let stage = escape_html(stage);
    let mut out = format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>Data card: {stage}</title>\n\
         <style>body{{font:15px/1.5 sans-serif;max-width:60em;margin:2em auto;padding:0 1em}}\
         td:last-child{{text-align:right}}td{{padding:.1em 1em .1em 0}}pre{{background:#f4f4f4;padding:1em}}\
         svg{{max-width:100%;height:auto}}</style></head>\n<body><h1>Data card: {stage}</h1>\n<table>\n"
    );
    for (name, count) in summary(figures) {
        let _ = writeln!(out, "<tr><td>{}</td><td>{count}</td></tr>", escape_html(&name));
    }
    out.push_str("</table>\n");
    for (_, svg) in plots {
        let _ = writeln!(out, "{svg}");
    }
    let _ = write!(
        out,
        "<h2>Options</h2>\n<pre>{}</pre>\n<h2>Sources</h2>\n<ul>",
        escape_html(&options_json(options)?)
    );
    for source in sources {
        let _ = writeln!(out, "<li><code>{}</code></li>", escape_html(source));
    }
    out.push_str("</ul></body></html>\n");
    Ok(out)
}

fn options_json(options: &CleanOptions) -> Result<String, CleanError> {
    serde_json::to_string_pretty(options)
        .map_err(|error| CleanError::Output { what: "data card", reason: error.to_string() })
}

fn escape_html(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn escape_markdown(text: &str) -> String {
    text.replace('\\', "\\\\").replace('|', "\\|").replace('`', "\\`").replace('<', "&lt;").replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::{Fault, Reason};

    fn figures() -> Figures {
        let mut figures =
            Figures { documents_in: 9, documents_kept: 7, chars: 700, words: 90, ..Figures::default() };
        figures.rejected.insert(Reason::Fault(Fault::NoText), 2);
        figures.languages.extend([("en".to_owned(), 3), ("zh-Hans".to_owned(), 4)]);
        figures.hosts.insert("<b>|evil`".to_owned(), 7);
        figures.lengths.extend([(5, 3), (6, 4), (63, 0)]);
        figures
    }

    #[test]
    fn shows_counts_plots_options_and_sources() {
        let files = data_card("clean", &figures(), &CleanOptions::default(), &["abc123".to_owned()]).unwrap();
        let names: Vec<&str> = files.iter().map(|(name, _)| *name).collect();
        let expected =
            ["data-card.md", "data-card.html", "languages.svg", "lengths.svg", "rejected.svg", "hosts.svg"];
        assert_eq!(names, expected);
        let (markdown, html) = (&files[0].1, &files[1].1);
        for words in
            ["| Documents kept | 7 |", "| zh-Hans | 4 |", "| no_text | 2 |", "| 64 to 127 | 4 |", "abc123"]
        {
            assert!(markdown.contains(words), "{words}");
        }
        assert!(html.contains("<svg") && html.contains("near_duplicate_bits"));
    }

    #[test]
    fn names_from_pages_cannot_break_the_card() {
        let files = data_card("<i>", &figures(), &CleanOptions::default(), &[]).unwrap();
        assert!(files.iter().all(|(_, content)| !content.contains("<b>") && !content.contains("<i>")));
    }

    #[test]
    fn an_empty_corpus_has_a_card() {
        let files = data_card("clean", &Figures::default(), &CleanOptions::default(), &[]).unwrap();
        assert_eq!(files.len(), 2);
    }
}
