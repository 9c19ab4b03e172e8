//! The timeline of a run as an SVG: curves over seconds, and bands for faults. Pure.

use super::measure::Second;
use super::page::escape;
use super::report::{Fault, seconds};

const WIDTH: f64 = 960.0;
/// What is left for the labels of the vertical axes.
const LEFT: f64 = 64.0;
const RIGHT: f64 = 12.0;
/// What is left above the panels for the names of faults.
const TOP: f64 = 56.0;
const PANEL: f64 = 130.0;
/// Between two panels, the heading of the lower one included.
const GAP: f64 = 36.0;
const BOTTOM: f64 = 28.0;
/// Lines that divide the time, at most.
const TICKS: u64 = 12;

/// What one panel shows.
struct Panel {
    title: &'static str,
    class: &'static str,
    /// A value each second, if there is one.
    values: Vec<Option<u64>>,
}

/// Places of a chart.
struct Scale {
    /// Seconds from the left end to the right one.
    span: f64,
    height: f64,
}

impl Scale {
    fn x(&self, second: f64) -> f64 {
        LEFT + second.min(self.span) / self.span * (WIDTH - LEFT - RIGHT)
    }
}

/// The timeline.
pub(crate) fn timeline(all: &[Second], faults: &[Fault]) -> String {
    let panels = panels(all);
    let last = u32::try_from(all.len().max(1)).unwrap_or(u32::MAX);
    // A handful.
    let count = f64::from(u8::try_from(panels.len()).unwrap_or(u8::MAX));
    let scale = Scale {
        span: f64::from(last),
        height: TOP + count * PANEL + (count - 1.0) * GAP + BOTTOM,
    };
    let mut svg = format!(
        "<svg viewBox=\"0 0 {WIDTH} {:.0}\" role=\"img\" aria-label=\"acknowledged spans, latency and failures over \
         time, with the faults\">\n",
        scale.height
    );
    for (number, fault) in faults.iter().enumerate() {
        svg += &band(&scale, number, fault);
    }
    svg += &time_axis(&scale, u64::from(last));
    let mut top = TOP;
    for panel in &panels {
        svg += &drawn(&scale, panel, top);
        top += PANEL + GAP;
    }
    svg + "</svg>\n"
}

fn panels(all: &[Second]) -> [Panel; 3] {
    let spans = |second: &Second| Some(second.spans);
    let failures = |second: &Second| Some(second.failures);
    [
        Panel {
            title: "acknowledged spans per second",
            class: "spans",
            values: all.iter().map(spans).collect(),
        },
        Panel {
            title: "p99 latency of acknowledgements, ms",
            class: "latency",
            values: all.iter().map(|second| second.p99_ms).collect(),
        },
        Panel {
            title: "attempts refused or unanswered per second",
            class: "failures",
            values: all.iter().map(failures).collect(),
        },
    ]
}

/// A fault: from the strike until it was over, and paler until the cluster was well.
fn band(scale: &Scale, number: usize, fault: &Fault) -> String {
    let end_ms = |at: Option<u64>| at.map_or(scale.span, secs);
    let (struck, healed) = (secs(fault.struck_ms), end_ms(fault.healed_ms));
    let settled = end_ms(fault.settled_ms).max(healed);
    let name = fault.nemesis.as_str();
    let (lasted, recovered) = fault.periods();
    let title = escape(&format!(
        "{name} of {} at {}: lasted {lasted}, settled after another {recovered}",
        fault.whom(),
        seconds(fault.struck_ms)
    ));
    let height = scale.height - TOP - BOTTOM;
    let (from, middle, to) = (scale.x(struck), scale.x(healed), scale.x(settled));
    // A join may be over at once; it is to be seen.
    let (held, after) = ((middle - from).max(2.0), (to - middle).max(0.0));
    // Two rows of names: neighbours do not write over one another.
    let row = if number.is_multiple_of(2) { 12.0 } else { 26.0 };
    format!(
        "<g class=\"fault {name}\"><title>{title}</title>\
         <rect class=\"held\" x=\"{from:.1}\" y=\"{TOP}\" width=\"{held:.1}\" height=\"{height:.1}\"/>\
         <rect class=\"after\" x=\"{middle:.1}\" y=\"{TOP}\" width=\"{after:.1}\" height=\"{height:.1}\"/>\
         <text x=\"{from:.1}\" y=\"{row}\">{} {}</text></g>\n",
        escape(name),
        fault.victim,
    )
}

fn time_axis(scale: &Scale, last: u64) -> String {
    let step = [5, 10, 15, 30, 60, 120, 300]
        .into_iter()
        .find(|step| last / step <= TICKS)
        .unwrap_or(600);
    let mut axis = String::new();
    let bottom = scale.height - BOTTOM;
    for at in (0..=last).step_by(usize::try_from(step).unwrap_or(1)) {
        let x = scale.x(secs(at * 1000));
        let label = bottom + 18.0;
        axis += &format!(
            "<line class=\"grid\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{TOP}\" y2=\"{bottom:.1}\"/>\
             <text class=\"tick\" text-anchor=\"middle\" x=\"{x:.1}\" y=\"{label:.1}\">{at} s</text>\n"
        );
    }
    axis
}

fn drawn(scale: &Scale, panel: &Panel, top: f64) -> String {
    let most = panel.values.iter().flatten().copied().max().unwrap_or(0);
    let most = round_up(most.max(1));
    let bottom = top + PANEL;
    let mut svg = String::new();
    for (value, y) in [(most, top), (most / 2, top + PANEL / 2.0), (0, bottom)] {
        // Half of an odd number lies elsewhere.
        if value * 2 != most && value != most && value != 0 {
            continue;
        }
        let (end, label) = (WIDTH - RIGHT, y + 4.0);
        let before = LEFT - 6.0;
        svg += &format!(
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{end}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
             <text class=\"tick\" text-anchor=\"end\" x=\"{before}\" y=\"{label:.1}\">{value}</text>\n"
        );
    }
    let heading = top - 6.0;
    svg += &format!(
        "<text class=\"heading\" x=\"{LEFT}\" y=\"{heading:.1}\">{}</text>\n",
        escape(panel.title)
    );
    let path = path(scale, &panel.values, most, bottom);
    svg + &format!("<path class=\"{}\" d=\"{path}\"/>\n", panel.class)
}

/// Steps from second to second; a second without a value is a gap.
fn path(scale: &Scale, values: &[Option<u64>], most: u64, bottom: f64) -> String {
    let mut path = String::new();
    let mut draws = false;
    for (at, value) in (0_u64..).zip(values) {
        let Some(value) = value else {
            draws = false;
            continue;
        };
        let (from, to) = (scale.x(secs(at * 1000)), scale.x(secs((at + 1) * 1000)));
        let y = bottom - secs(*value) / secs(most) * PANEL;
        let command = if draws { 'L' } else { 'M' };
        path += &format!("{command}{from:.1} {y:.1}H{to:.1}");
        draws = true;
    }
    path
}

/// The next number of one digit and noughts.
fn round_up(value: u64) -> u64 {
    let mut unit = 1;
    while value / unit >= 10 {
        unit *= 10;
    }
    value.div_ceil(unit) * unit
}

/// A thousandth, as a number to draw with. What is beyond 49 days is drawn at their end.
fn secs(thousandths: u64) -> f64 {
    f64::from(u32::try_from(thousandths).unwrap_or(u32::MAX)) / 1000.0
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::report;
    use super::*;

    #[test]
    fn a_fault_has_its_band_and_a_second_without_answers_is_a_gap() {
        let second = |spans, p99_ms| Second {
            spans,
            failures: 0,
            p99_ms,
        };
        let all = [second(30, Some(4)), second(0, None), second(20, Some(9))];
        let mut fault = report(Ok(()), Ok(())).faults.remove(0);
        fault.node = "<2>".to_owned();
        let svg = timeline(&all, &[fault]);
        assert!(
            svg.contains("kill of node &lt;2&gt; (place 1) at 2.0 s"),
            "{svg}"
        );
        assert_eq!(svg.matches("class=\"held\"").count(), 1);
        let latency = svg.split("class=\"latency\" d=\"").nth(1).unwrap();
        let latency = latency.split('"').next().unwrap();
        assert_eq!(latency.matches('M').count(), 2, "{latency}");
        assert!(!svg.contains("NaN"));
    }

    #[test]
    fn axes_end_at_round_numbers() {
        for (value, expected) in [(1, 1), (10, 10), (11, 20), (437, 500), (3_001, 4_000)] {
            assert_eq!(round_up(value), expected);
        }
        assert!(timeline(&[], &[]).contains("</svg>"), "an empty run");
    }
}
