//! What the build makes of `proto/spandrel/v1/query.proto`.

#![allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic, clippy::nursery)]

tonic::include_proto!("spandrel.v1");

/// The compiled descriptors, for reflection.
pub(crate) const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/spandrel.v1.bin"));
