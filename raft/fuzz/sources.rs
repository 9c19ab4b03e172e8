// The crate's own sources, at the root of a target as at its own.

#[path = "../src/codec.rs"]
mod codec;
#[path = "../src/codec_oracle.rs"]
mod codec_oracle;
#[path = "../src/limits.rs"]
mod limits;
#[path = "../src/message.rs"]
mod message;
#[path = "../src/state/mod.rs"]
mod state;
#[path = "../src/store/mod.rs"]
mod store;
#[path = "../src/transport.rs"]
mod transport;
#[path = "../src/types.rs"]
mod types;
