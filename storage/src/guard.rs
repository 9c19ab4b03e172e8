//! Runs redb over bytes that may have rotted: it asserts rather than answers when a page is damaged, and that must cost
//! a file, not the process.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

thread_local! {
    static DEPTH: Cell<u32> = const { Cell::new(0) };
}

/// What `run` gives; `None` when it panics.
pub(crate) fn guarded<T>(run: impl FnOnce() -> T) -> Option<T> {
    DEPTH.set(DEPTH.get() + 1);
    let result = catch_unwind(AssertUnwindSafe(run));
    DEPTH.set(DEPTH.get() - 1);
    result.ok()
}

/// Whether a panic of this thread would be caught as damage of a file. For hooks, which see it all the same.
#[must_use]
pub fn is_guarded() -> bool {
    DEPTH.get() > 0
}
