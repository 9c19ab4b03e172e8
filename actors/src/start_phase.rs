//! How far a node's start has come, for those who ask while it is not there yet.

use std::fmt;

/// What a node that starts is at. Waiting may take for ever: others must come back first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum StartPhase {
    /// Opens its directory and asks to be let in, if it is new.
    #[default]
    Opening,
    /// Waits for the leader to send the cluster's settings.
    WaitingForSettings,
    /// Waits for a majority of the voters to take its registration.
    WaitingForMajority,
    /// Reads its journal.
    Replaying,
}

impl fmt::Display for StartPhase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Opening => "the node is starting",
            Self::WaitingForSettings => {
                "the node is starting: it waits for the leader to send the cluster's settings"
            }
            Self::WaitingForMajority => {
                "the node is starting: it waits for a majority of the voters to take its registration"
            }
            Self::Replaying => "the node is starting: it replays its journal",
        })
    }
}
