//! Text for a terminal: what clients sent must not steer it, and columns are counted as the terminal draws them.

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// Whether to colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Colour {
    /// Plain text.
    Never,
    /// ANSI escape sequences.
    Ansi,
}

/// What a piece of text stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Style {
    /// A service, in the colour of its name.
    Service(u8),
    /// An error.
    Error,
    /// Something less important.
    Dim,
    /// A heading.
    Strong,
}

/// Colours of the 256-colour palette that read well on dark and on light, none of them red.
const PALETTE: [u8; 12] = [33, 37, 64, 72, 98, 104, 133, 136, 141, 166, 172, 175];

impl Colour {
    /// `text` in its style.
    pub(crate) fn paint(self, style: Style, text: &str) -> String {
        if self == Self::Never || text.is_empty() {
            return text.to_owned();
        }
        match style {
            Style::Service(colour) => format!("\x1b[38;5;{colour}m{text}\x1b[0m"),
            Style::Error => format!("\x1b[1;31m{text}\x1b[0m"),
            Style::Dim => format!("\x1b[2m{text}\x1b[0m"),
            Style::Strong => format!("\x1b[1m{text}\x1b[0m"),
        }
    }
}

/// The colour of a service: by FNV-1a of its name, the same on every screen.
pub(crate) fn service_style(service: &str) -> Style {
    let hash = service
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
    let at = usize::try_from(hash >> 32).unwrap_or(0) % PALETTE.len();
    Style::Service(PALETTE[at])
}

/// The text with everything escaped that could move the cursor, reorder or hide other text.
#[must_use]
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if is_dangerous(c) => out.extend(c.escape_unicode()),
            c => out.push(c),
        }
    }
    out
}

/// Control characters, marks of direction, invisible ones, and line separators.
fn is_dangerous(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}')
        || matches!(c, '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}' | '\u{ad}' | '\u{180e}')
}

/// Columns that the text takes.
pub(crate) fn columns(text: &str) -> usize {
    text.width()
}

/// The text cut to `width` columns; an ellipsis stands for what is left out.
#[must_use]
pub fn cut(text: &str, width: usize) -> String {
    if columns(text) <= width {
        return text.to_owned();
    }
    let mut out = String::new();
    let mut used = 0;
    for c in text.chars() {
        let columns = c.width().unwrap_or(0);
        if used + columns + 1 > width {
            break;
        }
        out.push(c);
        used += columns;
    }
    if width > 0 {
        out.push('…');
    }
    out
}

/// Spaces that fill `text` up to `width` columns.
pub(crate) fn padding(text: &str, width: usize) -> String {
    " ".repeat(width.saturating_sub(columns(text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_steers_a_terminal_passes() {
        assert_eq!(
            escape("\x1b[2Jgone\u{202e}\u{9b}1m\r\n\u{7f}"),
            "\\u{1b}[2Jgone\\u{202e}\\u{9b}1m\\r\\n\\u{7f}"
        );
        assert_eq!(escape("Größe 注文"), "Größe 注文");
    }

    #[test]
    fn cutting_counts_columns() {
        assert_eq!(cut("注文サービス", 7), "注文サ…");
        assert_eq!(columns(&cut("注文サービス", 6)), 5);
        assert_eq!(cut("short", 5), "short");
        assert_eq!(cut("longer", 0), "");
    }
}
