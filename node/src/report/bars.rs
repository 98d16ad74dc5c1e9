//! Where a step's time goes on each rank, as stacked bars in SVG.

use anyhow::Result;
use plotters::prelude::*;

use super::plot::{GRID, INK, Size, TEXT_SIZE, compact, failed};

/// Ranks that have a bar; more would be no picture.
pub(super) const RANKS_MAX: usize = 32;
const ROW: u32 = 26;
const AXIS: u32 = 44;
const LABELS: u32 = 58;

/// A rank's bar: milliseconds of a step by part.
pub(super) struct Bar {
    pub(super) rank: u32,
    pub(super) parts: Vec<(String, f64)>,
}

/// The colour of a part; it is seen on light and on dark ground.
pub(super) fn colour(part: &str) -> RGBColor {
    match part {
        "compute" => RGBColor(46, 111, 216),
        "tensor_all_reduce" => RGBColor(232, 131, 58),
        "tensor_reduce_scatter" => RGBColor(201, 96, 62),
        "tensor_all_gather" => RGBColor(240, 157, 118),
        "pipeline_receive" => RGBColor(242, 184, 75),
        "pipeline_send" => RGBColor(171, 126, 38),
        "gradient_reduce_scatter" => RGBColor(132, 84, 204),
        "gradient_all_reduce" => RGBColor(178, 139, 224),
        "parameter_all_gather" => RGBColor(212, 95, 168),
        "embedding_all_reduce" => RGBColor(150, 54, 112),
        "figures" => RGBColor(64, 164, 156),
        "optimizer" => RGBColor(60, 154, 95),
        "data_wait" => RGBColor(214, 69, 69),
        "save" => RGBColor(118, 130, 145),
        "other" => RGBColor(182, 190, 201),
        // Whatever else ranks exchange.
        _ => RGBColor(110, 70, 40),
    }
}

/// A colour as the page's style writes it.
pub(super) fn css(RGBColor(red, green, blue): RGBColor) -> String {
    format!("#{red:02X}{green:02X}{blue:02X}")
}

/// The bars of the first [`RANKS_MAX`] ranks, one below the other.
///
/// # Errors
/// If the library cannot draw them.
pub(super) fn draw(bars: &[Bar], width: u32) -> Result<String> {
    let bars = &bars[..bars.len().min(RANKS_MAX)];
    let size = Size { width, height: ROW * bars.len() as u32 + AXIS + 6 };
    let all = |bar: &Bar| bar.parts.iter().map(|(_, ms)| ms).sum::<f64>();
    let longest = bars.iter().map(all).fold(0.0, f64::max).max(f64::MIN_POSITIVE);
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (size.width, size.height)).into_drawing_area();
        let mut builder = ChartBuilder::on(&area);
        builder
            .margin_top(4)
            .margin_right(18)
            .margin_bottom(2)
            .margin_left(LABELS)
            .x_label_area_size(AXIS - 4);
        let rows = bars.len().max(1) as f64;
        let mut chart = builder.build_cartesian_2d(0.0..longest * 1.02, 0.0..rows).map_err(failed)?;
        let text = ("sans-serif", TEXT_SIZE).into_font().color(&INK);
        let mut mesh = chart.configure_mesh();
        mesh.disable_y_mesh().disable_y_axis().bold_line_style(GRID).light_line_style(TRANSPARENT);
        mesh.axis_style(GRID).x_labels(if width > 600 { 9 } else { 5 }).label_style(text.clone());
        mesh.axis_desc_style(text.clone()).x_desc("milliseconds of a step");
        mesh.x_label_formatter(&|ms| compact(*ms)).draw().map_err(failed)?;
        for (row, bar) in bars.iter().enumerate() {
            let (top, bottom) = (rows - row as f64 - 0.14, rows - row as f64 - 0.86);
            let mut from = 0.0;
            for (part, ms) in &bar.parts {
                let to = from + ms.max(0.0);
                if to > from {
                    let corners = [(from, top), (to, bottom)];
                    let piece = Rectangle::new(corners, colour(part).filled());
                    chart.draw_series([piece]).map_err(failed)?;
                }
                from = to;
            }
            let (_, y) = chart.backend_coord(&(0.0, (top + bottom) / 2.0));
            let label = Text::new(format!("rank {}", bar.rank), (4, y - 6), text.clone());
            area.draw(&label).map_err(failed)?;
        }
        area.present().map_err(failed)?;
    }
    Ok(svg)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_rank_has_a_bar_of_its_parts_up_to_a_bound() {
        let bar = |rank| Bar {
            rank,
            parts: vec![("compute".into(), 8.0), ("save".into(), 0.0), ("other".into(), 2.0)],
        };
        for ranks in [0, 1, 4, RANKS_MAX as u32 + 8] {
            let bars: Vec<Bar> = (0..ranks).map(bar).collect();
            let svg = draw(&bars, 430).unwrap();
            let shown = (ranks as usize).min(RANKS_MAX);
            assert_eq!(svg.matches("rank ").count(), shown, "{svg}");
            for (part, count) in [("compute", shown), ("other", shown), ("save", 0)] {
                assert_eq!(svg.matches(&format!("fill=\"{}\"", css(colour(part)))).count(), count, "{svg}");
            }
        }
    }

    #[test]
    fn parts_are_told_apart_by_their_colours() {
        let collectives =
            ["tensor_all_reduce", "pipeline_receive", "pipeline_send", "gradient_reduce_scatter"];
        let others = ["compute", "optimizer", "data_wait", "save", "other", "figures", "gradient_all_reduce"];
        let more = [
            "parameter_all_gather",
            "embedding_all_reduce",
            "tensor_reduce_scatter",
            "tensor_all_gather",
            "a_new_one",
        ];
        let all = collectives.iter().chain(&others).chain(&more);
        let colours: BTreeSet<String> = all.map(|part| css(colour(part))).collect();
        assert_eq!(colours.len(), collectives.len() + others.len() + more.len());
    }
}
