//! Vectors for people's eyes: their beginnings, and the cosines between them where they are few.

use super::{Embedded, length};
use crate::commands::table;

/// Texts that are shown.
const SHOWN: usize = 12;
/// Numbers of a vector that are shown.
const NUMBERS_SHOWN: usize = 4;
/// Letters of a text that are shown.
const LETTERS_SHOWN: usize = 40;

#[derive(Default)]
pub(super) struct Table {
    shown: Vec<Embedded>,
    count: usize,
}

impl Table {
    pub(super) fn push(&mut self, embedded: Embedded) {
        self.count += 1;
        if self.shown.len() < SHOWN {
            self.shown.push(embedded);
        }
    }

    pub(super) fn print(&self) {
        let rows: Vec<_> = self.shown.iter().enumerate().map(|(at, embedded)| row(at, embedded)).collect();
        table::print(&["", "tokens", "length", "vector", "text"], &rows);
        if self.count > self.shown.len() {
            println!("and {} more; --json and --to have all", self.count - self.shown.len());
        } else if self.count > 1 {
            println!();
            self.print_cosines();
        }
    }

    fn print_cosines(&self) {
        let numbers: Vec<String> = (1..=self.count).map(|number| number.to_string()).collect();
        let headings: Vec<&str> =
            std::iter::once("cosine").chain(numbers.iter().map(String::as_str)).collect();
        let rows = self.shown.iter().zip(&numbers).map(|(one, number)| {
            let cosines = self.shown.iter().map(|other| format!("{:.3}", cosine(&one.vector, &other.vector)));
            std::iter::once(number.clone()).chain(cosines).collect()
        });
        table::print(&headings, &rows.collect::<Vec<_>>());
    }
}

fn row(at: usize, embedded: &Embedded) -> Vec<String> {
    let numbers = embedded.vector.iter().take(NUMBERS_SHOWN).map(|value| format!("{value:+.4}"));
    let dots = if embedded.vector.len() > NUMBERS_SHOWN { " ..." } else { "" };
    vec![
        (at + 1).to_string(),
        embedded.text.tokens.len().to_string(),
        format!("{:.3}", embedded.length),
        format!("{}{dots}", numbers.collect::<Vec<_>>().join(" ")),
        excerpt(embedded.text.text.as_deref().unwrap_or("(ids)")),
    ]
}

fn excerpt(text: &str) -> String {
    let begin: String = text.chars().take(LETTERS_SHOWN).collect();
    let dots = if begin.len() < text.len() { " ..." } else { "" };
    format!("{}{dots}", begin.replace(char::is_control, " "))
}

fn cosine(one: &[f32], other: &[f32]) -> f64 {
    let product: f64 = one.iter().zip(other).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
    let lengths = length(one) * length(other);
    if lengths > 0.0 { product / lengths } else { 0.0 }
}
