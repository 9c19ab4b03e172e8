//! OTLP's JSON encoding, both ways, from one table of its messages: no message is built in memory, so a request of
//! many empty objects costs no more than its bytes, and a stored text that is no UTF-8 can still be shown.

mod read;
mod schema;
mod write;

pub(crate) use read::{TranscodeError, transcode_request};
pub(crate) use write::{
    RenderedTraces, TRACE_DOCUMENT_END, trace_document, trace_document_start,
};

#[cfg(test)]
mod json_test;
