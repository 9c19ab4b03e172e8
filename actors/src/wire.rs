//! What nodes tell each other (`actors/proto`), as prost reads and writes it.

#![allow(missing_docs, clippy::all, unreachable_pub)] // generated

include!(concat!(env!("OUT_DIR"), "/spandrel.peer.v1.rs"));
