//! Questions to other nodes.

use std::time::Duration;

use prost::Message;
use spandrel_model::error::PortError;
use spandrel_model::ids::{NodeId, TenantId};

use super::super::message::{Malformed, decode_refusal, malformed};
use super::Coordinator;
use super::scatter::answer_ms;
use crate::link::{LinkClass, LinkError, PeerService};
use crate::wire::query_answer::Answer;
use crate::wire::query_request::Question;
use crate::wire::{QueryAnswer, QueryRequest};

/// Why a node's answer is none.
#[derive(Debug, thiserror::Error)]
pub(super) enum PeerError {
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error("node {} answered nonsense: {malformed}", node.0)]
    Malformed { node: NodeId, malformed: Malformed },
    #[error("node {}: {error}", node.0)]
    Refused { node: NodeId, error: PortError },
}

impl Coordinator {
    /// Asks one other node.
    pub(super) async fn call(
        &self,
        to: NodeId,
        class: LinkClass,
        tenant: &TenantId,
        question: Question,
        left: Duration,
    ) -> Result<Answer, PeerError> {
        let Some(link) = &self.parts.link else {
            let reason = "this node is alone".to_owned();
            return Err(LinkError::Unreachable { to, reason }.into());
        };
        let request = QueryRequest {
            timeout_ms: answer_ms(left),
            epoch: self.parts.cluster.borrow().epoch,
            tenant: tenant.as_str().to_owned(),
            question: Some(question),
        };
        let request = request.encode_to_vec().into();
        let answer = link
            .call(to, PeerService::Query, class, request, left)
            .await?;
        let answer = QueryAnswer::decode(answer).ok();
        match answer.and_then(|answer| answer.answer) {
            Some(Answer::Refused(refusal)) => Err(PeerError::Refused {
                node: to,
                error: decode_refusal(&refusal),
            }),
            Some(answer) => Ok(answer),
            None => Err(nonsense(to)(malformed("answer")())),
        }
    }
}

pub(super) fn nonsense(node: NodeId) -> impl Fn(Malformed) -> PeerError {
    move |malformed| PeerError::Malformed { node, malformed }
}
