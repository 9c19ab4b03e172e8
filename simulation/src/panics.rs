//! Panics of a run. A task that panics takes nobody along: it is a defect all the same. Only those of the database over a
//! damaged file are expected, where the store takes them for damage.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

/// Files are damaged from now on.
static ROTTEN: AtomicBool = AtomicBool::new(false);
static FIRST: Mutex<Option<String>> = Mutex::new(None);

/// Notes panics from now on, of all threads: a process runs one seed.
pub(crate) fn note() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if ROTTEN.load(Ordering::Relaxed) && spandrel_storage::guard::is_guarded() {
            return;
        }
        let mut first = FIRST.lock().unwrap_or_else(PoisonError::into_inner);
        first.get_or_insert_with(|| panic.to_string());
        drop(first);
        before(panic);
    }));
}

/// A file has been damaged.
pub(crate) fn expect_damage() {
    ROTTEN.store(true, Ordering::Relaxed);
}

/// The first panic since the last call.
pub(crate) fn take() -> Option<String> {
    FIRST.lock().unwrap_or_else(PoisonError::into_inner).take()
}
