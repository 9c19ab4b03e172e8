//! Join tokens: drawn at random, shown once, kept as a hash.

use std::fmt;

use sha2::{Digest, Sha256};
use spandrel_model::ids::UnixNanos;
use spandrel_raft::ClusterState;
use spandrel_raft::state::TokenHash;
use subtle::ConstantTimeEq;

/// What every token begins with, so that one in a log or a repository is recognised for what it is.
const PREFIX: &str = "spandrel-join-";

/// A join token. It is not shown by `Debug`, and logged nowhere.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinSecret(String);

impl fmt::Debug for JoinSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JoinSecret(..)")
    }
}

impl JoinSecret {
    /// The token of 256 random bits.
    #[must_use]
    pub fn from_random(bits: [u8; 32]) -> Self {
        let digits: String = bits.iter().map(|byte| format!("{byte:02x}")).collect();
        Self(format!("{PREFIX}{digits}"))
    }

    /// A token as somebody typed it.
    #[must_use]
    pub fn from_text(text: &str) -> Self {
        Self(text.trim().to_owned())
    }

    /// The token itself: for whoever asked for it, and for the member that is asked to let a node in.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// What the cluster keeps of it.
    pub(crate) fn hash(&self) -> TokenHash {
        TokenHash(Sha256::digest(self.0.as_bytes()).into())
    }
}

/// True when the cluster knows the token and it has not expired by `now`. Takes as long whichever it is.
pub(crate) fn lets_in(state: &ClusterState, secret: &JoinSecret, now: UnixNanos) -> bool {
    let hash = secret.hash();
    let mut found = subtle::Choice::from(0);
    for (known, expires) in &state.join_tokens {
        let live = subtle::Choice::from(u8::from(*expires > now));
        found |= known.0.ct_eq(&hash.0) & live;
    }
    found.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_known_token_lets_in_until_it_expires() {
        let mut state = ClusterState::default();
        let secret = JoinSecret::from_random([7; 32]);
        assert!(!lets_in(&state, &secret, UnixNanos(1)));
        state.join_tokens.insert(secret.hash(), UnixNanos(10));
        let other = JoinSecret::from_random([8; 32]);
        state.join_tokens.insert(other.hash(), UnixNanos(5));
        let typed = JoinSecret::from_text(&format!(" {}\n", secret.reveal()));
        assert!(lets_in(&state, &typed, UnixNanos(9)));
        assert!(!lets_in(&state, &typed, UnixNanos(10)));
        assert!(!lets_in(&state, &other, UnixNanos(9)));
        assert!(!lets_in(&state, &JoinSecret::from_text(""), UnixNanos(1)));
    }

    #[test]
    fn a_token_is_not_shown_by_accident() {
        let secret = JoinSecret::from_random([7; 32]);
        assert!(!format!("{secret:?}").contains("0707"));
        assert!(secret.reveal().starts_with("spandrel-join-0707"));
        assert_eq!(secret.reveal().len(), PREFIX.len() + 64);
    }
}
