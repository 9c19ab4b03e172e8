//! A search of the cluster: rounds of questions to the holders, until the page is full.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use spandrel_model::error::PortError;
use spandrel_model::ids::{NodeId, ShardId, TraceId, UnixNanos};
use spandrel_model::search::{
    Cursor, FoundTrace, MissingPart, Receipt, SearchAnswer, SearchRequest,
};
use tokio::time::Instant;

use super::super::found::{Reached, SearchPart};
use super::super::message::{decode_search, encode_request, malformed};
use super::super::part::NodePart;
use super::merge::{Found, Version, add_missing, add_receipt, merge_page};
use super::peer::{PeerError, nonsense};
use super::scatter::{Question, Reply, answer_ms, scatter};
use super::{Coordinator, note};
use crate::limits::{BULK_RESULTS, PRESSURE_RETRY_MS, RESULT_CREDIT_BYTES};
use crate::link::{LinkClass, MAX_LINK_MESSAGE_BYTES};
use crate::wire::{query_answer::Answer, query_request};

/// One round.
struct SearchQuestion<'a> {
    coordinator: &'a Coordinator,
    request: SearchRequest,
}

/// A search under way.
struct Progress {
    found: Vec<FoundTrace>,
    seen: BTreeSet<TraceId>,
    cursor: Option<Cursor>,
    receipt: Receipt,
    next: Option<Cursor>,
}

impl Coordinator {
    pub(super) async fn find(&self, mut request: SearchRequest) -> Result<SearchAnswer, PortError> {
        let deadline = Instant::now() + Duration::from_millis(request.timeout_ms);
        let state = self.state();
        let range = (request.filter.from, request.filter.to);
        let demand = self.demand(&state, None, range);
        let mut standing = self.standing(&state);
        if let Some(part) = self.alone(&demand)? {
            let mut found = self.local().find(request, &part).await?;
            note(&mut found.answer.receipt, found.damage);
            return Ok(found.answer);
        }
        let limit = request.limit;
        let mut progress = Progress {
            found: Vec::new(),
            seen: BTreeSet::new(),
            cursor: request.cursor,
            receipt: Receipt {
                from: range.0,
                to: range.1,
                index_watermark: UnixNanos(u64::MAX),
                ..Receipt::default()
            },
            next: None,
        };
        loop {
            request.limit = limit - progress.found.len();
            request.cursor = progress.cursor;
            let question = SearchQuestion {
                coordinator: self,
                request: request.clone(),
            };
            standing.answered.clear();
            let round = scatter(&demand, &mut standing, deadline, &question).await;
            add_missing(&mut progress.receipt.missing, round.missing);
            let shared = &self.local().shared;
            let shard = |trace_id| shared.shard(&request.tenant, trace_id);
            let goes_on = progress.add(round.replies, request.limit, &shard);
            if !goes_on {
                break;
            }
            if Instant::now() >= deadline {
                progress.out_of_time(self.parts.node, &request);
                break;
            }
        }
        Ok(progress.answer(self.now()))
    }
}

impl Progress {
    /// Adds a round. True when the page is not full, and another round may add to it.
    fn add(
        &mut self,
        replies: Vec<Reply<SearchPart>>,
        limit: usize,
        shard: &dyn Fn(TraceId) -> ShardId,
    ) -> bool {
        let mut is_stopped = false;
        let mut answers = Vec::with_capacity(replies.len());
        for reply in replies {
            let SearchPart {
                answer, reached, ..
            } = reply.answer;
            // It has stopped for want of time or budget rather than of room.
            let is_short = !answer.receipt.complete && answer.traces.len() < limit;
            is_stopped |= is_short && reached != Reached::End;
            answers.push(Found {
                versions: versions(answer.traces, &reply.part, shard),
                reached,
            });
            add_receipt(&mut self.receipt, answer.receipt);
        }
        let page = merge_page(answers, self.cursor, limit, &self.seen);
        self.seen
            .extend(page.traces.iter().map(|found| found.trace_id));
        let is_full = page.traces.len() >= limit;
        self.found.extend(page.traces);
        self.next = None;
        let Reached::Until(reached) = page.reached else {
            return false;
        };
        let has_moved = reached != self.cursor;
        self.cursor = reached;
        // A page that is not full goes on where it came to, if it came anywhere.
        self.next = reached.filter(|_| has_moved || is_full);
        !is_full && !is_stopped && has_moved
    }

    fn out_of_time(&mut self, node: NodeId, request: &SearchRequest) {
        let part = MissingPart {
            node,
            shards: Vec::new(),
            from: request.filter.from,
            to: self
                .cursor
                .map_or(request.filter.to, |cursor| cursor.start.plus(1)),
            reason: format!("not merged within {} ms", request.timeout_ms),
        };
        add_missing(&mut self.receipt.missing, vec![part]);
    }

    fn answer(mut self, now: UnixNanos) -> SearchAnswer {
        self.receipt.complete = self.receipt.missing.is_empty();
        self.receipt.index_watermark = self.receipt.index_watermark.min(now);
        SearchAnswer {
            traces: self.found,
            next: self.next,
            receipt: self.receipt,
        }
    }
}

fn versions(
    traces: Vec<FoundTrace>,
    part: &NodePart,
    shard: &dyn Fn(TraceId) -> ShardId,
) -> Vec<Version> {
    let versions = traces.into_iter().map(|found| Version {
        is_live: part.live.contains(shard(found.trace_id)),
        found,
    });
    versions.collect()
}

#[async_trait]
impl Question for SearchQuestion<'_> {
    type Answer = SearchPart;

    fn damage(&self, answer: &mut SearchPart) -> Option<MissingPart> {
        answer.damage.take()
    }

    async fn ask(
        &self,
        node: NodeId,
        part: &NodePart,
        left: Duration,
    ) -> Result<SearchPart, String> {
        let coordinator = self.coordinator;
        if node == coordinator.parts.node {
            let request = SearchRequest {
                timeout_ms: answer_ms(left),
                ..self.request.clone()
            };
            let found = coordinator.local().find(request, part).await;
            return found.map_err(|error| error.to_string());
        }
        self.ask_peer(node, part, left)
            .await
            .map_err(|error| error.to_string())
    }
}

impl SearchQuestion<'_> {
    async fn ask_peer(
        &self,
        node: NodeId,
        part: &NodePart,
        left: Duration,
    ) -> Result<SearchPart, PeerError> {
        let request = &self.request;
        let pool = Arc::clone(&self.coordinator.local().shared.pool);
        let bytes = RESULT_CREDIT_BYTES.saturating_mul(request.limit as u64);
        let credit = pool.try_take(bytes.min(MAX_LINK_MESSAGE_BYTES as u64));
        let _credit = credit.ok_or_else(|| PeerError::Refused {
            node: self.coordinator.parts.node,
            error: PortError::unavailable("memory", "no memory for answers", PRESSURE_RETRY_MS),
        })?;
        let class = match request.limit {
            BULK_RESULTS.. => LinkClass::Bulk,
            _ => LinkClass::Control,
        };
        let question = query_request::Question::Search(encode_request(request, part));
        let tenant = &request.tenant;
        let answer = self
            .coordinator
            .call(node, class, tenant, question, left)
            .await?;
        match answer {
            Answer::Search(answer) => {
                decode_search(answer, &request.filter).map_err(nonsense(node))
            }
            _ => Err(nonsense(node)(malformed("answer")())),
        }
    }
}

#[cfg(test)]
mod tests {
    use spandrel_model::batch::StatusCode;
    use spandrel_model::search::TraceState;

    use super::*;

    fn progress() -> Progress {
        Progress {
            found: Vec::new(),
            seen: BTreeSet::new(),
            cursor: None,
            receipt: Receipt::default(),
            next: None,
        }
    }

    fn found(start: u64) -> FoundTrace {
        FoundTrace {
            trace_id: TraceId([1; 16]),
            root_service: String::new(),
            root_operation: String::new(),
            start: UnixNanos(start),
            earliest: UnixNanos(start),
            duration: 0,
            status: StatusCode::Unset,
            span_count: 1,
            error_count: 0,
            services: Vec::new(),
            state: TraceState::Kept,
            matched_spans: Vec::new(),
        }
    }

    fn cursor(start: u64) -> Cursor {
        Cursor {
            start: UnixNanos(start),
            trace_id: TraceId([1; 16]),
        }
    }

    fn reply(starts: &[u64], reached: Reached, complete: bool) -> Reply<SearchPart> {
        let answer = SearchAnswer {
            traces: starts.iter().copied().map(found).collect(),
            next: None,
            receipt: Receipt {
                complete,
                ..Receipt::default()
            },
        };
        Reply {
            node: NodeId(1),
            part: NodePart::default(),
            answer: SearchPart {
                answer,
                reached,
                damage: None,
            },
        }
    }

    fn add(progress: &mut Progress, reply: Reply<SearchPart>) -> bool {
        progress.add(vec![reply], 5, &|_| ShardId(0))
    }

    #[test]
    fn what_a_message_did_not_hold_is_asked_for_again() {
        let mut progress = progress();
        let reached = Reached::Until(Some(cursor(9)));
        assert!(add(&mut progress, reply(&[9], reached, true)));
        assert_eq!(progress.cursor, Some(cursor(9)));
        assert!(!add(&mut progress, reply(&[], Reached::End, true)));
        assert_eq!((progress.found.len(), progress.next), (1, None));
    }

    #[test]
    fn a_node_that_has_used_up_its_time_is_not_asked_again_but_the_client_may_go_on() {
        let mut progress = progress();
        let reached = Reached::Until(Some(cursor(9)));
        assert!(!add(&mut progress, reply(&[9], reached, false)));
        assert_eq!(progress.next, Some(cursor(9)));
    }

    #[test]
    fn a_search_that_comes_nowhere_ends() {
        let mut progress = progress();
        assert!(!add(&mut progress, reply(&[], Reached::Until(None), false)));
        assert_eq!(progress.next, None);
        assert!(!add(&mut progress, reply(&[], Reached::Until(None), true)));
        assert_eq!(progress.next, None);
    }
}
