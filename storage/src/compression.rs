//! zstd's decompression with contexts that are kept: making one costs an allocation of about 100 KB, which an
//! allocator that gives memory back at once turns into system calls and page faults for every column group.

use std::io;
use std::sync::{Mutex, PoisonError};

use zstd::bulk::Decompressor;

use crate::limits::MAX_IDLE_DECOMPRESSORS;

static IDLE: Mutex<Vec<Decompressor<'static>>> = Mutex::new(Vec::new());

/// Decompresses one zstd frame of at most `max_raw_len` bytes.
///
/// # Errors
/// When the bytes are no such frame.
pub(crate) fn decompress(stored: &[u8], max_raw_len: usize) -> io::Result<Vec<u8>> {
    decompress_into(stored, max_raw_len, Vec::new())
}

/// Decompresses one zstd frame of at most `max_raw_len` bytes into a buffer, whose content is lost.
///
/// # Errors
/// When the bytes are no such frame.
pub(crate) fn decompress_into(
    stored: &[u8],
    max_raw_len: usize,
    mut buffer: Vec<u8>,
) -> io::Result<Vec<u8>> {
    let idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner).pop();
    let mut decompressor = match idle {
        Some(decompressor) => decompressor,
        None => Decompressor::new()?,
    };
    buffer.clear();
    buffer.reserve(max_raw_len);
    let result = decompressor.decompress_to_buffer(stored, &mut buffer);
    let mut idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner);
    if idle.len() < MAX_IDLE_DECOMPRESSORS {
        idle.push(decompressor);
    }
    result.map(|_| buffer)
}
