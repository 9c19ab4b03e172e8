//! Which spans of a page meet a condition, seen from the columns alone.

use std::ops::Range;

use memchr::memmem::Finder;
use spandrel_model::batch::StatusCode;
use spandrel_model::otlp::{RawValue, visit_attributes, visit_resource_attributes};
use spandrel_model::search::{SpanCondition, TagCondition};

use super::compare::{RawSpan, Wanted, status_from_varint};
use super::context::{ContextHash, service_of};
use super::error::{PageError, corrupt};
use super::field::{self, Step, ValueKind};
use super::reader::{PageReader, Rows};
use super::values::{Satisfying, any_entry};
use super::wire::Wire;

/// A [`SpanCondition`] made ready for pages.
#[derive(Debug, Clone)]
pub struct PageCondition<'a> {
    condition: &'a SpanCondition,
    tags: Vec<WantedTag<'a>>,
}

/// An attribute that a span or its resource must have.
#[derive(Debug, Clone)]
struct WantedTag<'a> {
    key: &'a str,
    value: Wanted<'a>,
    key_bytes: Finder<'a>,
    /// What the bytes of a span with the value hold; `None` when a number or a boolean may be meant.
    value_bytes: Option<Finder<'a>>,
}

impl<'a> WantedTag<'a> {
    fn new(tag: &'a TagCondition) -> Self {
        let value = Wanted::new(&tag.value);
        Self {
            key: &tag.key,
            key_bytes: Finder::new(&tag.key),
            value_bytes: value.is_text().then(|| Finder::new(&tag.value)),
            value,
        }
    }

    /// False when the message certainly lacks the attribute: a search for bytes, a tenth of the price of a walk over
    /// the attributes.
    fn may_be_in(&self, message: &[u8]) -> bool {
        self.key_bytes.find(message).is_some()
            && self
                .value_bytes
                .as_ref()
                .is_none_or(|value| value.find(message).is_some())
    }
}

/// What a resource alone says about a condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContextMatch {
    /// The service is the wanted one, or none is wanted.
    service: bool,
    /// For each tag whether an attribute of the resource meets it.
    tags: Vec<bool>,
}

impl<'a> PageCondition<'a> {
    /// Parses the condition's values once.
    #[must_use]
    pub fn new(condition: &'a SpanCondition) -> Self {
        let tags = condition.tags.iter();
        Self {
            condition,
            tags: tags.map(WantedTag::new).collect(),
        }
    }

    /// Asks a `Resource` message.
    #[must_use]
    pub fn match_resource(&self, resource: &[u8]) -> ContextMatch {
        let mut tags = vec![false; self.tags.len()];
        if !tags.is_empty() {
            // Attributes before a fault count: bytes that passed the scanner have none.
            let _ = visit_resource_attributes(resource, &mut |key, value| {
                self.mark_tags(&mut tags, key, value);
            });
        }
        let service = self.condition.service.as_deref();
        ContextMatch {
            service: service.is_none_or(|service| service_of(resource) == service),
            tags,
        }
    }

    /// Asks a `Span` message together with what its resource said.
    #[must_use]
    pub fn match_span(&self, span: &[u8], context: &ContextMatch) -> bool {
        let lacks =
            |(tag, in_resource): (&WantedTag<'_>, &bool)| !*in_resource && !tag.may_be_in(span);
        if !context.service || self.tags.iter().zip(&context.tags).any(lacks) {
            return false;
        }
        let raw = RawSpan::read(span);
        let operation = self.condition.operation.as_deref();
        let header = operation.is_none_or(|operation| operation.as_bytes() == raw.name)
            && self
                .condition
                .status
                .is_none_or(|status| status == raw.status);
        if !header {
            return false;
        }
        let mut tags = context.tags.clone();
        if tags.contains(&false) {
            let _ = visit_attributes(span, &mut |key, value| {
                self.mark_tags(&mut tags, key, value)
            });
        }
        !tags.contains(&false)
    }

    /// The answer for a resource of which nothing is asked.
    fn no_match(&self) -> ContextMatch {
        ContextMatch {
            service: false,
            tags: vec![false; self.tags.len()],
        }
    }

    fn mark_tags(&self, tags: &mut [bool], key: &str, value: RawValue<'_>) {
        for (found, wanted) in tags.iter_mut().zip(&self.tags) {
            *found |= wanted.key == key && wanted.value.is(value);
        }
    }
}

impl PageReader<'_> {
    /// The rows whose spans meet `condition`, ascending. `resource` says what a resource of the page means for it.
    ///
    /// # Errors
    /// When columns that are needed are corrupt or cannot be read, or `resource` fails.
    pub fn matching_rows(
        &mut self,
        condition: &PageCondition<'_>,
        resource: &mut dyn FnMut(ContextHash) -> Result<ContextMatch, PageError>,
    ) -> Result<Vec<u32>, PageError> {
        let contexts = self
            .context_hashes()?
            .into_iter()
            .map(resource)
            .collect::<Result<Vec<_>, _>>()?;
        let rows = vec![true; self.span_count() as usize];
        self.narrow(condition, &contexts, rows)
    }

    /// As [`Self::matching_rows`], of some rows alone; only their resources are asked for.
    ///
    /// # Errors
    /// As [`Self::matching_rows`].
    pub fn matching_rows_within(
        &mut self,
        condition: &PageCondition<'_>,
        within: &[Range<u32>],
        resource: &mut dyn FnMut(ContextHash) -> Result<ContextMatch, PageError>,
    ) -> Result<Vec<u32>, PageError> {
        let mut rows = vec![false; self.span_count() as usize];
        for range in within {
            let range = range.start as usize..range.end as usize;
            let range = rows.get_mut(range).ok_or_else(|| corrupt("rows"))?;
            range.fill(true);
        }
        let hashes = self.context_hashes()?;
        let mut used = vec![false; hashes.len()];
        for (_, &context) in rows
            .iter()
            .zip(&self.rows()?.row_contexts)
            .filter(|(row, _)| **row)
        {
            if let Some(used) = used.get_mut(context as usize) {
                *used = true;
            }
        }
        let contexts = hashes.into_iter().zip(used);
        let contexts = contexts.map(|(hash, used)| match used {
            true => resource(hash),
            false => Ok(condition.no_match()),
        });
        let contexts = contexts.collect::<Result<Vec<_>, _>>()?;
        self.narrow(condition, &contexts, rows)
    }

    /// Those of `rows` whose spans meet the condition, ascending.
    fn narrow(
        &mut self,
        condition: &PageCondition<'_>,
        contexts: &[ContextMatch],
        mut rows: Vec<bool>,
    ) -> Result<Vec<u32>, PageError> {
        if !self.may_match(condition, contexts)? {
            return Ok(Vec::new());
        }
        let whole = (self.head.place(field::RAW).is_some()).then(|| rows.clone());
        if condition.condition.service.is_some() {
            let service = |context: &ContextMatch| context.service;
            let held = self.rows_of_contexts(contexts, &service)?;
            and(&mut rows, &held);
        }
        if let Some(operation) = &condition.condition.operation {
            let wanted = |name: &[u8]| name == operation.as_bytes();
            let held = self.rows_with_value(field::NAME, &wanted, operation.is_empty())?;
            and(&mut rows, &held);
        }
        if let Some(status) = condition.condition.status {
            let held = self.rows_with_status(status)?;
            and(&mut rows, &held);
        }
        for (index, tag) in condition.tags.iter().enumerate() {
            let resource_has =
                |context: &ContextMatch| context.tags.get(index).copied().unwrap_or(false);
            let mut held = self.rows_of_contexts(contexts, &resource_has)?;
            self.mark_attribute(tag, &mut held)?;
            and(&mut rows, &held);
        }
        if let Some(whole) = whole {
            self.ask_raw_rows(condition, contexts, &whole, &mut rows)?;
        }
        let numbered = rows.iter().zip(0u32..);
        Ok(numbered
            .filter_map(|(&holds, row)| holds.then_some(row))
            .collect())
    }

    /// False when no span of the page meets the condition, as resources, keys and dictionaries tell it without any
    /// row: one column group is unpacked where a key is unknown, the key's own one besides where its values are not.
    fn may_match(
        &mut self,
        condition: &PageCondition<'_>,
        contexts: &[ContextMatch],
    ) -> Result<bool, PageError> {
        if self.head.place(field::RAW).is_some() {
            return Ok(true);
        }
        if !contexts.iter().any(|context| context.service) {
            return Ok(false);
        }
        // What no resource has must be in a column: keys first, since they are in the directory.
        let mut columns: Vec<(Vec<(Step, ValueKind)>, &Wanted<'_>)> = Vec::new();
        for (index, tag) in condition.tags.iter().enumerate() {
            let has = |context: &ContextMatch| context.tags.get(index) == Some(&true);
            if !contexts.iter().any(has) {
                columns.push((self.columns_of(tag), &tag.value));
            }
        }
        if columns.iter().any(|(columns, _)| columns.is_empty()) {
            return Ok(false);
        }
        for (columns, wanted) in columns {
            let mut any = false;
            for (step, kind) in columns {
                any = any || self.has_entry(step, &|stored| wanted.is_stored(kind, stored))?;
            }
            if !any {
                return Ok(false);
            }
        }
        match &condition.condition.operation {
            Some(operation) if !operation.is_empty() && self.head.place(field::NAME).is_some() => {
                self.has_entry(field::NAME, &|name| name == operation.as_bytes())
            }
            _ => Ok(true),
        }
    }

    /// Whether one of the values of a column satisfies; needs neither the rows nor their number.
    fn has_entry(
        &mut self,
        step: Step,
        satisfies: &dyn Fn(&[u8]) -> bool,
    ) -> Result<bool, PageError> {
        let column = self.column(step)?;
        any_entry(&column, satisfies).ok_or_else(|| corrupt("values column"))
    }

    /// The columns of a key that may hold a value.
    fn columns_of(&self, tag: &WantedTag<'_>) -> Vec<(Step, ValueKind)> {
        self.attribute_columns()
            .filter(|column| column.key == tag.key.as_bytes() && tag.value.can_be(column.kind))
            .map(|column| (column.step, column.kind))
            .collect()
    }

    fn rows_of_contexts(
        &mut self,
        contexts: &[ContextMatch],
        holds: &dyn Fn(&ContextMatch) -> bool,
    ) -> Result<Vec<bool>, PageError> {
        let holds: Vec<bool> = contexts.iter().map(holds).collect();
        let rows = self.rows()?;
        if !holds.contains(&true) {
            return Ok(vec![false; rows.row_contexts.len()]);
        }
        let contexts = rows.row_contexts.iter();
        Ok(contexts
            .map(|&number| holds.get(number as usize).copied().unwrap_or(false))
            .collect())
    }

    /// Rows whose value in the column of `step` satisfies; `absent` is the answer for rows without a value.
    fn rows_with_value(
        &mut self,
        step: Step,
        satisfies: &dyn Fn(&[u8]) -> bool,
        absent: bool,
    ) -> Result<Vec<bool>, PageError> {
        let presence = Presence::of(self.rows()?, step);
        let mut held: Vec<bool> = match absent {
            true => presence.absent(self.rows()?),
            false => vec![false; self.span_count() as usize],
        };
        if presence.values > 0 {
            let values = self.values(step, presence.values)?;
            if let Some(satisfying) = values.satisfying(satisfies) {
                presence.mark(self.rows()?, &satisfying, &mut held);
            }
        }
        Ok(held)
    }

    fn rows_with_status(&mut self, status: StatusCode) -> Result<Vec<bool>, PageError> {
        let wanted = |code: &[u8]| {
            let code = Wire::new(code).varint().unwrap_or(0);
            status_from_varint(code) == status
        };
        self.rows_with_value(field::STATUS_CODE, &wanted, status == StatusCode::Unset)
    }

    fn mark_attribute(&mut self, tag: &WantedTag<'_>, held: &mut [bool]) -> Result<(), PageError> {
        for (step, kind) in self.columns_of(tag) {
            let satisfies = |stored: &[u8]| tag.value.is_stored(kind, stored);
            let presence = Presence::of(self.rows()?, step);
            let values = self.values(step, presence.values)?;
            if let Some(satisfying) = values.satisfying(&satisfies) {
                presence.mark(self.rows()?, &satisfying, held);
            }
        }
        Ok(())
    }

    /// Spans that are stored raw have no columns: each is asked by itself.
    fn ask_raw_rows(
        &mut self,
        condition: &PageCondition<'_>,
        contexts: &[ContextMatch],
        asked: &[bool],
        rows: &mut [bool],
    ) -> Result<(), PageError> {
        let presence = Presence::of(self.rows()?, field::RAW);
        let values = self.values(field::RAW, presence.values)?;
        let page = self.rows()?;
        let mut next = 0;
        for (((held, asked), &shape), &context) in rows
            .iter_mut()
            .zip(asked)
            .zip(&page.row_shapes)
            .zip(&page.row_contexts)
        {
            if presence.in_shape(shape) {
                let span = values.value(next).unwrap_or_default();
                let context = contexts.get(context as usize);
                *held =
                    *asked && context.is_some_and(|context| condition.match_span(span, context));
                next += 1;
            }
        }
        Ok(())
    }
}

fn and(rows: &mut [bool], held: &[bool]) {
    rows.iter_mut()
        .zip(held)
        .for_each(|(row, &held)| *row &= held);
}

/// Which rows have a value of a step that occurs at most once in a shape.
pub(super) struct Presence {
    shapes: Vec<bool>,
    pub(super) values: usize,
}

impl Presence {
    pub(super) fn of(rows: &Rows, step: Step) -> Self {
        let shapes = rows.shapes.containing(step);
        let values = match shapes.contains(&false) {
            false => rows.row_shapes.len(),
            true => {
                let has = |shape: &&u32| shapes.get(**shape as usize) == Some(&true);
                rows.row_shapes.iter().filter(has).count()
            }
        };
        Self { shapes, values }
    }

    fn in_shape(&self, shape: u32) -> bool {
        self.shapes.get(shape as usize).copied().unwrap_or(false)
    }

    fn absent(&self, rows: &Rows) -> Vec<bool> {
        let shapes = rows.row_shapes.iter();
        shapes.map(|&shape| !self.in_shape(shape)).collect()
    }

    fn mark(&self, rows: &Rows, satisfying: &Satisfying<'_>, held: &mut [bool]) {
        if self.values == held.len() {
            return satisfying.mark(held.iter_mut());
        }
        let with_value = held
            .iter_mut()
            .zip(&rows.row_shapes)
            .filter_map(|(held, &shape)| self.in_shape(shape).then_some(held));
        satisfying.mark(with_value);
    }
}
