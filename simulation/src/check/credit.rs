//! The credit pool never gives out more than it has.
//!
//! Not verified: that the memory in use is what was charged (P4 is measured on the real process).

use spandrel_actors::Node;

use super::{Violation, violation};

pub(crate) fn credit_within_pool(node: &Node) -> Result<(), Violation> {
    let (peak, capacity) = node.credit_peak();
    if peak <= capacity {
        return Ok(());
    }
    Err(violation(
        "credit",
        format!("{peak} bytes were taken of a pool of {capacity}"),
    ))
}
