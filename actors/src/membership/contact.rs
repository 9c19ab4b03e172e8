//! Whether a node's map of the cluster is the newest: what the majority of the settings' group confirms, since a node that
//! is cut off, and the leader above all, takes what it knows for the truth.

use std::sync::Arc;
use std::time::Duration;

use spandrel_raft::Settings;
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::limits::{CONTACT_MS, CONTACT_WAIT_MS};

/// Asks the group at most once in [`CONTACT_MS`]. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Contact {
    settings: Settings,
    /// When the newest read began that the majority confirmed. Held while one is under way: those that come meanwhile
    /// need no other one.
    confirmed: Arc<Mutex<Option<Instant>>>,
}

impl Contact {
    pub(crate) fn new(settings: Settings) -> Self {
        Self {
            settings,
            confirmed: Arc::default(),
        }
    }

    /// True when this node has everything that was in force [`CONTACT_MS`] ago: nobody is declared dead so quickly. Takes
    /// at most [`CONTACT_WAIT_MS`].
    pub(crate) async fn is_fresh(&self) -> bool {
        if self.settings.state().nodes.len() < 2 {
            return true;
        }
        let wait = Duration::from_millis(CONTACT_WAIT_MS);
        tokio::time::timeout(wait, self.confirm())
            .await
            .unwrap_or(false)
    }

    async fn confirm(&self) -> bool {
        let mut confirmed = self.confirmed.lock().await;
        let limit = Duration::from_millis(CONTACT_MS);
        if confirmed.is_some_and(|at| at.elapsed() <= limit) {
            return true;
        }
        let began = Instant::now();
        let is_confirmed = self.settings.linearizable().await.is_ok();
        if is_confirmed {
            *confirmed = Some(began);
        }
        is_confirmed
    }
}
