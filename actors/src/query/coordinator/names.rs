//! Names of the cluster.

use std::time::Duration;

use async_trait::async_trait;
use spandrel_model::error::PortError;
use spandrel_model::ids::{NodeId, UnixNanos};
use spandrel_model::search::{MissingPart, NamesAnswer, NamesRequest, Receipt};

use super::super::found::NamesPart;
use super::super::message::{decode_names, encode_names_request, malformed};
use super::super::part::NodePart;
use super::merge::{add_receipt, merge_names};
use super::peer::{PeerError, nonsense};
use super::scatter::{Question, scatter};
use super::{Coordinator, lookup_deadline, note};
use crate::limits::BULK_RESULTS;
use crate::link::LinkClass;
use crate::wire::{query_answer::Answer, query_request};

struct NamesQuestion<'a> {
    coordinator: &'a Coordinator,
    request: &'a NamesRequest,
}

impl Coordinator {
    pub(super) async fn list(&self, request: NamesRequest) -> Result<NamesAnswer, PortError> {
        let state = self.state();
        let demand = self.demand(&state, None, (request.from, request.to));
        let mut standing = self.standing(&state);
        if let Some(part) = self.alone(&demand)? {
            let mut names = self.local().list(request, &part).await?;
            note(&mut names.answer.receipt, names.damage);
            return Ok(names.answer);
        }
        let question = NamesQuestion {
            coordinator: self,
            request: &request,
        };
        let deadline = lookup_deadline();
        let scattered = scatter(&demand, &mut standing, deadline, &question).await;
        let mut receipt = Receipt {
            from: request.from,
            to: request.to,
            index_watermark: UnixNanos(u64::MAX),
            missing: scattered.missing,
            ..Receipt::default()
        };
        let mut answers = Vec::with_capacity(scattered.replies.len());
        for reply in scattered.replies {
            let NamesPart { answer, cut, .. } = reply.answer;
            answers.push((answer.names, cut));
            add_receipt(&mut receipt, answer.receipt);
        }
        let (names, is_cut) = merge_names(answers, request.limit);
        if is_cut {
            receipt.missing.push(MissingPart {
                node: self.parts.node,
                shards: Vec::new(),
                from: request.from,
                to: request.to,
                reason: "more names than one message holds: ask by prefix".to_owned(),
            });
        }
        receipt.complete = receipt.missing.is_empty();
        receipt.index_watermark = receipt.index_watermark.min(self.now());
        Ok(NamesAnswer { names, receipt })
    }
}

#[async_trait]
impl Question for NamesQuestion<'_> {
    type Answer = NamesPart;

    fn damage(&self, answer: &mut NamesPart) -> Option<MissingPart> {
        answer.damage.take()
    }

    async fn ask(
        &self,
        node: NodeId,
        part: &NodePart,
        left: Duration,
    ) -> Result<NamesPart, String> {
        if node == self.coordinator.parts.node {
            let answer = self.coordinator.local().list(self.request.clone(), part);
            return answer.await.map_err(|error| error.to_string());
        }
        self.ask_peer(node, part, left)
            .await
            .map_err(|error| error.to_string())
    }
}

impl NamesQuestion<'_> {
    async fn ask_peer(
        &self,
        node: NodeId,
        part: &NodePart,
        left: Duration,
    ) -> Result<NamesPart, PeerError> {
        let class = match self.request.limit {
            BULK_RESULTS.. => LinkClass::Bulk,
            _ => LinkClass::Control,
        };
        let question = query_request::Question::Names(encode_names_request(self.request, part));
        let tenant = &self.request.tenant;
        let answer = self
            .coordinator
            .call(node, class, tenant, question, left)
            .await?;
        match answer {
            Answer::Names(answer) => decode_names(answer, self.request).map_err(nonsense(node)),
            _ => Err(nonsense(node)(malformed("answer")())),
        }
    }
}
