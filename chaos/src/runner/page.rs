//! The report as one page of HTML, which needs nothing from elsewhere. Pure.

use super::chart::timeline;
use super::check::{Check, Verdict};
use super::measure::seconds as by_second;
use super::report::{Fault, Report, seconds};

const STYLE: &str = "
:root { color-scheme: light dark; --text: #1c2128; --soft: #59636e; --line: #d9dee4; --back: #ffffff;
  --good: #1a7f37; --bad: #cf222e; --spans: #0969da; --latency: #8250df; --failures: #cf222e;
  --machine: #cf222e; --time: #bf8700; --wire: #8250df; --member: #1a7f37; }
@media (prefers-color-scheme: dark) { :root { --text: #e6edf3; --soft: #9198a1; --line: #343b44; --back: #0d1117;
  --good: #3fb950; --bad: #f85149; --spans: #58a6ff; --latency: #bc8cff; --failures: #f85149;
  --machine: #f85149; --time: #d29922; --wire: #bc8cff; --member: #3fb950; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--text); background: var(--back);
  max-width: 1000px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
.pass, .holds { color: var(--good); } .fail, .broken { color: var(--bad); } .soft { color: var(--soft); }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td pre { margin: .3rem 0 0; white-space: pre-wrap; overflow-wrap: anywhere; }
svg { width: 100%; height: auto; } svg text { font: 11px system-ui, sans-serif; fill: var(--soft); }
svg .heading { fill: var(--text); } svg path { fill: none; stroke-width: 1.5; }
.grid { stroke: var(--line); stroke-width: .7; }
path.spans { stroke: var(--spans); } path.latency { stroke: var(--latency); } path.failures { stroke: var(--failures); }
.held { opacity: .28; } .after { opacity: .1; }
.kill, .rot, .disk-full { --fault: var(--machine); } .pause, .clock { --fault: var(--time); }
.partition, .slow { --fault: var(--wire); } .restart, .join, .upgrade, .leave { --fault: var(--member); }
.fault rect { fill: var(--fault); } svg .fault text { fill: var(--fault); }
";

/// The page.
pub(crate) fn render(report: &Report) -> String {
    let verdict = report.verdict();
    let class = verdict.to_lowercase();
    let setup = escape(&report.setup.line());
    let chart = timeline(&by_second(&report.attempts), &report.faults);
    let faults: String = report.faults.iter().map(fault_row).collect();
    let figures = report.figures().into_iter();
    let figures: String = figures
        .map(|(name, value)| row(&[escape(name), escape(&value)]))
        .collect();
    let checks: String = report.checks.iter().map(check_row).collect();
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>Spandrel chaos run: {verdict}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n\
         <h1>Spandrel chaos run: <span class=\"{class}\">{verdict}</span></h1>\n<p>{setup}</p>\n\
         <h2>Timeline</h2>\n{chart}\
         <p class=\"soft\">A band lasts from the strike until it is healed, and paler until the cluster has settled; \
         the number is the place of the node. Attempts count in the second in which they end.</p>\n\
         <h2>Checks</h2>\n<table>\n<tr><th>check</th><th>verdict</th></tr>\n{checks}</table>\n\
         <h2>Faults</h2>\n<table>\n<tr><th>at</th><th>fault</th><th>whom</th><th>lasted</th>\
         <th>settled after another</th></tr>\n{faults}</table>\n\
         <h2>Figures</h2>\n<table>\n{figures}</table>\n</body>\n</html>\n"
    )
}

fn fault_row(fault: &Fault) -> String {
    let (lasted, settled) = fault.periods();
    let struck = seconds(fault.struck_ms);
    let cells = [
        struck.as_str(),
        fault.nemesis.as_str(),
        &fault.whom(),
        &lasted,
        &settled,
    ];
    row(&cells.map(escape))
}

fn check_row(check: &Check) -> String {
    let name = escape(&check.promise.to_string());
    let word = check.verdict.as_str();
    let verdict = match &check.verdict {
        Verdict::Holds => format!("<span class=\"holds\">{word}</span>"),
        Verdict::Unjudged => format!("<span class=\"soft\">{word}</span>"),
        Verdict::Broken(why) => format!(
            "<strong class=\"broken\">{word}</strong><pre>{}</pre>",
            escape(why)
        ),
    };
    row(&[name, verdict])
}

/// Cells are HTML already.
fn row(cells: &[String]) -> String {
    let cells: String = cells
        .iter()
        .map(|cell| format!("<td>{cell}</td>"))
        .collect();
    format!("<tr>{cells}</tr>\n")
}

/// A text as it stands in HTML or SVG, in quotes too.
pub(crate) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '"' => escaped += "&quot;",
            '\'' => escaped += "&#39;",
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::super::report::tests::report;
    use super::*;

    #[test]
    fn text_cannot_become_markup() {
        assert_eq!(
            escape("<a href=\"x\">'&amp;'</a>"),
            "&lt;a href=&quot;x&quot;&gt;&#39;&amp;amp;&#39;&lt;/a&gt;"
        );
        let page = render(&report(Err(anyhow!("<script>boo</script>")), Ok(())));
        assert!(page.contains("&lt;script&gt;boo"), "{page}");
        assert!(page.contains("/tmp/&lt;spandrel&gt;"), "{page}");
        assert!(!page.contains("<script"), "{page}");
    }

    #[test]
    fn the_page_shows_the_verdict_and_asks_nobody_for_anything() {
        let page = render(&report(Ok(()), Ok(())));
        assert!(page.contains("<span class=\"pass\">PASS</span>"));
        for outside in ["http:", "https:", "src=", "href=", "url("] {
            assert!(!page.contains(outside), "{outside}");
        }
        let failed = render(&report(Err(anyhow!("not settled")), Ok(())));
        assert!(failed.contains("<span class=\"fail\">FAIL</span>"));
    }
}
