//! Reading a request's body: nothing is buffered before its bytes were admitted.

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use spandrel_model::credit::Credit;
use spandrel_model::error::PortError;
use spandrel_model::ids::TenantId;
use spandrel_model::ports::Ingest;

use crate::error::ApiError;
use crate::limits::{GROWTH_STEP_BYTES, MAX_WIRE_BYTES, NO_CREDIT_RETRY_MS};

/// No credit is left for what a client sends.
pub(super) fn no_room() -> ApiError {
    let message = "no memory is free for the request now";
    PortError::unavailable("no_credit", message, NO_CREDIT_RETRY_MS).into()
}

/// The refusal of a body beyond [`MAX_WIRE_BYTES`].
pub(super) fn too_large(bytes: u64) -> ApiError {
    let message =
        format!("the request has {bytes} bytes or more, at most {MAX_WIRE_BYTES} are taken");
    ApiError::too_large(message, MAX_WIRE_BYTES)
}

/// Reads a body of a known or unknown length whole.
pub(super) async fn read_whole(
    mut body: Body,
    announced_bytes: Option<u64>,
    ingest: &dyn Ingest,
    tenant: &TenantId,
) -> Result<(Bytes, Credit), ApiError> {
    if let Some(bytes) = announced_bytes.filter(|bytes| *bytes > MAX_WIRE_BYTES as u64) {
        return Err(too_large(bytes));
    }
    let first = announced_bytes.unwrap_or(GROWTH_STEP_BYTES as u64);
    let mut credit = ingest.admit(tenant, first)?;
    let mut buffer = Buffer::default();
    while let Some(chunk) = next_chunk(&mut body).await? {
        let length = (buffer.len() + chunk.len()) as u64;
        if length > MAX_WIRE_BYTES as u64 {
            return Err(too_large(length));
        }
        if length > credit.bytes() {
            let missing = length - credit.bytes();
            // In steps, or half as much again: few questions, and few wasted bytes.
            let step = missing
                .max(GROWTH_STEP_BYTES as u64)
                .max(credit.bytes() / 2);
            if !credit.try_grow(step) {
                return Err(no_room());
            }
        }
        buffer.push(chunk, usize::try_from(credit.bytes()).unwrap_or(0));
    }
    credit.shrink_to(buffer.capacity() as u64);
    Ok((buffer.into_bytes(), credit))
}

/// The next bytes of a body; `None` at its end.
pub(super) async fn next_chunk(body: &mut Body) -> Result<Option<Bytes>, ApiError> {
    while let Some(frame) = body.frame().await {
        let broken = |error| ApiError::invalid("body", format!("the body broke off: {error}"));
        if let Ok(data) = frame.map_err(broken)?.into_data()
            && !data.is_empty()
        {
            return Ok(Some(data));
        }
    }
    Ok(None)
}

/// Chunks put together; a single one is not copied.
#[derive(Default)]
pub(super) struct Buffer {
    only: Bytes,
    joined: BytesMut,
}

impl Buffer {
    pub(super) fn len(&self) -> usize {
        self.only.len() + self.joined.len()
    }

    fn capacity(&self) -> usize {
        self.only.len() + self.joined.capacity()
    }

    /// Adds a chunk; `expected` is how many bytes there will be, as far as they were admitted.
    pub(super) fn push(&mut self, chunk: Bytes, expected: usize) {
        if self.len() == 0 {
            self.only = chunk;
            return;
        }
        if self.joined.is_empty() {
            self.joined.reserve(expected);
            self.joined
                .extend_from_slice(&std::mem::take(&mut self.only));
        }
        let wanted = expected.saturating_sub(self.joined.len()).max(chunk.len());
        self.joined.reserve(wanted);
        self.joined.extend_from_slice(&chunk);
    }

    pub(super) fn into_bytes(self) -> Bytes {
        if self.joined.is_empty() {
            self.only
        } else {
            self.joined.freeze()
        }
    }
}
