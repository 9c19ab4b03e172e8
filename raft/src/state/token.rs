//! What lets a node join.

use serde::{Deserialize, Serialize};
use spandrel_model::ids::UnixNanos;

/// The SHA-256 of a join token. The token itself is shown once, to whoever asked for it, and stored nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TokenHash(pub [u8; 32]);

/// A new join token, as its creator proposes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinToken {
    /// Of the token.
    pub hash: TokenHash,
    /// It lets nodes in until then, by the clock of the member that is asked.
    pub expires: UnixNanos,
}
