//! The ratios as a picture.

use crate::rows::Row;
use std::fmt::Write as _;

const LEFT: f64 = 330.0;
const WIDTH: f64 = 560.0;
const BAR: f64 = 16.0;
/// Ratios at the two ends of the (logarithmic) axis.
const ENDS: (f64, f64) = (0.8, 12.0);

fn at(ratio: f64) -> f64 {
    let (low, high) = ENDS;
    LEFT + WIDTH * (ratio.clamp(low, high) / low).ln() / (high / low).ln()
}

/// Time as a multiple of the bare allocator's, for each row and inner
/// allocator: bars for this crate, dots for the peers, a line for the goal.
pub fn svg(rows: &[Row]) -> String {
    let bars: usize = rows.iter().map(|row| row.comparisons.len()).sum();
    let height = 70.0 + rows.len() as f64 * 30.0 + bars as f64 * (BAR + 4.0);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {:.0} {height:.0}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
         <text x=\"12\" y=\"22\" font-size=\"15\">Time against the bare allocator \
         (bar: tiered_allocator, red line: goal, dots: peers; logarithmic)</text>\n",
        LEFT + WIDTH + 60.0,
    );
    for tick in [1.0, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0] {
        let x = at(tick);
        let _ = write!(
            svg,
            "<line x1=\"{x:.1}\" y1=\"36\" x2=\"{x:.1}\" y2=\"{:.0}\" stroke=\"#dddddd\"/>\n\
             <text x=\"{x:.1}\" y=\"{:.0}\" text-anchor=\"middle\">{tick}</text>\n",
            height - 26.0,
            height - 10.0,
        );
    }
    let mut y = 44.0;
    for row in rows {
        y += 14.0;
        let _ = writeln!(
            svg,
            "<text x=\"12\" y=\"{y:.0}\" font-weight=\"bold\">{}</text>",
            row.name
        );
        y += 6.0;
        for one in &row.comparisons {
            let (from, to) = (at(1.0), at(one.ratio.median));
            let middle = y + BAR / 2.0;
            let _ = write!(
                svg,
                "<text x=\"{:.0}\" y=\"{:.1}\" text-anchor=\"end\">{}  {:.2}</text>\n\
                 <rect x=\"{:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{BAR}\" fill=\"#3b6ea8\"/>\n",
                LEFT - 8.0,
                middle + 4.0,
                one.inner,
                one.ratio.median,
                from.min(to),
                (to - from).abs().max(1.0),
            );
            if one.goal.is_finite() {
                let x = at(one.goal);
                let _ = writeln!(
                    svg,
                    "<line x1=\"{x:.1}\" y1=\"{y:.1}\" x2=\"{x:.1}\" y2=\"{:.1}\" \
                     stroke=\"#c0392b\" stroke-width=\"2\"/>",
                    y + BAR,
                );
            }
            for (name, ratio) in &one.peers {
                let _ = writeln!(
                    svg,
                    "<circle cx=\"{:.1}\" cy=\"{middle:.1}\" r=\"4\" fill=\"#999999\">\
                     <title>{name}: {:.2}</title></circle>",
                    at(ratio.median),
                    ratio.median,
                );
            }
            y += BAR + 4.0;
        }
        y += 10.0;
    }
    svg.push_str("</svg>\n");
    svg
}

/// A title and named lines of points.
pub type Chart<'a> = (String, Vec<(&'a str, Vec<(f64, f64)>)>);

const COLORS: [&str; 3] = ["#777777", "#3b6ea8", "#c0392b"];
const PANEL: f64 = 190.0;

/// One panel a chart, below each other; x is logarithmic, y starts at 0.
pub fn lines(charts: &[Chart<'_>]) -> String {
    let width = 760.0;
    let (left, right, high) = (60.0, 640.0, 130.0);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {:.0}\" \
         font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n",
        PANEL * charts.len() as f64 + 10.0,
    );
    for (panel, (title, series)) in charts.iter().enumerate() {
        let bottom = PANEL * panel as f64 + 26.0 + high;
        let points = || series.iter().flat_map(|(_, points)| points);
        let bounds = points().fold(
            (f64::MAX, 1.0_f64, 0.0_f64),
            |(least, most, top), &(x, y)| (least.min(x), most.max(x), top.max(y)),
        );
        let (least, most, top) = bounds;
        let at = |x: f64, y: f64| {
            let share = (x / least).ln() / (most / least).ln();
            (left + (right - left) * share, bottom - high * y / top)
        };
        let _ = writeln!(
            svg,
            "<text x=\"12\" y=\"{:.0}\" font-weight=\"bold\">{title}</text>",
            bottom - high - 8.0,
        );
        for quarter in 0..=4 {
            let y = top * f64::from(quarter) / 4.0;
            let (_, line) = at(least, y);
            let _ = writeln!(
                svg,
                "<line x1=\"{left}\" y1=\"{line:.1}\" x2=\"{right}\" y2=\"{line:.1}\" \
                 stroke=\"#dddddd\"/><text x=\"{:.0}\" y=\"{:.1}\" text-anchor=\"end\">{y:.1}</text>",
                left - 6.0,
                line + 4.0,
            );
        }
        if let Some((_, points)) = series.first() {
            let mut free_from = 0.0;
            for &(x, _) in points {
                let (place, _) = at(x, 0.0);
                if place >= free_from {
                    free_from = place + 44.0;
                    let _ = writeln!(
                        svg,
                        "<text x=\"{place:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{x}</text>",
                        bottom + 14.0,
                    );
                }
            }
        }
        for (number, (name, points)) in series.iter().enumerate() {
            // The middle one of the three is this crate, as the second is of two.
            let color = if series.len() == 1 {
                COLORS[1]
            } else {
                COLORS[number % 3]
            };
            let path: Vec<String> = points
                .iter()
                .map(|&(x, y)| at(x, y))
                .map(|(x, y)| format!("{x:.1},{y:.1}"))
                .collect();
            let _ = writeln!(
                svg,
                "<polyline points=\"{}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"2\"/>\n\
                 <text x=\"{:.0}\" y=\"{:.0}\" fill=\"{color}\">{name}</text>",
                path.join(" "),
                right + 12.0,
                bottom - high + 14.0 * (number as f64 + 1.0),
            );
        }
    }
    svg.push_str("</svg>\n");
    svg
}
