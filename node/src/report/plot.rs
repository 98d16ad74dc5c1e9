//! Curves as SVG.
//!
//! What is drawn in one of the colours here takes the page's light or dark colour by the page's style, which also dashes
//! what is dashed; nothing is drawn behind.

use std::fmt::Display;

use anyhow::{Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;

/// Text and axes.
pub(super) const INK: RGBColor = RGBColor(91, 102, 117);
/// Lines of the mesh.
pub(super) const GRID: RGBColor = RGBColor(223, 228, 234);
/// What was measured.
const RAW: RGBColor = RGBColor(166, 194, 234);
/// A mean of it, or the only line.
const LINE: RGBColor = RGBColor(31, 95, 191);
/// Something to compare it with.
const OTHER: RGBColor = RGBColor(201, 106, 18);
/// Where something happened.
const MARK: RGBColor = RGBColor(176, 57, 57);

/// Least distance between the numbers of two marks, in pixels.
const MARK_GAP: f64 = 13.0;
/// Of text, in the library's unit: four fifths of it are pixels.
pub(super) const TEXT_SIZE: i32 = 16;
/// Least distance between two marks, in pixels.
const LINE_GAP: i32 = 2;

/// How large a picture is drawn; the page shows it as wide as there is room.
#[derive(Clone, Copy)]
pub(super) struct Size {
    pub(super) width: u32,
    pub(super) height: u32,
}

/// One of several beside each other, or any on a telephone.
pub(super) const SMALL: Size = Size { width: 430, height: 230 };
/// As wide as the page.
pub(super) const WIDE: Size = Size { width: 900, height: 330 };

/// How a line is drawn.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Look {
    /// Thin and light.
    Raw,
    /// Strong.
    Line,
    /// In another colour; the page dashes it.
    Other,
    /// Points without a line.
    Dots,
}

/// Points of a line; a gap where a value is not a number.
#[derive(Clone)]
pub(super) struct Line {
    pub(super) name: &'static str,
    pub(super) look: Look,
    pub(super) points: Vec<(f64, f64)>,
}

/// A chart over the steps of a training.
pub(super) struct Chart<'a> {
    /// What the vertical axis says.
    pub(super) unit: &'a str,
    pub(super) lines: Vec<Line>,
    /// The last step of the horizontal axis.
    pub(super) last_step: u64,
    /// Whether the vertical axis begins at zero.
    pub(super) from_zero: bool,
    /// Steps at which something happened, each with its number in the list of events.
    pub(super) marks: &'a [(u64, usize)],
}

impl Chart<'_> {
    /// The picture.
    ///
    /// # Errors
    /// If the library cannot draw it.
    pub(super) fn draw(&self, size: Size) -> Result<String> {
        let mut svg = String::new();
        {
            let area = SVGBackend::with_string(&mut svg, (size.width, size.height)).into_drawing_area();
            self.draw_on(&area, size)?;
            area.present().map_err(failed)?;
        }
        Ok(svg)
    }

    fn draw_on(&self, area: &DrawingArea<SVGBackend<'_>, Shift>, size: Size) -> Result<()> {
        let (low, high) = self.range();
        let last = self.last_step.max(2) as f64;
        let labels_x = if size.width > 600 { 10 } else { 5 };
        let mut builder = ChartBuilder::on(area);
        builder.margin_top(20).margin_right(16).margin_bottom(2).margin_left(2);
        builder.x_label_area_size(44).y_label_area_size(64);
        let mut chart = builder.build_cartesian_2d(1.0..last, low..high).map_err(failed)?;
        let text = ("sans-serif", TEXT_SIZE).into_font().color(&INK);
        let (step, value) = (|step: &f64| compact(step.round()), |value: &f64| compact(*value));
        let mut mesh = chart.configure_mesh();
        mesh.disable_x_mesh().bold_line_style(GRID).light_line_style(TRANSPARENT).axis_style(GRID);
        mesh.x_labels(labels_x).y_labels(5).label_style(text.clone()).axis_desc_style(text.clone());
        mesh.x_desc("step").y_desc(self.unit).x_label_formatter(&step).y_label_formatter(&value);
        mesh.draw().map_err(failed)?;
        let (mut numbered_at, mut marked_at) = (f64::NEG_INFINITY, i32::MIN);
        for &(step, number) in self.marks {
            let at = (step as f64).clamp(1.0, last);
            let (x, y) = chart.backend_coord(&(at, high));
            if x < marked_at.saturating_add(LINE_GAP) {
                continue;
            }
            marked_at = x;
            let line = PathElement::new([(at, low), (at, high)], MARK.stroke_width(1));
            chart.draw_series([line]).map_err(failed)?;
            if f64::from(x) >= numbered_at + MARK_GAP {
                let small = ("sans-serif", TEXT_SIZE - 1).into_font().color(&MARK);
                area.draw(&Text::new(number.to_string(), (x - 3, y - 16), small)).map_err(failed)?;
                numbered_at = f64::from(x);
            }
        }
        let named = self.lines.len() > 1;
        for line in &self.lines {
            let style = match line.look {
                Look::Raw => RAW.stroke_width(1),
                Look::Line => LINE.stroke_width(2),
                Look::Other | Look::Dots => OTHER.stroke_width(2),
            };
            for part in line.points.split(|(_, value)| !value.is_finite()).filter(|part| !part.is_empty()) {
                let points = part.iter().copied();
                match line.look {
                    Look::Dots => {
                        let dot = |point| Circle::new(point, 5, OTHER.filled());
                        chart.draw_series(points.map(dot)).map_err(failed)?;
                    }
                    // A line needs two points.
                    _ if part.len() == 1 => {
                        let dot = |point| Circle::new(point, 2, style.filled());
                        chart.draw_series(points.map(dot)).map_err(failed)?;
                    }
                    _ => drop(chart.draw_series(LineSeries::new(points, style)).map_err(failed)?),
                }
            }
            if named {
                let legend = chart.draw_series(std::iter::empty::<Circle<_, i32>>()).map_err(failed)?;
                let sample = move |(x, y)| PathElement::new([(x, y), (x + 18, y)], style);
                legend.label(line.name).legend(sample);
            }
        }
        if named {
            let mut legend = chart.configure_series_labels();
            // Curves that begin at zero have their room below, others above.
            let place = if self.from_zero {
                SeriesLabelPosition::LowerRight
            } else {
                SeriesLabelPosition::UpperRight
            };
            legend.position(place).legend_area_size(24).label_font(text);
            legend.draw().map_err(failed)?;
        }
        Ok(())
    }

    /// From a little below the lowest to a little above the highest value.
    fn range(&self) -> (f64, f64) {
        let values = self.lines.iter().flat_map(|line| &line.points).map(|point| point.1);
        let values = values.filter(|value| value.is_finite());
        let (low, high) =
            values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
        if low > high {
            return (0.0, 1.0);
        }
        if self.from_zero && (low, high) == (0.0, 0.0) {
            return (0.0, 1.0);
        }
        let low = if self.from_zero { low.min(0.0) } else { low };
        let margin = match (high - low) * 0.06 {
            margin if margin > 0.0 => margin,
            _ => high.abs().max(f64::MIN_POSITIVE) * 0.06,
        };
        (if self.from_zero && low >= 0.0 { 0.0 } else { low - margin }, high + margin.max(1e-12))
    }
}

/// The mean of each value and of those before it, `width` together.
pub(super) fn running_mean(points: &[(f64, f64)], width: usize) -> Vec<(f64, f64)> {
    let width = width.max(1);
    let mut sum = 0.0;
    let mean = |index: usize| {
        sum += points[index].1;
        if index >= width {
            sum -= points[index - width].1;
        }
        (points[index].0, sum / (index + 1).min(width) as f64)
    };
    (0..points.len()).map(mean).collect()
}

/// A number for an axis: three digits or so, with a suffix or a power of ten where it is large or small.
pub(super) fn compact(value: f64) -> String {
    let size = value.abs();
    let trimmed = |text: String| match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    };
    match size {
        _ if size < 1e-12 => "0".to_owned(),
        _ if size >= 1e9 => format!("{}G", trimmed(format!("{:.2}", value / 1e9))),
        _ if size >= 1e6 => format!("{}M", trimmed(format!("{:.2}", value / 1e6))),
        _ if size >= 1e4 => format!("{}k", trimmed(format!("{:.1}", value / 1e3))),
        _ if size >= 100.0 => format!("{value:.0}"),
        _ if size >= 1.0 => trimmed(format!("{value:.2}")),
        _ if size >= 1e-3 => trimmed(format!("{value:.4}")),
        _ => format!("{value:.1e}"),
    }
}

pub(super) fn failed(error: impl Display) -> anyhow::Error {
    anyhow!("a plot cannot be drawn: {error}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart<'a>(points: Vec<(f64, f64)>, marks: &'a [(u64, usize)]) -> Chart<'a> {
        let lines = vec![Line { name: "each step", look: Look::Line, points }];
        Chart { unit: "loss", lines, last_step: 50, from_zero: false, marks }
    }

    #[test]
    fn any_curve_can_be_drawn() {
        let curves = [
            vec![],
            vec![(1.0, 2.0)],
            vec![(1.0, 2.0), (2.0, 2.0)],
            vec![(1.0, f64::NAN), (2.0, 3.0), (3.0, f64::INFINITY), (4.0, 1.0), (5.0, 1.5)],
            (1..=50).map(|step| (f64::from(step), 5.0 / f64::from(step))).collect(),
        ];
        for points in curves {
            for size in [SMALL, WIDE] {
                let svg = chart(points.clone(), &[(3, 1), (3, 2), (900, 3)]).draw(size).unwrap();
                assert!(svg.starts_with("<svg") && svg.contains(">\nloss\n<"), "{svg}");
                assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
            }
        }
    }

    #[test]
    fn numbers_of_marks_do_not_lie_on_each_other() {
        let number = |svg: &str, number: &str| svg.contains(&format!(">\n{number}\n</text>"));
        let svg = chart(vec![(1.0, 2.0), (50.0, 1.0)], &[(10, 91), (10, 92), (40, 93)]).draw(SMALL).unwrap();
        assert!(number(&svg, "91") && !number(&svg, "92") && number(&svg, "93"), "{svg}");
    }

    #[test]
    fn a_curve_of_zeros_has_an_axis_of_whole_numbers() {
        let zeros = Chart { from_zero: true, ..chart(vec![(1.0, 0.0), (2.0, 0.0)], &[]) };
        assert_eq!(zeros.range(), (0.0, 1.0));
    }

    #[test]
    fn axes_have_short_numbers() {
        let values = [0.0, 0.00012, 0.5, 1.25, 12.0, 512.0, 12_500.0, 3.2e6, 4e9, -2.5];
        let texts: Vec<String> = values.into_iter().map(compact).collect();
        assert_eq!(texts, ["0", "1.2e-4", "0.5", "1.25", "12", "512", "12.5k", "3.2M", "4G", "-2.5"]);
    }

    #[test]
    fn a_running_mean_is_over_a_window() {
        let points = [(1.0, 4.0), (2.0, 2.0), (3.0, 0.0)];
        assert_eq!(running_mean(&points, 2), [(1.0, 4.0), (2.0, 3.0), (3.0, 1.0)]);
    }
}
