//! How answers look: colours, tables, receipts.

use std::io::{self, IsTerminal, Write};

use spandrel_api::dto::Receipt;
use spandrel_api::time::format_instant;
use spandrel_model::ids::UnixNanos;

use crate::cli::ColourChoice;
use crate::waterfall::{Colour, columns, cut, escape, padding};

/// Widest cell of a table in columns.
const MAX_CELL_WIDTH: usize = 48;
/// Columns when standard output is no terminal.
const PIPE_WIDTH: usize = 100;

/// Whether to colour standard output.
#[must_use]
pub fn colour(choice: ColourChoice) -> Colour {
    #[allow(clippy::disallowed_methods)] // a convention of terminals, no setting of ours
    let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    match choice {
        ColourChoice::Always => Colour::Ansi,
        ColourChoice::Auto if io::stdout().is_terminal() && !plain => Colour::Ansi,
        ColourChoice::Auto | ColourChoice::Never => Colour::Never,
    }
}

/// Columns of the terminal, or 100.
#[must_use]
pub fn width() -> usize {
    if !io::stdout().is_terminal() {
        return PIPE_WIDTH;
    }
    terminal_size::terminal_size().map_or(PIPE_WIDTH, |(width, _)| usize::from(width.0))
}

/// Writes to standard output. A reader that went away (`| head`) ends the program quietly and well.
///
/// # Errors
/// Other failures of writing.
pub fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        other => other,
    }
}

/// A table: the columns as wide as their widest cell. Cells are escaped.
#[must_use]
pub fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let cells: Vec<Vec<String>> = rows
        .iter()
        .map(|row| {
            row.iter()
                .map(|cell| cut(&escape(cell), MAX_CELL_WIDTH))
                .collect()
        })
        .collect();
    let widths: Vec<usize> = head
        .iter()
        .enumerate()
        .map(|(at, title)| {
            let widest = cells
                .iter()
                .filter_map(|row| row.get(at))
                .map(|cell| columns(cell))
                .max();
            widest.unwrap_or(0).max(title.len())
        })
        .collect();
    let mut out = String::new();
    let head: Vec<String> = head.iter().map(|title| (*title).to_owned()).collect();
    for row in std::iter::once(&head).chain(&cells) {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(cell);
            line.push_str(&padding(cell, *width));
            line.push_str("  ");
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

/// An instant to the second, for people; JSON has all of it.
#[must_use]
pub fn second(at: UnixNanos) -> String {
    let whole = format_instant(UnixNanos(at.0 - at.0 % UnixNanos::PER_SECOND));
    whole.replace(".000000000Z", "Z")
}

/// A period in the largest unit that it fills: `7d`, `90m`, `30s`.
#[must_use]
pub fn period(milliseconds: u64) -> String {
    let units = [
        ("d", 86_400_000),
        ("h", 3_600_000),
        ("m", 60_000),
        ("s", 1_000),
    ];
    in_units(milliseconds, &units, "ms")
}

/// Bytes exactly, in the largest binary unit that they fill: `480MiB`.
#[must_use]
pub fn exact_size(bytes: u64) -> String {
    let units = [
        ("TiB", 1 << 40),
        ("GiB", 1 << 30),
        ("MiB", 1 << 20),
        ("KiB", 1_u64 << 10),
    ];
    in_units(bytes, &units, "B")
}

fn in_units(amount: u64, units: &[(&str, u64)], smallest: &str) -> String {
    let whole = |unit: u64| amount >= unit && amount.is_multiple_of(unit);
    match units.iter().find(|(_, unit)| whole(*unit)) {
        Some((name, unit)) => format!("{}{name}", amount / unit),
        None => format!("{amount}{smallest}"),
    }
}

/// One line that says what an answer covers.
#[must_use]
pub fn receipt_line(receipt: &Receipt) -> String {
    let range = format!("{} to {}", second(receipt.from.0), second(receipt.to.0));
    if receipt.complete {
        return format!("complete from {range}\n");
    }
    let missing: Vec<String> = receipt
        .missing
        .iter()
        .map(|part| format!("node {}: {}", escape(&part.node), escape(&part.reason)))
        .collect();
    let missing = if missing.is_empty() {
        "the time was over".to_owned()
    } else {
        missing.join("; ")
    };
    format!("INCOMPLETE from {range}: {missing}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_amounts_are_for_people() {
        let at = UnixNanos(1_795_534_192_603_787_897);
        assert_eq!(second(at), "2026-11-24T15:29:52Z");
        let periods = [604_800_000, 5_400_000, 30_000, 1_500, 0].map(period);
        assert_eq!(periods, ["7d", "90m", "30s", "1500ms", "0ms"]);
        let sizes = [480 << 20, 10 << 30, 1_025, 0].map(exact_size);
        assert_eq!(sizes, ["480MiB", "10GiB", "1025B", "0B"]);
    }

    #[test]
    fn tables_line_up_and_escape() {
        let rows = vec![
            vec!["a".to_owned(), "x\x1by".to_owned()],
            vec!["注文".to_owned(), String::new()],
        ];
        let expected = "one   two\na     x\\u{1b}y\n注文\n";
        assert_eq!(table(&["one ", "two"], &rows), expected);
    }
}
