//! The terms of the index, byte by byte. docs/formats/index.md.
//!
//! Every term begins with its tenant and is made by [`TenantTerms`], the only place that can make one: no query can
//! name a document of another tenant.

use spandrel_model::batch::{SpanKind, StatusCode};
use spandrel_model::ids::TenantId;

use super::limits::MAX_TERM_BYTES;

/// Ends the tenant; no tenant's name contains it.
const TENANT_END: u8 = 0;
/// What follows the tenant. The numbers are on disk: never reuse one.
#[derive(Clone, Copy)]
#[repr(u8)]
enum Family {
    /// Every document.
    Document = 1,
    /// Documents whose summary does not name everything.
    Truncated = 2,
    /// status
    Status = 3,
    /// service, status
    Service = 4,
    /// operation, status
    Operation = 5,
    /// service, operation, kind, status
    Class = 6,
    /// key, value
    Attribute = 7,
}

/// Bytes that end a text inside a term; a NUL of the text itself is followed by [`ESCAPED`].
const TEXT_END: [u8; 2] = [0, 1];
const ESCAPED: u8 = 0xFF;

/// Makes the terms of one tenant.
///
/// Texts inside a term are escaped and ended so that terms sort as their texts do, that no two tuples share a term,
/// and that a tuple's first parts are a prefix of its term. Only an attribute's value, always last, stands plain.
#[derive(Debug, Clone)]
pub(super) struct TenantTerms {
    prefix: Vec<u8>,
}

impl TenantTerms {
    pub(super) fn of(tenant: &TenantId) -> Self {
        let mut prefix = tenant.as_str().as_bytes().to_vec();
        prefix.push(TENANT_END);
        Self { prefix }
    }

    pub(super) fn document(&self) -> Vec<u8> {
        self.begin(Family::Document, 0)
    }

    pub(super) fn truncated(&self) -> Vec<u8> {
        self.begin(Family::Truncated, 0)
    }

    pub(super) fn status(&self, status: StatusCode) -> Vec<u8> {
        let mut term = self.begin(Family::Status, 1);
        term.push(status as u8);
        term
    }

    /// Prefix of the terms of all services: each goes on with an ended text and a status.
    pub(super) fn services(&self) -> Vec<u8> {
        self.begin(Family::Service, 0)
    }

    /// Prefix of a service's terms: each goes on with a status.
    pub(super) fn service(&self, service: &str) -> Vec<u8> {
        let mut term = self.begin(Family::Service, service.len());
        push_text(&mut term, service);
        term
    }

    pub(super) fn service_status(&self, service: &str, status: StatusCode) -> Vec<u8> {
        let mut term = self.service(service);
        term.push(status as u8);
        term
    }

    /// Prefix of an operation's terms: each goes on with a status.
    pub(super) fn operation(&self, operation: &str) -> Vec<u8> {
        let mut term = self.begin(Family::Operation, operation.len());
        push_text(&mut term, operation);
        term
    }

    pub(super) fn operation_status(&self, operation: &str, status: StatusCode) -> Vec<u8> {
        let mut term = self.operation(operation);
        term.push(status as u8);
        term
    }

    /// Prefix of the classes of a service: each goes on with an ended text, a kind and a status.
    pub(super) fn classes(&self, service: &str) -> Vec<u8> {
        let mut term = self.begin(Family::Class, service.len());
        push_text(&mut term, service);
        term
    }

    /// Prefix of the classes of a service's operation: each goes on with a kind and a status.
    pub(super) fn class_prefix(&self, service: &str, operation: &str) -> Vec<u8> {
        let mut term = self.classes(service);
        push_text(&mut term, operation);
        term
    }

    pub(super) fn class(
        &self,
        service: &str,
        operation: &str,
        kind: SpanKind,
        status: StatusCode,
    ) -> Vec<u8> {
        let mut term = self.class_prefix(service, operation);
        term.push(kind as u8);
        term.push(status as u8);
        term
    }

    /// Prefix of all attributes: each goes on with an ended key and a plain value.
    pub(super) fn attributes(&self) -> Vec<u8> {
        self.begin(Family::Attribute, 0)
    }

    /// Prefix of the values of a key: each goes on with a plain value.
    pub(super) fn attribute_values(&self, key: &str) -> Vec<u8> {
        let mut term = self.begin(Family::Attribute, key.len());
        push_text(&mut term, key);
        term
    }

    pub(super) fn attribute(&self, key: &str, value: &str) -> Vec<u8> {
        let mut term = self.attribute_values(key);
        term.extend_from_slice(value.as_bytes());
        term
    }

    fn begin(&self, family: Family, text_bytes: usize) -> Vec<u8> {
        let mut term = Vec::with_capacity(self.prefix.len() + text_bytes.min(MAX_TERM_BYTES) + 8);
        term.extend_from_slice(&self.prefix);
        term.push(family as u8);
        term
    }
}

/// Appends a text that more may follow.
fn push_text(term: &mut Vec<u8>, text: &str) {
    push_escaped(term, text);
    term.extend_from_slice(&TEXT_END);
}

/// Appends the beginning of a text, not ended.
pub(super) fn push_escaped(term: &mut Vec<u8>, text: &str) {
    for &byte in text.as_bytes() {
        term.push(byte);
        if byte == 0 {
            term.push(ESCAPED);
        }
    }
}

/// Splits an ended text from the front of a term's remainder: the text and what follows it. `None` for bytes that
/// this module does not write.
pub(super) fn split_text(rest: &[u8]) -> Option<(String, &[u8])> {
    let mut text = Vec::with_capacity(rest.len());
    let mut bytes = rest.iter().enumerate();
    while let Some((_, &byte)) = bytes.next() {
        if byte != 0 {
            text.push(byte);
            continue;
        }
        match bytes.next()? {
            (_, &ESCAPED) => text.push(0),
            (at, &1) => return Some((String::from_utf8(text).ok()?, rest.get(at + 1..)?)),
            _ => return None,
        }
    }
    None
}

/// The least term after every term that begins with the ended text that `term` ends with.
pub(super) fn after_text(mut term: Vec<u8>) -> Vec<u8> {
    if let Some(last) = term.last_mut() {
        *last = last.saturating_add(1);
    }
    term
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn texts_come_back_and_sort_as_they_are(a in "[\u{0}\u{1}a-c\u{ff}]{0,5}", b in "[\u{0}\u{1}a-c\u{ff}]{0,5}") {
            let (mut left, mut right) = (Vec::new(), Vec::new());
            push_text(&mut left, &a);
            push_text(&mut right, &b);
            prop_assert_eq!(left.cmp(&right), a.cmp(&b));
            left.push(7);
            prop_assert_eq!(split_text(&left), Some((a, &[7_u8][..])));
        }

        #[test]
        fn any_bytes_are_split_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = split_text(&bytes);
        }
    }

    #[test]
    fn no_tenant_is_a_prefix_of_another() {
        // given: a tenant whose name begins with the other's
        let short = TenantTerms::of(&"a".parse().unwrap());
        let long = TenantTerms::of(&"ab".parse().unwrap());
        // then: not one of its terms begins like a term of the other
        assert!(!long.service("x").starts_with(&short.prefix));
        assert!(!short.service("b").starts_with(&long.prefix));
    }

    #[test]
    fn tuples_do_not_run_together() {
        let terms = TenantTerms::of(&TenantId::default());
        assert_ne!(
            terms.class_prefix("a\0b", "c"),
            terms.class_prefix("a", "b\0c")
        );
        assert_ne!(terms.attribute("k", "v"), terms.attribute("kv", ""));
    }
}
