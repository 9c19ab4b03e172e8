//! Asks members to be let in.

use std::time::Duration;

use spandrel_raft::limits::MAX_ADDRESS_BYTES;
use tokio::time::Instant;

use super::message::{Answer, Join, Joined, Reason, Refused, Request};
use crate::limits::{
    JOIN_CALL_MS, JOIN_DEADLINE_MS, JOIN_PAUSE_MS, REJOIN_CALL_MS, WAITING_LOG_MS,
};
use crate::link::{Link, LinkError, PeerService};
use crate::node::{StartError, start_error};

/// What one address said.
enum Reply {
    Joined(Joined),
    /// For good: every other member would say the same.
    No(Refused),
    /// Another one may answer, or this one later.
    Later(String),
}

/// Asks the addresses in turn until a member lets the node in, says no, or the time is over.
pub(crate) async fn ask_to_join(
    link: &dyn Link,
    addresses: &[String],
    join: &Join,
) -> Result<Joined, StartError> {
    let error = start_error("join the cluster");
    check_addresses(addresses)?;
    let deadline = Instant::now() + Duration::from_millis(JOIN_DEADLINE_MS);
    let mut logged: Option<Instant> = None;
    loop {
        let mut said = Vec::new();
        for address in addresses {
            match ask(link, address, join, JOIN_CALL_MS).await {
                Reply::Joined(joined) => return Ok(joined),
                Reply::No(refused) => {
                    return Err(error(&format!("{address} refuses: {}", refused.message)));
                }
                Reply::Later(reason) => said.push(format!("{address}: {reason}")),
            }
        }
        let pause = Duration::from_millis(JOIN_PAUSE_MS);
        if Instant::now() + pause >= deadline {
            let said = said.join("; ");
            let seconds = JOIN_DEADLINE_MS / 1_000;
            return Err(error(&format!(
                "no member let this node in within {seconds} s: {said}"
            )));
        }
        let quiet = Duration::from_millis(WAITING_LOG_MS);
        if logged.is_none_or(|at| at.elapsed() >= quiet) {
            logged = Some(Instant::now());
            tracing::info!(said = said.join("; "), "nobody lets this node in yet");
        }
        tokio::time::sleep(pause).await;
    }
}

/// Asks once whether a used directory belongs to the cluster at these addresses. Nobody there is no reason not to start;
/// at an address may be somebody else's cluster by now, when that of the directory is at another one.
pub(crate) async fn check_membership(
    link: &dyn Link,
    addresses: &[String],
    join: &Join,
) -> Result<Option<Joined>, StartError> {
    check_addresses(addresses)?;
    let mut foreign = None;
    for address in addresses {
        match ask(link, address, join, REJOIN_CALL_MS).await {
            Reply::Joined(joined) => return Ok(Some(joined)),
            Reply::No(refused) => {
                let error = start_error("come back to the cluster");
                let error = error(&format!("{address} refuses: {}", refused.message));
                if refused.reason != Reason::Cluster {
                    return Err(error);
                }
                foreign.get_or_insert(error);
            }
            Reply::Later(reason) => {
                tracing::warn!(address, reason, "not asked whether this directory fits");
            }
        }
    }
    foreign.map_or(Ok(None), Err)
}

fn check_addresses(addresses: &[String]) -> Result<(), StartError> {
    let error = start_error("join the cluster");
    if addresses.is_empty() {
        return Err(error(&"no address of a member is given"));
    }
    match addresses.iter().find(|one| one.len() > MAX_ADDRESS_BYTES) {
        Some(long) => Err(error(&format!(
            "an address of {} bytes is over the limit of {MAX_ADDRESS_BYTES}",
            long.len()
        ))),
        None => Ok(()),
    }
}

/// What went wrong, without the id of a node that is not known.
fn reason_of(error: LinkError) -> String {
    match error {
        LinkError::Unreachable { reason, .. } => format!("cannot be reached: {reason}"),
        LinkError::NoAnswer { reason, .. } => format!("did not answer: {reason}"),
        LinkError::Refused { reason, .. } => format!("refused: {reason}"),
        error @ LinkError::TooLarge { .. } => error.to_string(),
    }
}

async fn ask(link: &dyn Link, address: &str, join: &Join, deadline_ms: u64) -> Reply {
    let request = Request::Join(join.clone()).encode();
    let deadline = Duration::from_millis(deadline_ms);
    let called = link.call_address(address, PeerService::Membership, request, deadline);
    let answer = match called.await {
        Ok(bytes) => Answer::decode(bytes),
        Err(error) => return Reply::Later(reason_of(error)),
    };
    match answer {
        Ok(Answer::Joined(joined)) => Reply::Joined(joined),
        Ok(Answer::Refused(refused)) => match refused.reason {
            Reason::Unavailable => Reply::Later(refused.message),
            _ => Reply::No(refused),
        },
        Ok(Answer::Described(_)) => Reply::Later("it answered something else".to_owned()),
        Err(error) => Reply::Later(format!("its answer cannot be read: {error}")),
    }
}
