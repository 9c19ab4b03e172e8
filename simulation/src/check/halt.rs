//! A failed sync is never retried: the node stops, whatever file it was.

use std::path::Path;

use super::{Violation, violation};
use crate::limits::HALT_MS;

/// `halted`: the node has asked to be stopped by now, [`HALT_MS`] after the sync of `path` failed.
pub(crate) fn halts_after_failed_sync(path: &Path, halted: bool) -> Result<(), Violation> {
    if halted {
        return Ok(());
    }
    let problem = format!(
        "a sync of {} failed and the node still runs {HALT_MS} ms later",
        path.display()
    );
    Err(violation("halt", problem))
}
