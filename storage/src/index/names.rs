//! Names from the terms themselves: services, operations, keys and values of a tenant.

use std::collections::BTreeSet;

use spandrel_model::batch::SpanKind;
use spandrel_model::ids::{Bucket, TenantId};
use spandrel_model::search::{Name, NamesKind};
use tantivy::InvertedIndexReader;

use super::error::{Fault, IndexError};
use super::limits::MAX_INDEX_NAMES;
use super::store::IndexStore;
use super::terms::{TenantTerms, after_text, push_escaped, split_text};

impl IndexStore {
    /// The first `limit` names that begin with `prefix`, sorted and distinct. An operation occurs once per kind that
    /// it has. Of tags and values, scope and type are left open.
    ///
    /// # Errors
    /// As [`IndexStore::search`]; at most [`MAX_INDEX_NAMES`] names.
    pub fn names(
        &self,
        bucket: Bucket,
        tenant: &TenantId,
        kind: &NamesKind,
        prefix: &str,
        limit: usize,
    ) -> Result<Vec<Name>, IndexError> {
        if limit > MAX_INDEX_NAMES {
            return Err(IndexError::LimitTooLarge {
                limit,
                max: MAX_INDEX_NAMES,
            });
        }
        let listing = Listing::new(tenant, kind, prefix);
        let names = self.read(bucket, |manifest| {
            let mut names = BTreeSet::new();
            for entry in &manifest.segments {
                let segment = self.segment(bucket, entry)?;
                listing.collect(segment.terms(), limit, &mut names)?;
            }
            Ok(names)
        })?;
        Ok(names.into_iter().flatten().take(limit).collect())
    }
}

/// A walk over the terms of one kind of names. Terms sort as the names do.
struct Listing<'a> {
    kind: &'a NamesKind,
    /// What all terms of the kind begin with.
    base: Vec<u8>,
    /// What those with the prefix asked for begin with.
    first: Vec<u8>,
}

impl<'a> Listing<'a> {
    fn new(tenant: &TenantId, kind: &'a NamesKind, prefix: &str) -> Self {
        let terms = TenantTerms::of(tenant);
        let base = match kind {
            NamesKind::Services => terms.services(),
            NamesKind::Operations { service } => terms.classes(service),
            NamesKind::Tags => terms.attributes(),
            NamesKind::TagValues { key } => terms.attribute_values(key),
        };
        let mut first = base.clone();
        match kind {
            // A value stands plain.
            NamesKind::TagValues { .. } => first.extend_from_slice(prefix.as_bytes()),
            _ => push_escaped(&mut first, prefix),
        }
        Self { kind, base, first }
    }

    /// Adds a segment's first `limit` names. Seeks past the terms that share a name, of which a key has many.
    fn collect(
        &self,
        terms: &InvertedIndexReader,
        limit: usize,
        names: &mut BTreeSet<Name>,
    ) -> Result<(), Fault> {
        let mut from = self.first.clone();
        for _ in 0..limit {
            let mut stream = terms.terms().range().ge(&from).into_stream()?;
            let Some((term, _)) = stream.next() else {
                break;
            };
            if !term.starts_with(&self.first) {
                break;
            }
            let rest = term.get(self.base.len()..).unwrap_or_default();
            let malformed = || Fault::Damaged("a term is not of this version".to_owned());
            let (name, past) = self.name(rest).ok_or_else(malformed)?;
            names.insert(name);
            from.clone_from(&self.base);
            from.extend_from_slice(&past);
        }
        while names.len() > limit {
            names.pop_last();
        }
        Ok(())
    }

    /// The name that a term's remainder holds, and the least remainder after all that hold the same.
    fn name(&self, rest: &[u8]) -> Option<(Name, Vec<u8>)> {
        let named = |name: String| Name {
            name,
            kind: None,
            scope: None,
            indexed: None,
        };
        if let NamesKind::TagValues { .. } = self.kind {
            let mut past = rest.to_vec();
            past.push(0);
            let value = std::str::from_utf8(rest).ok()?;
            return Some((named(value.to_owned()), past));
        }
        let (text, tail) = split_text(rest)?;
        let ended = rest.get(..rest.len() - tail.len())?.to_vec();
        match self.kind {
            NamesKind::Operations { .. } => {
                let &[kind, _status] = tail else {
                    return None;
                };
                let mut past = ended;
                past.push(kind.checked_add(1)?);
                let mut name = named(text);
                name.kind = Some(SpanKind::from_wire(i32::from(kind)));
                Some((name, past))
            }
            NamesKind::Tags => {
                let mut name = named(text);
                name.indexed = Some(true);
                Some((name, after_text(ended)))
            }
            _ => Some((named(text), after_text(ended))),
        }
    }
}
