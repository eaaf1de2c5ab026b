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
