//! Says to the cluster that this node has started.

use std::sync::Arc;
use std::time::Duration;

use spandrel_raft::state::NodeRegistration;
use spandrel_raft::{Applied, ClusterState, Command, Conflict, ProposeError, Settings};

use crate::env::Env;
use crate::identity::Lives;
use crate::limits::{REGISTER_RETRY_MS, WAITING_LOG_MS};
use crate::node::{StartError, start_error};
use crate::start_phase::StartPhase;

/// What a node says when it registers, at its start and whenever the others took it for dead.
#[derive(Debug, Clone)]
pub(crate) struct Registration {
    pub(crate) node: NodeRegistration,
    pub(crate) lives: Arc<Lives>,
}

impl Registration {
    pub(crate) fn command(&self) -> Command {
        Command::RegisterLife {
            registration: self.node.clone(),
            life: self.lives.life(),
        }
    }
}

/// Waits until the settings have reached this node and hold it, and registers. Returns its incarnation.
///
/// Waits as long as it takes: after a power cut of the whole cluster the others may come much later.
pub(crate) async fn register(
    settings: &Settings,
    registration: &Registration,
    env: &Env,
) -> Result<u64, StartError> {
    let node = registration.node.node;
    (env.start_phase)(StartPhase::WaitingForSettings);
    wait_for(settings, |state| state.nodes.contains_key(&node)).await?;
    (env.start_phase)(StartPhase::WaitingForMajority);
    loop {
        match settings.propose(registration.command()).await {
            Ok(response) => match response.applied {
                Applied::Incarnation(incarnation) => return Ok(incarnation),
                other => return Err(start_error("register")(&format!("answered {other:?}"))),
            },
            Err(ProposeError::Conflict(conflict)) => {
                return Err(start_error("register")(&refused(&conflict)));
            }
            Err(error @ ProposeError::Stopped { .. }) => {
                return Err(start_error("register")(&error));
            }
            Err(error) => tracing::warn!(
                %error,
                "waiting for a majority of the cluster; a node that was removed waits in vain and must join again with an empty data directory"
            ),
        }
        tokio::time::sleep(Duration::from_millis(REGISTER_RETRY_MS)).await;
    }
}

async fn wait_for(
    settings: &Settings,
    is_there: impl Fn(&ClusterState) -> bool,
) -> Result<(), StartError> {
    let mut states = settings.watch();
    loop {
        let seen = states.wait_for(|state| state.is_seeded() && is_there(state));
        match tokio::time::timeout(Duration::from_millis(WAITING_LOG_MS), seen).await {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(_)) => return Err(start_error("register")(&"the settings have stopped")),
            Err(_) => tracing::warn!(
                "waiting for the leader to send the cluster's settings; a node that never got any needs `spandrel node join ADDRESS`"
            ),
        }
    }
}

/// What an operator can do about a registration that is refused for good.
pub(crate) fn refused(conflict: &Conflict) -> String {
    let advice = match conflict {
        Conflict::WipedNode { .. } | Conflict::ImageOfNode { .. } => {
            "this data directory is an older copy, or another one, than the cluster knows: what it acknowledged since then is missing here. Start it no more; `spandrel node join ADDRESS` with an empty --data-dir makes a new node of this machine, and `spandrel node remove` takes the old one out"
        }
        Conflict::UnknownNode { .. } => {
            "it was removed from the cluster: `spandrel node join ADDRESS` with an empty --data-dir makes a new node of this machine"
        }
        _ => "the cluster does not take it",
    };
    format!("{conflict}: {advice}")
}
