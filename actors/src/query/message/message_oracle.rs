//! What must hold of questions and answers between nodes whatever a peer sends: they are refused, or read as they would
//! be sent again. Beside the tests, the fuzz target `peer_message` uses this.

use prost::Message;
use spandrel_model::ids::{TenantId, UnixNanos};
use spandrel_model::limits::{MAX_MATCHED_SPANS, MAX_SEARCH_LIMIT};
use spandrel_model::search::{NamesKind, NamesRequest, Receipt, SearchFilter};

use crate::limits::{MAX_MISSING_REASON_BYTES, MAX_PEER_MISSING_PARTS, MAX_PEER_NAMES};
use crate::query::message::{
    decode_decision, decode_names, decode_names_request, decode_part, decode_refusal,
    decode_request, decode_search, decode_trace, decode_trace_id, encode_decision, encode_names,
    encode_names_request, encode_part, encode_refusal, encode_request, encode_search, encode_trace,
};
use crate::query::part::NodePart;
use crate::wire::{self, QueryAnswer, QueryRequest, query_answer::Answer, query_request::Question};

/// How many the cluster has.
const SHARDS: u16 = 64;
const TIMEOUT_MS: u64 = 7;
/// Answers of fewer bytes are not cut when they are sent again.
const WHOLE_BYTES: usize = 128 << 10;

/// Everything that is done with the bytes of a peer, by either side.
pub(crate) fn check_any(bytes: &[u8]) {
    if let Ok(request) = QueryRequest::decode(bytes)
        && let Some(question) = request.question
    {
        check_question(question);
    }
    if let Ok(answer) = QueryAnswer::decode(bytes)
        && let Some(answer) = answer.answer
        && bytes.len() <= WHOLE_BYTES
    {
        check_answer(answer);
    }
}

fn check_question(question: Question) {
    match question {
        Question::Search(question) => check_search_question(question),
        Question::Names(question) => check_names_question(question),
        Question::Open(question) => {
            if let Ok(part) = decode_part(question.part, SHARDS) {
                check_part(&part);
            }
            if let Ok(trace_id) = decode_trace_id(&question.trace_id) {
                assert_eq!(trace_id.0[..], question.trace_id[..]);
            }
        }
        _ => {}
    }
}

fn check_part(part: &NodePart) {
    assert!(!part.is_empty());
    assert!(part.live.without(&part.stored).is_empty());
    assert!(part.stored.iter().all(|shard| shard.0 < SHARDS));
    let again = decode_part(Some(encode_part(part)), SHARDS);
    assert_eq!(again.as_ref(), Ok(part));
}

fn check_search_question(question: wire::SearchQuestion) {
    let decode = |question| decode_request(question, TenantId::default(), SHARDS, TIMEOUT_MS);
    if let Ok((request, part)) = decode(question) {
        check_part(&part);
        assert!((1..=MAX_SEARCH_LIMIT).contains(&request.limit));
        let again = decode(encode_request(&request, &part));
        assert_eq!(again, Ok((request, part)));
    }
}

fn check_names_question(question: wire::NamesQuestion) {
    let decode = |question| decode_names_request(question, TenantId::default(), SHARDS);
    if let Ok((request, part)) = decode(question) {
        check_part(&part);
        assert!(request.limit <= MAX_PEER_NAMES);
        let again = decode(encode_names_request(&request, &part));
        assert_eq!(again, Ok((request, part)));
    }
}

fn check_answer(answer: Answer) {
    match answer {
        Answer::Refused(refusal) => {
            let error = decode_refusal(&refusal);
            assert!(error.message.len() <= MAX_MISSING_REASON_BYTES);
            assert_eq!(decode_refusal(&encode_refusal(&error)), error);
        }
        Answer::Search(answer) => check_search(answer),
        Answer::Names(answer) => check_names(answer),
        Answer::Trace(answer) => {
            if let Ok(trace) = decode_trace(answer) {
                let encoded = encode_trace(trace);
                let again = decode_trace(encoded.clone()).map(encode_trace);
                assert_eq!(again, Ok(encoded));
            }
        }
        Answer::Decision(decision) => {
            if let Ok(decision) = decode_decision(&decision) {
                assert!((0.0..=1.0).contains(&decision.probability));
                let again = decode_decision(&encode_decision(&decision));
                assert_eq!(again, Ok(decision));
            }
        }
        _ => {}
    }
}

fn check_search(answer: wire::SearchAnswer) {
    let filter = SearchFilter {
        from: UnixNanos(1),
        to: UnixNanos(2),
        ..SearchFilter::default()
    };
    if let Ok(part) = decode_search(answer, &filter) {
        let (answer, reached, damage) = (part.answer.clone(), part.reached, part.damage.clone());
        check_receipt(&answer.receipt);
        for found in &answer.traces {
            assert!(found.matched_spans.len() <= MAX_MATCHED_SPANS);
            assert!(found.earliest <= found.start);
        }
        let again = decode_search(encode_search(part), &filter).unwrap();
        assert_eq!(
            (again.answer, again.reached, again.damage),
            (answer, reached, damage)
        );
    }
}

fn check_names(answer: wire::NamesAnswer) {
    let request = NamesRequest {
        tenant: TenantId::default(),
        kind: NamesKind::Tags,
        from: UnixNanos(1),
        to: UnixNanos(2),
        limit: 1,
        prefix: String::new(),
    };
    if let Ok(part) = decode_names(answer, &request) {
        check_receipt(&part.answer.receipt);
        let (answer, damage) = (part.answer.clone(), part.damage.clone());
        let again = decode_names(encode_names(part), &request).unwrap();
        assert_eq!((again.answer, again.damage), (answer, damage));
    }
}

fn check_receipt(receipt: &Receipt) {
    assert_eq!((receipt.from, receipt.to), (UnixNanos(1), UnixNanos(2)));
    assert_eq!(receipt.complete, receipt.missing.is_empty());
    assert!(receipt.missing.len() <= MAX_PEER_MISSING_PARTS);
    for missing in &receipt.missing {
        assert!(missing.reason.len() <= MAX_MISSING_REASON_BYTES);
    }
}
