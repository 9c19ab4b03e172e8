//! Spans copied out of frames and blocks: one buffer for the bytes, each context once.

use bytes::Bytes;
use foldhash::fast::FixedState;
use hashbrown::HashMap;
use spandrel_model::batch::{Context, Slice, SpanBatch};
use spandrel_model::ids::{TenantId, UnixNanos};
use spandrel_model::otlp::{RawContext, rescan};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::settings::Epoch;

/// The spans of one trace within a [`SpanArena`].
#[derive(Debug, Default)]
pub(crate) struct SpanList(Vec<(u32, Slice)>);

impl SpanList {
    /// Spans in the list.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// True without a span.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Bytes of spans and their contexts.
///
/// Invariant: the contexts and spans of its lists lie inside `buffer`.
#[derive(Debug, Default)]
pub(crate) struct SpanArena {
    buffer: Vec<u8>,
    contexts: Vec<Context>,
    numbers: HashMap<u64, Vec<u32>, FixedState>,
    /// The context that was pushed last, by where its bytes lay: spans of one context come together.
    last: Option<([usize; 2], u32)>,
}

impl SpanArena {
    /// Forgets all spans and keeps the memory: every list of it is invalid then.
    pub(crate) fn clear(&mut self) {
        self.buffer.clear();
        self.contexts.clear();
        self.numbers.clear();
        self.last = None;
    }

    /// Makes room for so many bytes at once: grown step by step, the buffer would end up to twice as large.
    pub(crate) fn reserve(&mut self, bytes: usize) {
        self.buffer.reserve_exact(bytes);
    }

    fn store(&mut self, bytes: &[u8]) -> Slice {
        // A job holds some megabytes; what does not fit 32 bits is left out by the empty slice.
        let place = (u32::try_from(self.buffer.len()), u32::try_from(bytes.len()));
        let (Ok(offset), Ok(len)) = place else {
            return Slice::default();
        };
        self.buffer.extend_from_slice(bytes);
        Slice { offset, len }
    }

    /// Adds a span to a list.
    pub(crate) fn push(&mut self, list: &mut SpanList, context: &RawContext<'_>, span: &[u8]) {
        let number = self.context(context);
        let slice = self.store(span);
        list.0.push((number, slice));
    }

    fn context(&mut self, context: &RawContext<'_>) -> u32 {
        let place = [
            context.resource.as_ptr() as usize,
            context.scope.as_ptr() as usize,
        ];
        if let Some((known, number)) = self.last
            && known == place
            && self.is(number, context)
        {
            return number;
        }
        let parts = [
            context.resource,
            context.resource_schema_url,
            context.scope,
            context.scope_schema_url,
        ];
        let hash = parts
            .iter()
            .fold(0, |seed, part| xxh3_64_with_seed(part, seed));
        let known = self.numbers.get(&hash).into_iter().flatten();
        let known = known.copied().find(|number| self.is(*number, context));
        let number = known.unwrap_or_else(|| {
            let [resource, resource_schema_url, scope, scope_schema_url] =
                parts.map(|part| self.store(part));
            self.contexts.push(Context {
                resource,
                resource_schema_url,
                scope,
                scope_schema_url,
                ..Context::default()
            });
            let number = u32::try_from(self.contexts.len() - 1).unwrap_or(u32::MAX);
            self.numbers.entry(hash).or_default().push(number);
            number
        });
        self.last = Some((place, number));
        number
    }

    fn is(&self, number: u32, context: &RawContext<'_>) -> bool {
        self.raw(number).is_some_and(|known| known == *context)
    }

    fn raw(&self, number: u32) -> Option<RawContext<'_>> {
        let context = self.contexts.get(number as usize)?;
        Some(RawContext {
            resource: context.resource.of(&self.buffer),
            resource_schema_url: context.resource_schema_url.of(&self.buffer),
            scope: context.scope.of(&self.buffer),
            scope_schema_url: context.scope_schema_url.of(&self.buffer),
        })
    }

    /// The spans of a list with their contexts.
    pub(crate) fn iter<'a>(
        &'a self,
        list: &'a SpanList,
    ) -> impl Iterator<Item = (RawContext<'a>, &'a [u8])> {
        let spans = list.0.iter();
        spans.filter_map(|(number, span)| Some((self.raw(*number)?, span.of(&self.buffer))))
    }

    /// Bytes held.
    pub(crate) fn bytes(&self) -> usize {
        self.buffer.len()
    }

    /// Scans the spans of a list again, using up the arena.
    pub(crate) fn scan(
        self,
        list: SpanList,
        tenant: &TenantId,
        at: UnixNanos,
        epoch: &Epoch,
    ) -> Option<SpanBatch> {
        let interests = epoch.rules().interests();
        let buffer = Bytes::from(self.buffer);
        let spans = list.0.into_iter();
        rescan(buffer, tenant.clone(), at, self.contexts, spans, interests).ok()
    }
}
