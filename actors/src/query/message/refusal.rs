//! Errors of a port between nodes.

use spandrel_model::error::{ErrorClass, PortError};

use super::cut;
use crate::wire::QueryRefusal;

/// Codes that a node may answer; others arrive as `peer`.
const CODES: [&str; 12] = [
    "busy",
    "corrupt_frame",
    "epoch",
    "internal",
    "invalid",
    "memory",
    "not_member",
    "reader_gone",
    "stopping",
    "too_many_queries",
    "too_many_readers",
    "unknown",
];

/// On the wire: numbers are never reused.
const CLASSES: [(u32, ErrorClass); 6] = [
    (1, ErrorClass::Invalid),
    (2, ErrorClass::NotFound),
    (3, ErrorClass::OverLimit),
    (4, ErrorClass::Unavailable),
    (5, ErrorClass::Corrupt),
    (6, ErrorClass::Internal),
];

pub(crate) fn encode_refusal(error: &PortError) -> QueryRefusal {
    let class = CLASSES.iter().find(|(_, class)| *class == error.class);
    QueryRefusal {
        class: class.map_or(0, |(number, _)| *number),
        code: error.code.to_owned(),
        message: cut(&error.message).to_owned(),
        retry_after_ms: error.retry_after_ms.unwrap_or_default(),
    }
}

pub(crate) fn decode_refusal(refusal: &QueryRefusal) -> PortError {
    let class = CLASSES.iter().find(|(number, _)| *number == refusal.class);
    let code = CODES.iter().find(|code| **code == refusal.code);
    PortError {
        retry_after_ms: (refusal.retry_after_ms > 0).then_some(refusal.retry_after_ms),
        ..PortError::new(
            class.map_or(ErrorClass::Internal, |(_, class)| *class),
            code.copied().unwrap_or("peer"),
            cut(&refusal.message),
        )
    }
}
