//! Questions for names between nodes.

use prost::Message;
use spandrel_model::batch::SpanKind;
use spandrel_model::ids::{TenantId, UnixNanos};
use spandrel_model::search::{Name, NamesAnswer, NamesKind, NamesRequest};

use super::super::found::NamesPart;
use super::super::part::NodePart;
use super::{
    Malformed, decode_damage, decode_part, decode_receipt, encode_damage, encode_part,
    encode_receipt, malformed,
};
use crate::limits::{MAX_ANSWER_BYTES, MAX_PEER_NAMES};
use crate::wire;

/// Of tags and values, by their number on the wire.
const SCOPES: [(u32, &str); 6] = [
    (1, "resource"),
    (2, "span"),
    (3, "string"),
    (4, "int"),
    (5, "double"),
    (6, "bool"),
];

pub(crate) fn encode_names_request(request: &NamesRequest, part: &NodePart) -> wire::NamesQuestion {
    let (kind, of) = match &request.kind {
        NamesKind::Services => (1, ""),
        NamesKind::Operations { service } => (2, service.as_str()),
        NamesKind::Tags => (3, ""),
        NamesKind::TagValues { key } => (4, key.as_str()),
    };
    wire::NamesQuestion {
        part: Some(encode_part(part)),
        kind,
        of: of.to_owned(),
        from: request.from.0,
        to: request.to.0,
        limit: u32::try_from(request.limit).unwrap_or(u32::MAX),
        prefix: request.prefix.clone(),
    }
}

pub(crate) fn decode_names_request(
    question: wire::NamesQuestion,
    tenant: TenantId,
    shards: u16,
) -> Result<(NamesRequest, NodePart), Malformed> {
    let part = decode_part(question.part, shards)?;
    let limit = usize::try_from(question.limit).ok();
    let limit = limit.filter(|limit| *limit <= MAX_PEER_NAMES);
    let request = NamesRequest {
        tenant,
        kind: match question.kind {
            1 => NamesKind::Services,
            2 => NamesKind::Operations {
                service: question.of,
            },
            3 => NamesKind::Tags,
            4 => NamesKind::TagValues { key: question.of },
            _ => return Err(malformed("kind")()),
        },
        from: UnixNanos(question.from),
        to: UnixNanos(question.to),
        limit: limit.ok_or_else(malformed("limit"))?,
        prefix: question.prefix,
    };
    Ok((request, part))
}

pub(crate) fn encode_names(part: NamesPart) -> wire::NamesAnswer {
    let NamesPart { answer, damage, .. } = part;
    let mut receipt = encode_receipt(&answer.receipt);
    if let Some(damage) = &damage {
        encode_damage(&mut receipt, damage);
    }
    let mut bytes = receipt.encoded_len();
    let mut names = Vec::with_capacity(answer.names.len());
    let mut cut = false;
    for name in answer.names {
        let scope = SCOPES.iter().find(|(_, word)| Some(*word) == name.scope);
        let name = wire::FoundName {
            name: name.name,
            kind: name.kind.map_or(0, |kind| kind as u32 + 1),
            scope: scope.map_or(0, |(number, _)| *number),
            indexed: name.indexed,
        };
        // The field's key and length take 6 bytes at most.
        bytes += name.encoded_len() + 6;
        cut = bytes > MAX_ANSWER_BYTES;
        if cut {
            break;
        }
        names.push(name);
    }
    wire::NamesAnswer {
        names,
        cut,
        receipt: Some(receipt),
    }
}

pub(crate) fn decode_names(
    mut answer: wire::NamesAnswer,
    request: &NamesRequest,
) -> Result<NamesPart, Malformed> {
    let damage = decode_damage(answer.receipt.as_mut())?;
    let names = answer.names.into_iter().map(|name| {
        let kind = match name.kind {
            0 => None,
            number => Some(decode_kind(number - 1)?),
        };
        let scope = match name.scope {
            0 => None,
            number => {
                let known = SCOPES.iter().find(|(scope, _)| *scope == number);
                Some(known.ok_or_else(malformed("scope"))?.1)
            }
        };
        Ok(Name {
            name: name.name,
            kind,
            scope,
            indexed: name.indexed,
        })
    });
    Ok(NamesPart {
        cut: answer.cut,
        answer: NamesAnswer {
            names: names.collect::<Result<_, _>>()?,
            receipt: decode_receipt(answer.receipt, request.from, request.to)?,
        },
        damage,
    })
}

fn decode_kind(number: u32) -> Result<SpanKind, Malformed> {
    let number = i32::try_from(number).ok().filter(|number| *number <= 5);
    number
        .map(SpanKind::from_wire)
        .ok_or_else(malformed("kind"))
}
