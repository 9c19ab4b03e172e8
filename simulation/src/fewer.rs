//! The search for what matters to a failure.

/// Leaves out everything, then halves, quarters, down to single ones, as long as it fails without them.
pub(crate) fn fewer<T: Clone>(all: &[T], mut fails: impl FnMut(Vec<T>) -> bool) -> Vec<T> {
    let mut kept = all.to_vec();
    let mut size = kept.len();
    while size > 0 && !kept.is_empty() {
        let mut at = 0;
        while at < kept.len() {
            let end = (at + size).min(kept.len());
            let without: Vec<T> = [&kept[..at], &kept[end..]].concat();
            if fails(without.clone()) {
                kept = without;
            } else {
                at = end;
            }
        }
        size = if size == 1 { 0 } else { size.div_ceil(2) };
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_matter_is_left_out() {
        let all: Vec<u32> = (0..50).collect();
        let needed = [3, 17, 44];
        let small = fewer(&all, |some| needed.iter().all(|one| some.contains(one)));
        assert_eq!(small, needed);
        assert_eq!(fewer(&all, |_| true), [0_u32; 0]);
        assert_eq!(fewer(&all, |_| false), all);
    }
}
