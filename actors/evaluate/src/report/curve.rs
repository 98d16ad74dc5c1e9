//! The loss curve as SVG.

use std::fmt::Display;

use plotters::prelude::*;

use crate::error::EvaluateError;

const SIZE: (u32, u32) = (880, 360);
/// More points than pixels only make the file large.
const POINTS_MAX: usize = 600;
/// The running mean is over one step in so many, at least one.
const MEAN_SHARE: usize = 20;
const RAW: RGBColor = RGBColor(166, 194, 234);
const MEAN: RGBColor = RGBColor(31, 95, 191);
const QUIET: RGBColor = RGBColor(91, 102, 117);
const GRID: RGBColor = RGBColor(223, 228, 234);

/// The losses of steps 1, 2, ... and their running mean.
pub(super) fn draw(losses: &[f32]) -> Result<String, EvaluateError> {
    let raw = points(losses);
    let mean = points(&running_mean(losses, losses.len() / MEAN_SHARE + 1));
    let (low, high) = range(&raw);
    let last = losses.len().max(2) as f64;
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        area.fill(&WHITE).map_err(failed)?;
        let mut builder = ChartBuilder::on(&area);
        builder.margin(14).x_label_area_size(46).y_label_area_size(62);
        let mut chart = builder.build_cartesian_2d(1.0..last, low..high).map_err(failed)?;
        let text = ("sans-serif", 14).into_font().color(&QUIET);
        let (whole, hundredths) = (|step: &f64| format!("{step:.0}"), |loss: &f64| format!("{loss:.2}"));
        let mut mesh = chart.configure_mesh();
        mesh.disable_x_mesh().bold_line_style(GRID).light_line_style(WHITE).axis_style(QUIET);
        mesh.x_labels(8).y_labels(6).label_style(text.clone()).axis_desc_style(text.clone());
        mesh.x_desc("step").y_desc("training loss, nats per token");
        mesh.x_label_formatter(&whole).y_label_formatter(&hundredths);
        mesh.draw().map_err(failed)?;
        for (name, line, style) in
            [("each step", raw, RAW.stroke_width(1)), ("running mean", mean, MEAN.stroke_width(3))]
        {
            let drawn = chart.draw_series(LineSeries::new(line, style)).map_err(failed)?;
            drawn.label(name).legend(move |(x, y)| PathElement::new([(x, y), (x + 22, y)], style));
        }
        let mut legend = chart.configure_series_labels();
        legend.position(SeriesLabelPosition::UpperRight).border_style(GRID).background_style(WHITE);
        legend.legend_area_size(28).label_font(text).draw().map_err(failed)?;
        area.present().map_err(failed)?;
    }
    Ok(svg)
}

/// Steps and losses, thinned by taking the means of neighbours.
fn points(losses: &[f32]) -> Vec<(f64, f64)> {
    let size = losses.len().div_ceil(POINTS_MAX).max(1);
    let mean = |part: &[f32]| part.iter().copied().map(f64::from).sum::<f64>() / part.len() as f64;
    let middle = |number: usize, part: &[f32]| (number * size) as f64 + (part.len() as f64 + 1.0) / 2.0;
    losses.chunks(size).enumerate().map(|(number, part)| (middle(number, part), mean(part))).collect()
}

/// The mean of each loss and of those before it, `width` together.
fn running_mean(losses: &[f32], width: usize) -> Vec<f32> {
    let mean = |end: usize| {
        let part = &losses[end.saturating_sub(width)..end];
        part.iter().sum::<f32>() / part.len() as f32
    };
    (1..=losses.len()).map(mean).collect()
}

/// From a little below the lowest to a little above the highest point.
fn range(points: &[(f64, f64)]) -> (f64, f64) {
    let low = points.iter().map(|point| point.1).fold(f64::INFINITY, f64::min);
    let high = points.iter().map(|point| point.1).fold(f64::NEG_INFINITY, f64::max);
    let margin = ((high - low) * 0.06).max(0.05);
    (low - margin, high + margin)
}

fn failed(error: impl Display) -> EvaluateError {
    EvaluateError::Plot(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thins_long_curves_and_keeps_short_ones() {
        assert_eq!(points(&[3.0, 2.0]), [(1.0, 3.0), (2.0, 2.0)]);
        let long: Vec<f32> = (1..=1200).map(|step| step as f32).collect();
        let thinned = points(&long);
        assert_eq!((thinned.len(), thinned[0], thinned[599]), (600, (1.5, 1.5), (1199.5, 1199.5)));
        assert_eq!(running_mean(&[4.0, 2.0, 0.0], 2), [4.0, 3.0, 1.0]);
    }

    #[test]
    fn draws_a_line_through_every_step() {
        for steps in [1, 2, 50] {
            let losses: Vec<f32> = (0..steps).map(|step| 5.0 - step as f32 / 20.0).collect();
            let svg = draw(&losses).unwrap();
            assert!(svg.starts_with("<svg") && svg.contains("training loss"), "{svg}");
            let longest =
                svg.split("points=\"").skip(1).map(|rest| rest.split('"').next().unwrap_or_default());
            let longest =
                longest.map(|points| points.split(' ').filter(|point| point.contains(',')).count()).max();
            assert_eq!(longest, Some(steps.max(2)), "{svg}");
        }
    }
}
