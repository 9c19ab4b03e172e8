//! Why a call was not taken and why a session has ended: for people, and as labels of metrics.

/// Why a call that came in was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotTaken {
    /// Of another version, or damaged.
    #[error("the call has no meaning to this version")]
    NoMeaning,
    /// Its token is none.
    #[error("the session is not known")]
    NoSession,
    /// Over [`MAX_LINK_MESSAGE_BYTES`](super::MAX_LINK_MESSAGE_BYTES).
    #[error("the message is too large")]
    TooLarge,
    /// Another session is used in its place.
    #[error("the session has ended")]
    Ended,
    /// Not for a node without an id.
    #[error("a node that joins may ask to join only")]
    Joining,
    /// More than a peer may have unanswered.
    #[error("the call is over the credit")]
    Credit,
}

impl NotTaken {
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::NoMeaning => "no_meaning",
            Self::NoSession => "no_session",
            Self::TooLarge => "too_large",
            Self::Ended => "session_ended",
            Self::Joining => "joining",
            Self::Credit => "credit",
        }
    }
}

/// Why a session has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum End {
    /// By the other side or by the network.
    #[error("the connection was closed")]
    Closed,
    /// The transport's own handshake took too long.
    #[error("it did not become ready")]
    NotReady,
    /// Both sides keep another one.
    #[error("another session is preferred")]
    NotPreferred,
    /// Nothing came for two periods.
    #[error("the peer gives no sign of life")]
    Silent,
    /// Something came, but no answer.
    #[error("the peer sends, but does not answer")]
    NoAnswer,
    /// A session for single calls that lasted too long.
    #[error("its time is over")]
    Expired,
    /// Whoever opened it has gone away.
    #[error("nobody waits for it any more")]
    NotWanted,
}

impl End {
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::NotReady => "not_ready",
            Self::NotPreferred => "not_preferred",
            Self::Silent => "silent",
            Self::NoAnswer => "no_answer",
            Self::Expired => "expired",
            Self::NotWanted => "not_wanted",
        }
    }
}
