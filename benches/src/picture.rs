//! A picture of ratios as SVG: a bar for each case, from 1 to the left where there is less than the baseline has, to the right
//! where there is more, each doubling as wide as the next.

use std::fmt::Write as _;

use crate::report::{Bar, Case};

const ROW: usize = 20;
const LABELS: f64 = 330.0;
const PLOT: f64 = 430.0;
const WIDTH: usize = 860;
const TOP: usize = 28;

pub fn ratios(cases: &[Case]) -> String {
    let doublings = |ratio: f64| ratio.clamp(1.0 / 64.0, 64.0).log2();
    let all = cases.iter().filter(|case| case.ratio.is_finite()).map(|case| doublings(case.ratio));
    let (least, most) = all.fold((-1.0_f64, 1.0_f64), |(least, most), at| (least.min(at), most.max(at)));
    let (least, most) = (least.floor(), most.ceil());
    let x = |at: f64| LABELS + (at - least) / (most - least) * PLOT;
    let height = TOP + ROW * cases.len() + 8;
    // Readable on white and on black.
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#fff\"/>\n"
    );
    for at in least as i32..=most as i32 {
        let (line, label) = (x(f64::from(at)), if at < 0 { format!("1/{}", 1 << -at) } else { (1 << at).to_string() });
        let colour = if at == 0 { "#444" } else { "#ddd" };
        let _ = writeln!(
            out,
            "<path d=\"M{line:.1} {TOP}V{}\" stroke=\"{colour}\"/><text x=\"{line:.1}\" y=\"18\" text-anchor=\"middle\">{label} x</text>",
            height - 8
        );
    }
    for (row, case) in cases.iter().enumerate() {
        let top = TOP + ROW * row;
        let middle = top + 14;
        let _ = writeln!(
            out,
            "<text x=\"{:.1}\" y=\"{middle}\" text-anchor=\"end\">{}</text>",
            LABELS - 8.0,
            escape(&case.name)
        );
        if !case.ratio.is_finite() {
            continue;
        }
        let (from, to) = (x(0.0), x(doublings(case.ratio)));
        let colour = match case.verdict() {
            verdict if verdict.starts_with("OVER") => "#c0392b",
            verdict if verdict.is_empty() => "#7f8c8d",
            _ => "#2471a3",
        };
        let _ = writeln!(
            out,
            "<rect x=\"{:.1}\" y=\"{}\" width=\"{:.1}\" height=\"12\" fill=\"{colour}\"/>\
             <text x=\"{:.1}\" y=\"{middle}\">{:.2}</text>",
            from.min(to),
            top + 4,
            (to - from).abs().max(1.0),
            from.max(to) + 5.0,
            case.ratio
        );
        if let Some(Bar::Ratio(bar) | Bar::RatioAtLeast(bar)) = case.bar {
            let promised = x(doublings(bar).clamp(least, most));
            let _ = writeln!(out, "<path d=\"M{promised:.1} {}v16\" stroke=\"#000\" stroke-width=\"2\"/>", top + 2);
        }
    }
    out.push_str("</svg>\n");
    out
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_less_goes_to_the_left_and_what_is_more_to_the_right() {
        let case = |name: &str, value| Case::new(name, &[value], "us", "base", &[1.0]);
        let svg = ratios(&[case("half & <less>", 0.5), case("twice", 2.0)]);
        let bars: Vec<&str> = svg.lines().filter(|line| line.starts_with("<rect x")).collect();
        assert!(bars[0].contains("x=\"330.0\"") && bars[0].contains("width=\"215.0\""), "{bars:?}");
        assert!(bars[1].contains("x=\"545.0\"") && bars[1].contains("width=\"215.0\""), "{bars:?}");
        assert!(svg.contains("half &amp; &lt;less>"));
    }
}
