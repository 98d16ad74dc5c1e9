//! The data card: what a corpus holds, what was left out and why, with plots.
//!
//! It is made of a clean stage's [`Figures`] and options, and says nothing that they do not.

mod markdown;
mod page;
mod plot;

use crate::error::CleanError;
use crate::figures::Figures;
use crate::options::CleanOptions;
use plot::bars;

/// Bars of a plot and rows of a table.
const ROWS_MAX: usize = 20;

/// A file of the card: its name and content.
pub type CardFile = (&'static str, String);

type Rows = Vec<(String, u64)>;

/// What a card is made of.
struct Card<'a> {
    stage: &'a str,
    figures: &'a Figures,
    /// The stage's options as JSON.
    options: String,
    sources: &'a [String],
    tables: Vec<Table>,
}

/// Counts with the plot that shows them.
struct Table {
    title: &'static str,
    rows: Rows,
    plot_name: &'static str,
    /// SVG.
    plot: String,
}

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
    let options = serde_json::to_string_pretty(options)
        .map_err(|error| CleanError::Output { what: "data card", reason: error.to_string() })?;
    let card = Card { stage, figures, options, sources, tables: tables(figures)? };
    let mut files = vec![("data-card.md", markdown::write(&card)), ("data-card.html", page::write(&card))];
    files.extend(card.tables.into_iter().map(|table| (table.plot_name, table.plot)));
    Ok(files)
}

/// The tables that have rows.
fn tables(figures: &Figures) -> Result<Vec<Table>, CleanError> {
    let lengths = figures.lengths.iter().map(|(&power, &count)| {
        let (low, high) = (1_u128 << power, (1_u128 << (power + 1)) - 1);
        (format!("{low} to {high}"), count)
    });
    let rejected = figures.rejected.iter().map(|(reason, &count)| (reason.name(), count));
    let all = [
        ("languages.svg", "Documents by language", largest(figures.languages.clone())),
        ("lengths.svg", "Documents by characters", lengths.collect()),
        ("rejected.svg", "Rejected by reason", largest(rejected)),
        ("hosts.svg", "Documents by host or file", largest(figures.hosts.clone())),
    ];
    let filled = all.into_iter().filter(|(_, _, rows)| !rows.is_empty());
    let drawn = filled
        .map(|(plot_name, title, rows)| Ok(Table { title, plot: bars(title, &rows)?, rows, plot_name }));
    drawn.collect()
}

/// The largest counts first, equal ones by name.
fn largest(counts: impl IntoIterator<Item = (String, u64)>) -> Rows {
    let mut rows: Rows = counts.into_iter().collect();
    rows.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    rows.truncate(ROWS_MAX);
    rows
}

/// Totals with their names.
fn summary(figures: &Figures) -> Vec<(String, String)> {
    let share = |part: u64| match figures.documents_in {
        0 => grouped(part),
        all => format!("{} ({:.1} %)", grouped(part), 100.0 * part as f64 / all as f64),
    };
    let mut rows: Vec<(String, String)> = [
        ("Documents read", grouped(figures.documents_in)),
        ("Documents kept", share(figures.documents_kept)),
        ("Documents rejected", share(figures.documents_rejected())),
        ("Characters", grouped(figures.chars)),
        ("Words", grouped(figures.words)),
    ]
    .map(|(name, count)| (name.to_owned(), count))
    .into();
    let masked =
        figures.masks.iter().map(|(kind, &count)| (format!("Masked: {}", kind.name()), grouped(count)));
    rows.extend(masked);
    rows
}

/// A count with commas between thousands.
fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let mut out = String::with_capacity(digits.len() * 4 / 3 + 1);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::{Fault, Reason};
    use crate::figures::Sample;

    fn figures() -> Figures {
        let mut figures =
            Figures { documents_in: 9, documents_kept: 7, chars: 700, words: 90, ..Figures::default() };
        figures.rejected.insert(Reason::Fault(Fault::NoText), 2);
        figures.languages.extend([("en".to_owned(), 3), ("zh-Hans".to_owned(), 4)]);
        figures.hosts.insert("<b>|evil`".to_owned(), 7);
        figures.lengths.extend([(5, 3), (6, 4), (63, 0)]);
        let sample = |words: &str| Sample { url: "http://a.org/<b>".to_owned(), words: words.to_owned() };
        figures.samples.insert("zh-Hans".to_owned(), sample("第一段。\n<b>第二段</b>"));
        figures.refusals.insert(Reason::Fault(Fault::NoText), sample("nothing is left of it"));
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
            ["| Documents kept | 7 (77.8 %) |", "| zh-Hans | 4 |", "| no_text | 2 |", "| 64 to 127 | 4 |"]
        {
            assert!(markdown.contains(words), "{words}");
        }
        for words in ["abc123", "near_duplicate_bits", "第一段。", "nothing is left of it"] {
            assert!(markdown.contains(words) && html.contains(words), "{words}");
        }
        assert!(html.contains("<svg") && html.contains("lang=\"zh-Hans\""));
    }

    #[test]
    fn names_from_pages_cannot_break_the_card() {
        let files = data_card("<i>", &figures(), &CleanOptions::default(), &[]).unwrap();
        assert!(files.iter().all(|(_, content)| !content.contains("<b>") && !content.contains("<i>")));
    }

    #[test]
    fn counts_are_written_in_groups_of_three() {
        let counts = [0, 999, 1000, 1_234_567, u64::MAX].map(grouped);
        assert_eq!(counts, ["0", "999", "1,000", "1,234,567", "18,446,744,073,709,551,615"]);
    }

    #[test]
    fn an_empty_corpus_has_a_card() {
        let files = data_card("clean", &Figures::default(), &CleanOptions::default(), &[]).unwrap();
        assert_eq!(files.len(), 2);
    }
}
