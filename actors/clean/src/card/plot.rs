//! Horizontal bars as SVG.

use std::fmt::Display;

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::error::CleanError;

const WIDTH: u32 = 720;
const ROW: u32 = 22;
const TITLE: u32 = 36;
/// Where bars begin; names stand to the left.
const LEFT: i32 = 220;
/// Room for the number after the longest bar.
const RIGHT: i32 = 90;
const NAME_CHARS_MAX: usize = 30;
const BAR: RGBColor = RGBColor(0x3b, 0x7d, 0xb8);
const INK: RGBColor = RGBColor(0x1f, 0x29, 0x33);

/// One bar a row, from the top, with its name and number.
pub(super) fn bars(title: &str, rows: &[(String, u64)]) -> Result<String, CleanError> {
    let mut svg = String::new();
    let height = TITLE + ROW * rows.len() as u32 + 8;
    {
        let area = SVGBackend::with_string(&mut svg, (WIDTH, height)).into_drawing_area();
        area.fill(&WHITE).map_err(failed)?;
        let heading = ("sans-serif", 17).into_font().color(&INK);
        area.draw(&Text::new(title.to_owned(), (0, 6), heading)).map_err(failed)?;
        let longest = rows.iter().map(|(_, count)| *count).max().unwrap_or(0).max(1);
        for (number, (name, count)) in rows.iter().enumerate() {
            let top = (TITLE + ROW * number as u32) as i32;
            let length = (f64::from(WIDTH as i32 - LEFT - RIGHT) * *count as f64 / longest as f64) as i32;
            let middle = top + ROW as i32 / 2;
            let bar = Rectangle::new([(LEFT, top + 3), (LEFT + length, top + ROW as i32 - 3)], BAR.filled());
            let style = ("sans-serif", 13).into_font().color(&INK);
            let name_style = style.pos(Pos::new(HPos::Right, VPos::Center));
            let count_style = style.pos(Pos::new(HPos::Left, VPos::Center));
            area.draw(&bar).map_err(failed)?;
            area.draw(&Text::new(shortened(name), (LEFT - 8, middle), name_style)).map_err(failed)?;
            area.draw(&Text::new(super::grouped(*count), (LEFT + length + 6, middle), count_style))
                .map_err(failed)?;
        }
        area.present().map_err(failed)?;
    }
    Ok(svg)
}

fn shortened(name: &str) -> String {
    match name.char_indices().nth(NAME_CHARS_MAX) {
        Some((end, _)) => format!("{}…", &name[..end]),
        None => name.to_owned(),
    }
}

fn failed(error: impl Display) -> CleanError {
    CleanError::Output { what: "a plot", reason: error.to_string() }
}
