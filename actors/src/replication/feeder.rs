//! Sends frames to one follower node, in order: several messages at a time, and all that were not acknowledged again
//! when one was lost.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use ractor::{Actor, ActorProcessingErr, ActorRef};
use spandrel_model::ids::NodeId;
use spandrel_storage::journal::LsnRange;

use super::FollowerState;
use crate::limits::{
    FEEDER_MESSAGES, FEEDER_RETRY_MS, NOTICE_BYTES, REPLICATE_DEADLINE_MS, REPLICATE_MESSAGE_BYTES,
};
use crate::link::{Link, LinkClass, PeerService};
use crate::shared::Shared;
use crate::wire;
use crate::writer::{CommitNotice, WriterMessage};

/// What goes to a follower.
#[derive(Debug)]
pub(crate) struct Feed {
    /// A frame, and what is in it.
    pub(crate) frame: Option<(Bytes, Vec<LsnRange>)>,
    pub(crate) committed: Vec<CommitNotice>,
}

/// The feeder's messages: frames are paid for by the credit of their requests, which is held until they are on every
/// copy.
pub(crate) enum FeederMessage {
    Send(Feed),
    /// The answer to the call of this number, of this round: shards of frames that were refused.
    Answered(u64, u64, Result<Vec<u32>, String>),
    /// Send again what was not acknowledged.
    Again(u64),
}

impl ractor::Message for FeederMessage {}

/// The actor.
pub(crate) struct Feeder;

/// What it needs.
pub(crate) struct FeederArguments {
    pub(crate) shared: Arc<Shared>,
    pub(crate) link: Arc<dyn Link>,
    pub(crate) node: NodeId,
    pub(crate) writer: ActorRef<WriterMessage>,
}

/// A message to the follower.
struct Call {
    number: u64,
    request: Bytes,
    ranges: Vec<Vec<LsnRange>>,
    /// Shards that were refused; `None` while there is no answer.
    answer: Option<Vec<u32>>,
}

/// Invariants: `calls` are in order, those before `sent` were sent in this round; a frame leaves when all before it
/// have.
pub(crate) struct FeederState {
    arguments: FeederArguments,
    waiting: VecDeque<Feed>,
    calls: VecDeque<Call>,
    next: u64,
    /// Calls that were sent in this round.
    sent: usize,
    round: u64,
    /// A call was lost: nothing is sent until the next round.
    lost: bool,
}

impl Actor for Feeder {
    type Msg = FeederMessage;
    type State = FeederState;
    type Arguments = FeederArguments;

    async fn pre_start(
        &self,
        _: ActorRef<FeederMessage>,
        arguments: FeederArguments,
    ) -> Result<FeederState, ActorProcessingErr> {
        Ok(FeederState {
            arguments,
            waiting: VecDeque::new(),
            calls: VecDeque::new(),
            next: 0,
            sent: 0,
            round: 0,
            lost: false,
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<FeederMessage>,
        message: FeederMessage,
        state: &mut FeederState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            FeederMessage::Send(feed) => state.waiting.push_back(feed),
            FeederMessage::Answered(number, round, answer) => {
                state.answered(&myself, number, round, answer);
            }
            FeederMessage::Again(round) if round == state.round => {
                state.round += 1;
                state.lost = false;
                state.sent = 0;
            }
            FeederMessage::Again(_) => {}
        }
        state.send(&myself).await;
        Ok(())
    }
}

impl FeederState {
    fn answered(
        &mut self,
        myself: &ActorRef<FeederMessage>,
        number: u64,
        round: u64,
        answer: Result<Vec<u32>, String>,
    ) {
        match answer {
            Ok(refused) => {
                let call = self.calls.iter_mut().find(|call| call.number == number);
                if let Some(call) = call {
                    call.answer = Some(refused);
                }
            }
            Err(reason) if round == self.round && !self.lost => {
                tracing::debug!(
                    node = self.arguments.node.0,
                    reason,
                    "frames are sent again"
                );
                self.lost = true;
                let round = self.round;
                myself.send_after(Duration::from_millis(FEEDER_RETRY_MS), move || {
                    FeederMessage::Again(round)
                });
            }
            Err(_) => {}
        }
        while self.calls.front().is_some_and(|call| call.answer.is_some()) {
            let Some(call) = self.calls.pop_front() else {
                break;
            };
            self.sent = self.sent.saturating_sub(1);
            let refused = call.answer.unwrap_or_default();
            for ranges in call.ranges {
                let shards = ranges.iter().map(|range| u32::from(range.shard.0));
                let was_refused = shards.into_iter().any(|shard| refused.contains(&shard));
                let fed = WriterMessage::Fed(self.arguments.node, ranges, was_refused);
                let _ = self.arguments.writer.cast(fed);
            }
        }
    }

    async fn send(&mut self, myself: &ActorRef<FeederMessage>) {
        while !self.lost && self.sent < FEEDER_MESSAGES {
            if self.sent == self.calls.len() && !self.compose() {
                break;
            }
            let Some(call) = self.calls.get(self.sent) else {
                break;
            };
            self.sent += 1;
            if call.answer.is_some() {
                continue;
            }
            let (number, request, round) = (call.number, call.request.clone(), self.round);
            let (link, node) = (Arc::clone(&self.arguments.link), self.arguments.node);
            let call = async move {
                let deadline = Duration::from_millis(REPLICATE_DEADLINE_MS);
                let class = LinkClass::Bulk;
                link.call(node, PeerService::Shards, class, request, deadline)
                    .await
            };
            let mut call = Box::pin(call);
            // Calls go out in the order in which they are first polled, which tasks of their own would not keep.
            let first = futures_util::poll!(&mut call);
            let (myself, shared) = (myself.clone(), Arc::clone(&self.arguments.shared));
            self.arguments.shared.spawn_job("feeder", async move {
                let called = match first {
                    Poll::Ready(called) => called,
                    Poll::Pending => call.await,
                };
                let answer = match called {
                    Ok(answer) => refused_shards(&shared, node, answer),
                    Err(error) => Err(error.to_string()),
                };
                let _ = myself.cast(FeederMessage::Answered(number, round, answer));
            });
        }
    }

    /// Makes the next message of what waits. False when nothing does.
    fn compose(&mut self) -> bool {
        let (mut frames, mut ranges, mut committed) = (Vec::new(), Vec::new(), Vec::new());
        let mut bytes = 0;
        while let Some(feed) = self.waiting.front() {
            let frame = feed.frame.as_ref().map_or(0, |(frame, _)| frame.len());
            let more = frame + feed.committed.len() * NOTICE_BYTES;
            if bytes > 0 && bytes + more > REPLICATE_MESSAGE_BYTES {
                break;
            }
            let Some(feed) = self.waiting.pop_front() else {
                break;
            };
            bytes += more;
            committed.extend(feed.committed.into_iter().map(|notice| wire::Committed {
                shard: u32::from(notice.shard.0),
                term: notice.term.0,
                lsn: notice.lsn.0,
            }));
            if let Some((frame, in_it)) = feed.frame {
                frames.push(frame);
                ranges.push(in_it);
            }
        }
        if frames.is_empty() && committed.is_empty() {
            return false;
        }
        let replicate = wire::Replicate {
            frames,
            committed,
            catch_up: None,
        };
        let request = wire::ShardsRequest {
            body: Some(wire::shards_request::Body::Replicate(replicate)),
        };
        self.calls.push_back(Call {
            number: self.next,
            request: request.encode_to_vec().into(),
            ranges,
            answer: None,
        });
        self.next += 1;
        true
    }
}

/// The shards that an answer refuses. Takes note of what the follower says of itself.
fn refused_shards(shared: &Shared, node: NodeId, answer: Bytes) -> Result<Vec<u32>, String> {
    let answer = wire::ShardsAnswer::decode(answer).map_err(|error| error.to_string())?;
    match answer.body {
        Some(wire::shards_answer::Body::Replicate(answer)) => {
            for refused in &answer.refused {
                let (shard, reason) = (refused.shard, &refused.reason);
                tracing::debug!(shard, reason, "a follower refused records");
            }
            let state = FollowerState {
                pressure: u8::try_from(answer.pressure).unwrap_or(u8::MAX).min(3),
                disk_is_full: answer.disk_is_full,
            };
            shared.follower_pressure.note(node, state);
            Ok(answer.refused.iter().map(|refused| refused.shard).collect())
        }
        _ => Err("an answer to something else".to_owned()),
    }
}
