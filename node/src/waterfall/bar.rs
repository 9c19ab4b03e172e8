//! The bar of a span in the trace's time range, in eighths of a column where the characters allow it.

/// Blocks that fill a column from the left, by eighths.
const LEFT: [&str; 9] = [" ", "▏", "▎", "▍", "▌", "▋", "▊", "▉", "█"];

/// The bar from `start` to `end` (nanoseconds after the trace's start) of a trace of `total` nanoseconds, in exactly
/// `width` columns. A span is always visible, however short.
pub(super) fn bar(start: u128, end: u128, total: u128, width: usize) -> String {
    if width == 0 {
        return String::new();
    }
    let eighths = width as u128 * 8;
    let scale = |at: u128| at.min(total) * eighths / total.max(1);
    let from = scale(start).min(eighths - 1);
    let to = scale(end.max(start)).clamp(from + 1, eighths);
    let mut out = String::with_capacity(width * 3);
    for column in 0..width as u128 {
        let (left, right) = (column * 8, column * 8 + 8);
        let begin = from.clamp(left, right) - left;
        let stop = to.clamp(left, right) - left;
        out.push_str(cell(begin, stop));
    }
    out
}

/// One column, filled from `begin` to `stop` eighths. There are blocks from the left in eighths, but from the right
/// only a half and an eighth: the nearest is taken.
fn cell(begin: u128, stop: u128) -> &'static str {
    if stop <= begin {
        return " ";
    }
    if begin == 0 {
        let filled = usize::try_from(stop).unwrap_or(8);
        return LEFT.get(filled).copied().unwrap_or("█");
    }
    match (begin, stop - begin) {
        (_, filled) if stop == 8 && filled >= 6 => "█",
        (_, filled) if stop == 8 && filled >= 3 => "▐",
        (6.., _) => "▕",
        (_, filled) if filled >= 3 => "▐",
        _ => "▏",
    }
}

#[cfg(test)]
mod tests {
    use super::bar;

    #[test]
    fn bars_are_where_the_time_is() {
        assert_eq!(bar(0, 100, 100, 4), "████");
        assert_eq!(bar(0, 50, 100, 4), "██  ");
        assert_eq!(bar(50, 100, 100, 4), "  ██");
        assert_eq!(bar(0, 1, 100, 4), "▏   ");
        assert_eq!(bar(100, 100, 100, 4), "   ▕");
        assert_eq!(bar(12, 62, 100, 4), "▐█▍ ");
        assert_eq!(bar(0, 0, 0, 3), "▏  ");
        assert_eq!(bar(5, 3, 100, 0), "");
    }
}
