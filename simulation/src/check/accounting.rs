//! Nothing disappears silently: what clients sent is what the node counted as accepted, rejected or refused.
//!
//! Not verified: requests that were under way when a fault struck, and refusals of the edge (`api`), which never
//! reach a port.

use super::{Violation, violation};
use crate::counters::Counters;
use crate::model::Tally;

/// `counted`: the counters since the life began; `sent`: what the clients of that life know.
pub(crate) fn everything_sent_is_counted(
    counted: &Counters,
    sent: &Tally,
) -> Result<(), Violation> {
    if sent.under_way > 0 {
        return Ok(());
    }
    let answered = [
        (
            "spandrel_spans_received_total",
            sent.accepted_spans + sent.rejected_spans,
        ),
        ("spandrel_spans_rejected_total", sent.rejected_spans),
        ("spandrel_span_bytes_received_total", sent.accepted_bytes),
        ("spandrel_requests_refused_total", sent.refused_requests),
        ("spandrel_request_bytes_refused_total", sent.refused_bytes),
    ];
    for (name, expected) in answered {
        let seen = counted.total(name);
        if seen != expected {
            let problem = format!("{name} is {seen}, clients know of {expected}: {sent:?}");
            return Err(violation("P4", problem));
        }
    }
    let spans = sent.accepted_spans + sent.rejected_spans + sent.refused_spans;
    let bytes = sent.accepted_bytes + sent.refused_bytes;
    if (sent.spans, sent.bytes) != (spans, bytes) {
        let problem = format!("sent is not accepted, rejected and refused: {sent:?}");
        return Err(violation("P4", problem));
    }
    Ok(())
}
