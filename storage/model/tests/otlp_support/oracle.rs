//! What a scan must find, worked out with prost: structure by the lenient messages, limits on decoded spans.

use bytes::Bytes;
use opentelemetry_proto::tonic::trace::v1 as real;
use prost::Message;
use spandrel_model::batch::{Attribute, AttributeValue, SpanBatch, SpanKind, StatusCode};
use spandrel_model::ids::{TenantId, UnixNanos};
use spandrel_model::limits;
use spandrel_model::otlp::{
    ChangeReason, InvalidRequest, RejectReason, Scanned, rescan, scan_request,
};

use super::lenient::{self, KeyValue, Value};
use super::{RECEIVED_AT, rules};

/// Scans with the rules of the tests.
pub fn scan(request: &[u8]) -> Result<Scanned, InvalidRequest> {
    scan_request(
        Bytes::copy_from_slice(request),
        TenantId::default(),
        UnixNanos(RECEIVED_AT),
        &rules(),
    )
}

/// Scans and compares with prost.
pub fn check(request: &[u8]) {
    let scanned = scan(request);
    let decoded = lenient::Request::decode(request);
    let (scanned, decoded) = match (scanned, decoded) {
        (Ok(scanned), Ok(decoded)) => (scanned, decoded),
        (Err(_), Err(_)) => return,
        (Err(error), Ok(_)) if error.problem.contains("too deep") => return,
        (ours, theirs) => panic!(
            "scanner: {:?}, prost: {:?}, request {request:x?}",
            ours.err(),
            theirs.err()
        ),
    };
    check_invariants(&scanned.batch);
    check_rescan(&scanned.batch);
    if scanned.rejected.is_empty() {
        check_real(request);
    }
    if scanned.rejected.count(RejectReason::NestedTooDeep) > 0 {
        return;
    }
    if scanned.changed.count(ChangeReason::ValueTruncated) > 0 && has_entries(&decoded) {
        // Arrays and maps are cut by the bytes that they came with, which prost does not tell: tests of their own.
        return;
    }
    check_spans(&scanned, &decoded);
}

/// Whether an attribute is an array or a map.
fn has_entries(request: &lenient::Request) -> bool {
    let any = |attributes: &[KeyValue]| {
        attributes.iter().any(|attribute| {
            let value = attribute.value.as_ref();
            let value = value.and_then(|value| value.value.as_ref());
            matches!(value, Some(Value::Array(_) | Value::Map(_)))
        })
    };
    let of_span = |bytes: &Vec<u8>| {
        let Ok(span) = lenient::Span::decode(bytes.as_slice()) else {
            return false;
        };
        any(&span.attributes)
            || span.events.iter().any(|event| any(&event.attributes))
            || span.links.iter().any(|link| any(&link.attributes))
    };
    request.resource_spans.iter().any(|resource_spans| {
        let resource = resource_spans.resource.iter();
        let mut scopes = resource_spans.scope_spans.iter();
        resource
            .into_iter()
            .any(|resource| any(&resource.attributes))
            || scopes.any(|scope_spans| scope_spans.spans.iter().any(of_span))
    })
}

/// When no span was rejected, only text that nobody compares may keep prost from accepting.
fn check_real(request: &[u8]) {
    if let Err(error) = real::TracesData::decode(request) {
        assert!(error.to_string().contains("UTF-8"), "{error}");
    }
}

fn check_spans(scanned: &Scanned, decoded: &lenient::Request) {
    let batch = &scanned.batch;
    let mut taken = batch.spans.iter();
    let mut rejected = 0;
    for resource_spans in &decoded.resource_spans {
        let resource = resource_spans.resource.clone().unwrap_or_default();
        let resource = limited_resource(resource);
        for scope_spans in &resource_spans.scope_spans {
            for bytes in &scope_spans.spans {
                match expected(&resource, bytes) {
                    Err(reason) => {
                        rejected += 1;
                        assert!(scanned.rejected.count(reason) > 0, "{reason:?}");
                    }
                    Ok(span) => {
                        let header = taken.next().unwrap();
                        let context = batch.context(header);
                        let stored = lenient::Resource::decode(batch.bytes(context.resource));
                        let attributes = without_mark(stored.unwrap().attributes);
                        assert_eq!(encoded(attributes), encoded(resource.attributes.clone()));
                        assert_eq!(
                            batch.bytes(context.resource_schema_url),
                            resource_spans.schema_url
                        );
                        assert_eq!(
                            batch.bytes(context.scope_schema_url),
                            scope_spans.schema_url
                        );
                        assert_eq!(batch.bytes(context.service), service(&resource));
                        check_attributes(batch, context.attributes, &resource.attributes);
                        check_header(batch, header, &span);
                    }
                }
            }
        }
    }
    assert!(taken.next().is_none());
    assert_eq!(scanned.rejected.total(), rejected);
}

/// The span as it must be stored, without its mark.
fn expected(resource: &lenient::Resource, bytes: &[u8]) -> Result<lenient::Span, RejectReason> {
    let long = |text: &[u8]| text.len() > limits::MAX_NAME_BYTES;
    if long(service(resource)) {
        return Err(RejectReason::NameTooLong);
    }
    if !comparable(&resource.attributes) || std::str::from_utf8(service(resource)).is_err() {
        return Err(RejectReason::InvalidUtf8);
    }
    let span = lenient::Span::decode(bytes).map_err(|_| RejectReason::Malformed)?;
    let span = limited(span);
    let zero = |id: &[u8]| id.iter().all(|&byte| byte == 0);
    if span.trace_id.len() != 16 || zero(&span.trace_id) {
        return Err(RejectReason::InvalidTraceId);
    }
    if span.span_id.len() != 8 || zero(&span.span_id) {
        return Err(RejectReason::InvalidSpanId);
    }
    if !matches!(span.parent_span_id.len(), 0 | 8) {
        return Err(RejectReason::InvalidParentSpanId);
    }
    if long(&span.name) {
        return Err(RejectReason::NameTooLong);
    }
    let texts = [&span.name, &span.trace_state];
    if texts.iter().any(|text| std::str::from_utf8(text).is_err()) || !comparable(&span.attributes)
    {
        return Err(RejectReason::InvalidUtf8);
    }
    // About: what was rewritten is not written in the same way here.
    if span.encoded_len() + resource.encoded_len() > limits::MAX_SPAN_BYTES {
        return Err(RejectReason::SpanTooLarge);
    }
    Ok(span)
}

fn limited(mut span: lenient::Span) -> lenient::Span {
    if span.trace_id.len() == 8 {
        span.trace_id.splice(0..0, [0; 8]);
    }
    limit(&mut span.attributes, &mut span.dropped_attributes_count);
    let beyond = |len: usize, most: usize| u32::try_from(len.saturating_sub(most)).unwrap();
    let events = beyond(span.events.len(), limits::MAX_SPAN_EVENTS);
    span.dropped_events_count = span.dropped_events_count.saturating_add(events);
    span.events.truncate(limits::MAX_SPAN_EVENTS);
    let links = beyond(span.links.len(), limits::MAX_SPAN_LINKS);
    span.dropped_links_count = span.dropped_links_count.saturating_add(links);
    span.links.truncate(limits::MAX_SPAN_LINKS);
    for event in &mut span.events {
        limit(&mut event.attributes, &mut event.dropped_attributes_count);
    }
    for link in &mut span.links {
        limit(&mut link.attributes, &mut link.dropped_attributes_count);
    }
    span
}

fn limited_resource(mut resource: lenient::Resource) -> lenient::Resource {
    limit(
        &mut resource.attributes,
        &mut resource.dropped_attributes_count,
    );
    resource
}

/// Marks are compared by tests of their own.
fn without_mark(mut attributes: Vec<KeyValue>) -> Vec<KeyValue> {
    attributes.retain(|attribute| attribute.key != b"spandrel.changed");
    attributes
}

fn limit(attributes: &mut Vec<KeyValue>, dropped: &mut u32) {
    *attributes = without_mark(std::mem::take(attributes));
    let before = attributes.len();
    attributes.retain(|attribute| attribute.key.len() <= limits::MAX_ATTRIBUTE_KEY_BYTES);
    attributes.truncate(limits::MAX_SPAN_ATTRIBUTES);
    *dropped = dropped.saturating_add(u32::try_from(before - attributes.len()).unwrap());
    for attribute in attributes {
        let value = attribute
            .value
            .as_mut()
            .and_then(|value| value.value.as_mut());
        let most = limits::MAX_ATTRIBUTE_VALUE_BYTES;
        match value {
            Some(Value::Text(text)) if text.len() > most => {
                // At a character; text that is not UTF-8 has none within the length of one.
                let begins = |at: &usize| text[*at] & 0xc0 != 0x80;
                let end = (most - 3..=most).rev().find(begins).unwrap_or(most);
                text.truncate(end);
                attribute.key_strindex = 0;
            }
            Some(Value::Bytes(bytes)) if bytes.len() > most => {
                bytes.truncate(most);
                attribute.key_strindex = 0;
            }
            _ => {}
        }
    }
}

/// To be compared by bytes: doubles that are no number are not equal to themselves.
fn encoded(attributes: Vec<KeyValue>) -> Vec<u8> {
    let resource = lenient::Resource {
        attributes,
        ..lenient::Resource::default()
    };
    resource.encode_to_vec()
}

fn service(resource: &lenient::Resource) -> &[u8] {
    let texts = resource.attributes.iter().filter_map(|attribute| {
        match attribute.value.as_ref()?.value.as_ref()? {
            Value::Text(text) if attribute.key == b"service.name" => Some(text.as_slice()),
            _ => None,
        }
    });
    texts.into_iter().next().unwrap_or_default()
}

/// The attributes of interest, by key and scalar value.
fn of_interest(attributes: &[KeyValue]) -> Vec<(&str, &Value)> {
    attributes
        .iter()
        .filter_map(|attribute| {
            let key = std::str::from_utf8(&attribute.key).ok()?;
            rules().interests().number(key)?;
            let value = attribute.value.as_ref()?.value.as_ref()?;
            let scalar = matches!(
                value,
                Value::Text(_) | Value::Int(_) | Value::Double(_) | Value::Bool(_)
            );
            scalar.then_some((key, value))
        })
        .collect()
}

fn comparable(attributes: &[KeyValue]) -> bool {
    of_interest(attributes)
        .iter()
        .all(|(_, value)| match value {
            Value::Text(text) => std::str::from_utf8(text).is_ok(),
            _ => true,
        })
}

fn check_attributes(batch: &SpanBatch, run: spandrel_model::batch::Run, attributes: &[KeyValue]) {
    let expected = of_interest(attributes);
    let interests = rules();
    let found = batch.attributes(run);
    let found = found
        .iter()
        .filter(|found| &**interests.interests().key(found.key).unwrap() != "spandrel.changed");
    let found: Vec<&Attribute> = found.collect();
    assert_eq!(found.len(), expected.len());
    for (found, (key, value)) in found.iter().zip(expected) {
        assert_eq!(&**interests.interests().key(found.key).unwrap(), key);
        match (found.value, value) {
            (AttributeValue::Text(slice), Value::Text(text)) => {
                assert_eq!(batch.bytes(slice), text);
            }
            (AttributeValue::Int(found), Value::Int(value)) => assert_eq!(found, *value),
            (AttributeValue::Double(found), Value::Double(value)) => {
                assert_eq!(found.to_bits(), value.to_bits());
            }
            (AttributeValue::Bool(found), Value::Bool(value)) => assert_eq!(found, *value),
            (found, value) => panic!("{found:?} is not {value:?}"),
        }
    }
}

fn check_header(
    batch: &SpanBatch,
    header: &spandrel_model::batch::SpanHeader,
    span: &lenient::Span,
) {
    let bytes = batch.bytes(header.span);
    let mut stored = lenient::Span::decode(bytes).unwrap();
    stored.attributes = without_mark(stored.attributes);
    for event in &mut stored.events {
        event.attributes = without_mark(std::mem::take(&mut event.attributes));
    }
    for link in &mut stored.links {
        link.attributes = without_mark(std::mem::take(&mut link.attributes));
    }
    // By bytes, as `encoded`.
    assert!(stored.encode_to_vec() == span.encode_to_vec(), "{bytes:x?}");
    if let Ok(real) = real::Span::decode(bytes) {
        let lenient = lenient::Span::decode(bytes).unwrap();
        assert_eq!(real.encode_to_vec(), lenient.encode_to_vec());
    }
    assert_eq!(header.trace_id.0, span.trace_id.as_slice());
    assert_eq!(header.span_id.0, span.span_id.as_slice());
    match span.parent_span_id.as_slice() {
        [] => assert!(header.parent_span_id.is_zero()),
        parent => assert_eq!(header.parent_span_id.0, parent),
    }
    assert_eq!(batch.bytes(header.name), span.name);
    assert_eq!(batch.bytes(header.trace_state), span.trace_state);
    assert_eq!(header.kind, SpanKind::from_wire(span.kind));
    let code = span.status.as_ref().map_or(0, |status| status.code);
    assert_eq!(header.status, StatusCode::from_wire(code));
    assert_eq!(header.flags, span.flags);
    assert_eq!(header.hash, xxhash_rust::xxh3::xxh3_64(bytes));
    let sane = |time: u64| {
        (limits::MIN_TIME_NANOS..=RECEIVED_AT + limits::MAX_TIME_AHEAD_NANOS).contains(&time)
    };
    assert!(header.start <= header.end);
    if sane(span.start) && sane(span.end) && span.start <= span.end {
        assert_eq!((header.start.0, header.end.0), (span.start, span.end));
    } else {
        assert!(sane(header.start.0) && sane(header.end.0));
    }
    check_attributes(batch, header.attributes, &span.attributes);
}

fn check_invariants(batch: &SpanBatch) {
    let inside = |slice: spandrel_model::batch::Slice| {
        assert!(slice.offset as usize + slice.len as usize <= batch.buffer.len());
    };
    for context in &batch.contexts {
        inside(context.resource);
        inside(context.scope);
        inside(context.service);
        assert!(context.attributes.end as usize <= batch.attributes.len());
    }
    for span in &batch.spans {
        inside(span.span);
        inside(span.name);
        assert!(span.attributes.end as usize <= batch.attributes.len());
        assert!((span.context as usize) < batch.contexts.len());
        assert!(!span.span_id.is_zero());
    }
}

/// Replay means the same as the first scan.
fn check_rescan(batch: &SpanBatch) {
    let contexts = batch
        .contexts
        .iter()
        .map(|context| spandrel_model::batch::Context {
            service: Default::default(),
            attributes: Default::default(),
            ..*context
        })
        .collect();
    let replayed = rescan(
        batch.buffer.clone(),
        batch.tenant.clone(),
        batch.received_at,
        contexts,
        batch.spans.iter().map(|span| (span.context, span.span)),
        rules().interests(),
    )
    .unwrap();
    assert_eq!(replayed.spans.len(), batch.spans.len());
    for (replayed_span, span) in replayed.spans.iter().zip(&batch.spans) {
        same_attributes(
            replayed.attributes(replayed_span.attributes),
            batch.attributes(span.attributes),
        );
        let mut comparable = *replayed_span;
        comparable.attributes = span.attributes;
        assert_eq!(&comparable, span);
    }
    for (replayed_context, context) in replayed.contexts.iter().zip(&batch.contexts) {
        same_attributes(
            replayed.attributes(replayed_context.attributes),
            batch.attributes(context.attributes),
        );
        let mut comparable = *replayed_context;
        comparable.attributes = context.attributes;
        assert_eq!(&comparable, context);
    }
}

/// Compared as text: doubles that are no number are not equal to themselves.
fn same_attributes(ours: &[Attribute], theirs: &[Attribute]) {
    assert_eq!(format!("{ours:?}"), format!("{theirs:?}"));
}
