//! How answers look: colours, tables, receipts.

use std::io::{self, IsTerminal, Write};

use spandrel_api::dto::Receipt;
use spandrel_api::time::format_instant;

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

/// One line that says what an answer covers.
#[must_use]
pub fn receipt_line(receipt: &Receipt) -> String {
    let range = format!(
        "{} to {}",
        format_instant(receipt.from.0),
        format_instant(receipt.to.0)
    );
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
    fn tables_line_up_and_escape() {
        let rows = vec![
            vec!["a".to_owned(), "x\x1by".to_owned()],
            vec!["注文".to_owned(), String::new()],
        ];
        let expected = "one   two\na     x\\u{1b}y\n注文\n";
        assert_eq!(table(&["one ", "two"], &rows), expected);
    }
}
