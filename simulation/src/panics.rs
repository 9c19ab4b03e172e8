//! Panics of a run. In the product some are caught, and a task that panics takes nobody along: each is a defect all the
//! same.

use std::sync::{Mutex, PoisonError};

static FIRST: Mutex<Option<String>> = Mutex::new(None);

/// Notes panics from now on, of all threads: a process runs one seed.
pub(crate) fn note() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let mut first = FIRST.lock().unwrap_or_else(PoisonError::into_inner);
        first.get_or_insert_with(|| panic.to_string());
        drop(first);
        before(panic);
    }));
}

/// The first panic since the last call.
pub(crate) fn take() -> Option<String> {
    FIRST.lock().unwrap_or_else(PoisonError::into_inner).take()
}
