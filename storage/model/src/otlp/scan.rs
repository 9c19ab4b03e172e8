//! The scan of an export request: from its bytes to a batch of span headers.

use std::borrow::Cow;

use bytes::Bytes;
use smallvec::SmallVec;
use xxhash_rust::xxh3::xxh3_64;

use super::number;
use super::report::{ChangeReason, ChangedSpans, InvalidRequest, RejectReason, RejectedSpans};
use super::rewrite::{Layout, RESOURCE, SCOPE, SPAN, rewrite};
use super::rules::ScanRules;
use super::walk::{WalkedContext, WalkedSpan, Walker};
use super::wire::{Reader, WireFault};
use crate::batch::{Attribute, Context, Run, Slice, SpanBatch, SpanHeader};
use crate::ids::{TenantId, UnixNanos};
use crate::limits::{MAX_SPAN_BYTES, MAX_TIME_AHEAD_NANOS, MIN_TIME_NANOS};

/// What a scan found.
#[derive(Debug, Clone)]
pub struct Scanned {
    /// The spans that were taken.
    pub batch: SpanBatch,
    /// Those that were not, by reason.
    pub rejected: RejectedSpans,
    /// What was changed on those that were taken, and on their resources and scopes.
    pub changed: ChangedSpans,
}

/// Scans an `ExportTraceServiceRequest` (`TracesData` has the same wire form) without decoding it.
///
/// Spans that are bad in themselves are left out and counted; the rest is taken.
///
/// # Errors
/// When the bytes are no such message, down to resources and scopes, or when the buffer would reach 4 GiB.
pub fn scan_request(
    request: Bytes,
    tenant: TenantId,
    received_at: UnixNanos,
    rules: &ScanRules,
) -> Result<Scanned, InvalidRequest> {
    check_size(request.len())?;
    let mut scan = Scan::new(rules, received_at, request.len());
    scan.request(Reader::new(&request, 0))?;
    let buffer = if scan.appended.is_empty() {
        request
    } else {
        check_size(request.len().saturating_add(scan.appended.len()))?;
        Bytes::from([request.as_ref(), &scan.appended].concat())
    };
    Ok(Scanned {
        batch: SpanBatch {
            tenant,
            received_at,
            buffer,
            contexts: scan.contexts,
            spans: scan.spans,
            attributes: scan.attributes,
        },
        rejected: scan.rejected,
        changed: scan.changed,
    })
}

/// Refuses buffers in which an offset would not fit [`Slice`].
pub(super) fn check_size(len: usize) -> Result<(), InvalidRequest> {
    match u32::try_from(len) {
        Ok(_) => Ok(()),
        Err(_) => Err(InvalidRequest::new(
            "request",
            format_args!("{len} bytes, the limit is {} bytes", u32::MAX),
        )),
    }
}

/// Brings the header's times into reason, so that one wrong clock cannot spoil decisions and the order of search.
pub(super) fn normalise_times(
    header: &mut SpanHeader,
    received_at: UnixNanos,
) -> Option<ChangeReason> {
    let latest = received_at.plus(MAX_TIME_AHEAD_NANOS);
    let absurd = |time: UnixNanos| time.0 < MIN_TIME_NANOS || time > latest;
    if absurd(header.start) {
        header.start = received_at;
        if absurd(header.end) {
            header.end = received_at;
        }
        header.end = header.end.max(header.start);
        Some(ChangeReason::TimeClamped)
    } else if header.end > latest {
        header.end = received_at.max(header.start);
        Some(ChangeReason::TimeClamped)
    } else if header.end < header.start {
        header.end = header.start;
        Some(ChangeReason::EndBeforeStart)
    } else {
        None
    }
}

/// The parts of a message that occurs more than once; nearly always one.
type Parts<'a> = SmallVec<[Reader<'a>; 1]>;

/// Either of the two messages of a context.
#[derive(Clone, Copy)]
enum Kind {
    Resource,
    Scope,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Resource => "Resource",
            Self::Scope => "InstrumentationScope",
        }
    }

    fn layout(self) -> &'static Layout {
        match self {
            Self::Resource => &RESOURCE,
            Self::Scope => &SCOPE,
        }
    }

    fn walk(
        self,
        walker: Walker<'_>,
        message: Reader<'_>,
        attributes: &mut Vec<Attribute>,
    ) -> Result<WalkedContext, WireFault> {
        match self {
            Self::Resource => walker.resource(message, attributes),
            Self::Scope => walker.scope(message),
        }
    }
}

/// A scan under way.
///
/// Invariant: `appended` follows the `request_len` bytes of the request in the final buffer.
struct Scan<'r> {
    rules: &'r ScanRules,
    walker: Walker<'r>,
    received_at: UnixNanos,
    request_len: usize,
    appended: Vec<u8>,
    contexts: Vec<Context>,
    spans: Vec<SpanHeader>,
    attributes: Vec<Attribute>,
    rejected: RejectedSpans,
    changed: ChangedSpans,
}

impl<'r> Scan<'r> {
    fn new(rules: &'r ScanRules, received_at: UnixNanos, request_len: usize) -> Self {
        // About right for usual spans (900 bytes on the wire); a few larger ones only leave room unused.
        let expected_spans = (request_len / 700).min(4_096);
        Self {
            rules,
            walker: rules.walker(),
            received_at,
            request_len,
            appended: Vec::new(),
            contexts: Vec::new(),
            spans: Vec::with_capacity(expected_spans),
            attributes: Vec::with_capacity(expected_spans),
            rejected: RejectedSpans::default(),
            changed: ChangedSpans::default(),
        }
    }

    fn request(&mut self, mut message: Reader<'_>) -> Result<(), InvalidRequest> {
        let fault = InvalidRequest::within("ExportTraceServiceRequest");
        while !message.is_empty() {
            if let (number::RESOURCE_SPANS, field) = message.field().map_err(&fault)? {
                self.resource_spans(field.bytes().map_err(&fault)?)?;
            }
        }
        Ok(())
    }

    fn resource_spans(&mut self, message: Reader<'_>) -> Result<(), InvalidRequest> {
        let spans_before = self.spans.len();
        let attributes_before = self.attributes.len();
        let fault = InvalidRequest::within("ResourceSpans");
        // Fields come in any order, so the resource is looked for before the spans.
        let (parts, schema_url) = context_of(message).map_err(&fault)?;
        let (resource, walked) = self.context_message(Kind::Resource, &parts)?;
        let context = Context {
            resource,
            resource_schema_url: schema_url,
            service: walked.service,
            attributes: self.run_since(attributes_before),
            ..Context::default()
        };
        let mut rest = message;
        while !rest.is_empty() {
            if let (number::CHILDREN, field) = rest.field().map_err(&fault)? {
                self.scope_spans(field.bytes().map_err(&fault)?, context, walked.fault)?;
            }
        }
        if self.spans.len() == spans_before {
            self.attributes.truncate(attributes_before);
        }
        Ok(())
    }

    fn scope_spans(
        &mut self,
        message: Reader<'_>,
        context: Context,
        resource_fault: Option<RejectReason>,
    ) -> Result<(), InvalidRequest> {
        let fault = InvalidRequest::within("ScopeSpans");
        let (parts, schema_url) = context_of(message).map_err(&fault)?;
        let (scope, walked) = self.context_message(Kind::Scope, &parts)?;
        let context = Context {
            scope,
            scope_schema_url: schema_url,
            ..context
        };
        let beside = context.stored_bytes();
        // A context is stored with its first span: empty scopes cost two bytes to send and must cost us nothing.
        let mut number = None;
        let mut rest = message;
        while !rest.is_empty() {
            let (number::CHILDREN, field) = rest.field().map_err(&fault)? else {
                continue;
            };
            let span = field.bytes().map_err(&fault)?;
            let taken = match resource_fault.or(walked.fault) {
                Some(reason) => Err(reason),
                None => self.span(span, beside),
            };
            match taken {
                Err(reason) => self.rejected.add(reason, 1),
                Ok(header) => {
                    let number = *number.get_or_insert_with(|| {
                        self.contexts.push(context);
                        // Fits: each context has a span of its own, and a request has less than 2^32 bytes.
                        u32::try_from(self.contexts.len() - 1).unwrap_or(u32::MAX)
                    });
                    self.spans.push(SpanHeader {
                        context: number,
                        ..header
                    });
                }
            }
        }
        Ok(())
    }

    /// Walks a resource or scope and makes it one message in the buffer.
    fn context_message(
        &mut self,
        kind: Kind,
        parts: &Parts<'_>,
    ) -> Result<(Slice, WalkedContext), InvalidRequest> {
        let fault = InvalidRequest::within(kind.name());
        let attributes_before = self.attributes.len();
        let (mut message, mut offset) = match parts.as_slice() {
            [] => return Ok((Slice::default(), WalkedContext::default())),
            [part] => (Cow::Borrowed(part.rest()), part.slice().offset as usize),
            // Protobuf merges repeated messages, and the merge of two is the concatenation of their bytes, if each is
            // a message of its own: a field that is cut off would go on in the next part.
            parts => {
                for part in parts {
                    kind.walk(self.walker, *part, &mut self.attributes)
                        .map_err(&fault)?;
                }
                self.attributes.truncate(attributes_before);
                let parts: Vec<&[u8]> = parts.iter().map(Reader::rest).collect();
                (Cow::Owned(parts.concat()), self.end_of_buffer())
            }
        };
        let mut walked = kind
            .walk(
                self.walker,
                Reader::new(&message, offset),
                &mut self.attributes,
            )
            .map_err(&fault)?;
        let mut changes = ChangedSpans::default();
        // What is nested too deep cannot be rewritten; nothing under it is taken anyway.
        if walked.rewrite && walked.fault != Some(RejectReason::NestedTooDeep) {
            let rewritten =
                rewrite(&message, kind.layout(), self.rules.policy()).map_err(&fault)?;
            if let Some(rewritten) = rewritten {
                changes = rewritten.changes;
                message = Cow::Owned(rewritten.bytes);
                offset = self.end_of_buffer();
            }
            self.attributes.truncate(attributes_before);
            walked = kind
                .walk(
                    self.rules.walker_of_rewritten(),
                    Reader::new(&message, offset),
                    &mut self.attributes,
                )
                .map_err(&fault)?;
        }
        if walked.fault.is_some() {
            return Ok((Slice::default(), walked));
        }
        self.changed.merge(&changes);
        let slice = Reader::new(&message, offset).slice();
        if let Cow::Owned(bytes) = &message {
            self.appended.extend_from_slice(bytes);
        }
        Ok((slice, walked))
    }

    /// Takes one span; without its context, which has this many bytes.
    #[inline]
    fn span(&mut self, message: Reader<'_>, beside: usize) -> Result<SpanHeader, RejectReason> {
        let attributes_before = self.attributes.len();
        match self.walker.span(message, &mut self.attributes) {
            Ok(WalkedSpan {
                header,
                rewrite: false,
            }) => self.finished(header, message.rest(), attributes_before, beside),
            Ok(_) => self.changed_span(message, attributes_before, beside),
            Err(reason) => {
                self.attributes.truncate(attributes_before);
                Err(reason)
            }
        }
    }

    #[cold]
    fn changed_span(
        &mut self,
        message: Reader<'_>,
        attributes_before: usize,
        beside: usize,
    ) -> Result<SpanHeader, RejectReason> {
        self.attributes.truncate(attributes_before);
        let rewritten = rewrite(message.rest(), &SPAN, self.rules.policy())?;
        let final_message = match &rewritten {
            Some(rewritten) => Reader::new(&rewritten.bytes, self.end_of_buffer()),
            None => message,
        };
        let walker = self.rules.walker_of_rewritten();
        match walker.span(final_message, &mut self.attributes) {
            Err(reason) => {
                self.attributes.truncate(attributes_before);
                Err(reason)
            }
            Ok(walked) => {
                let span = final_message.rest();
                let header = self.finished(walked.header, span, attributes_before, beside)?;
                if let Some(rewritten) = &rewritten {
                    self.changed.merge(&rewritten.changes);
                    self.appended.extend_from_slice(&rewritten.bytes);
                }
                Ok(header)
            }
        }
    }

    fn finished(
        &mut self,
        mut header: SpanHeader,
        span: &[u8],
        attributes_before: usize,
        beside: usize,
    ) -> Result<SpanHeader, RejectReason> {
        if span.len() + beside > MAX_SPAN_BYTES {
            self.attributes.truncate(attributes_before);
            return Err(RejectReason::SpanTooLarge);
        }
        if let Some(reason) = normalise_times(&mut header, self.received_at) {
            self.changed.add(reason, 1);
        }
        header.hash = xxh3_64(span);
        header.attributes = self.run_since(attributes_before);
        Ok(header)
    }

    fn run_since(&self, start: usize) -> Run {
        run(start, self.attributes.len())
    }

    fn end_of_buffer(&self) -> usize {
        self.request_len + self.appended.len()
    }
}

/// A run of attributes. Their number fits: each took more than a byte of a buffer of less than 4 GiB.
pub(super) fn run(start: usize, end: usize) -> Run {
    Run {
        start: u32::try_from(start).unwrap_or(u32::MAX),
        end: u32::try_from(end).unwrap_or(u32::MAX),
    }
}

/// The resource (scope) and the schema url of a `ResourceSpans` (`ScopeSpans`): their field numbers are the same.
fn context_of(mut message: Reader<'_>) -> Result<(Parts<'_>, Slice), WireFault> {
    let mut parts = Parts::new();
    let mut schema_url = Slice::default();
    while !message.is_empty() {
        match message.field()? {
            (number::CONTEXT, field) => parts.push(field.bytes()?),
            (number::CHILDREN, field) => drop(field.bytes()?),
            (number::SCHEMA_URL, field) => schema_url = field.bytes()?.slice(),
            _ => {}
        }
    }
    Ok((parts, schema_url))
}
