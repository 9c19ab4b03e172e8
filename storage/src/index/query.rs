//! From the conditions of a search to terms: what the index answers exactly and what it only narrows down.

use spandrel_model::batch::StatusCode;
use spandrel_model::ids::TenantId;
use spandrel_model::search::SearchFilter;

use super::schema::may_be_cut;
use super::terms::TenantTerms;

/// Documents that hold one of some terms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Condition {
    /// This term.
    Term(Vec<u8>),
    /// Any term that begins so and, if a status is given, ends with it.
    Prefix(Vec<u8>, Option<StatusCode>),
}

/// How a segment answers a filter, apart from time and duration, which its columns answer.
#[derive(Debug)]
pub(super) struct Plan {
    /// A match holds them all.
    pub(super) conditions: Vec<Condition>,
    /// Whether holding them all is what was asked for, rather than only necessary.
    pub(super) exact: bool,
    /// Whether the term match of a truncated document is proof too (values may be cut, classes never are).
    pub(super) exact_when_truncated: bool,
    /// Holds of every document of the tenant.
    pub(super) any: Vec<u8>,
    /// Holds of those that may match without holding the conditions.
    pub(super) truncated: Vec<u8>,
}

impl Plan {
    /// `indexed_keys`, sorted: the attributes that the segment's summaries name.
    pub(super) fn new(tenant: &TenantId, filter: &SearchFilter, indexed_keys: &[String]) -> Self {
        let terms = TenantTerms::of(tenant);
        let mut conditions = class_conditions(&terms, filter);
        let mut all_indexed = true;
        for tag in &filter.tags {
            if indexed_keys.binary_search(&tag.key).is_ok() {
                conditions.push(Condition::Term(terms.attribute(&tag.key, &tag.value)));
            } else {
                all_indexed = false;
            }
        }
        let exact = match filter.tags.as_slice() {
            [] => true,
            [only] => {
                // Nothing else has to hold of the span that has the tag.
                all_indexed
                    && filter.operation.is_none()
                    && filter.status.is_none()
                    && filter.span_service().is_none()
                    && !may_be_cut(&only.value)
            }
            _ => false,
        };
        Self {
            conditions,
            exact,
            exact_when_truncated: exact && filter.tags.is_empty(),
            any: terms.document(),
            truncated: terms.truncated(),
        }
    }
}

/// Conditions on services, operation and status: always exact, since a class is what one span had.
fn class_conditions(terms: &TenantTerms, filter: &SearchFilter) -> Vec<Condition> {
    let span_service = filter.span_service();
    let mut conditions = Vec::new();
    if span_service.is_none() {
        let services = filter.services.iter();
        conditions.extend(services.map(|name| Condition::Prefix(terms.service(name), None)));
    }
    let of_the_span = match (span_service, filter.operation.as_deref(), filter.status) {
        (Some(service), Some(operation), status) => Some(Condition::Prefix(
            terms.class_prefix(service, operation),
            status,
        )),
        (Some(service), None, Some(status)) => {
            Some(Condition::Term(terms.service_status(service, status)))
        }
        (Some(service), None, None) => Some(Condition::Prefix(terms.service(service), None)),
        (None, Some(operation), Some(status)) => {
            Some(Condition::Term(terms.operation_status(operation, status)))
        }
        (None, Some(operation), None) => Some(Condition::Prefix(terms.operation(operation), None)),
        (None, None, Some(status)) => Some(Condition::Term(terms.status(status))),
        (None, None, None) => None,
    };
    conditions.extend(of_the_span);
    conditions
}

#[cfg(test)]
mod tests {
    use spandrel_model::search::TagCondition;

    use super::*;

    fn tag(key: &str) -> TagCondition {
        TagCondition {
            key: key.to_owned(),
            value: "v".to_owned(),
        }
    }

    fn exact(filter: &SearchFilter) -> bool {
        Plan::new(&TenantId::default(), filter, &["env".to_owned()]).exact
    }

    #[test]
    fn a_lone_indexed_tag_is_exact_and_nothing_else_with_tags() {
        let tags = |tags: Vec<TagCondition>| SearchFilter {
            tags,
            ..SearchFilter::default()
        };
        assert!(exact(&tags(vec![])));
        assert!(exact(&tags(vec![tag("env")])));
        assert!(!exact(&tags(vec![tag("other")])));
        assert!(!exact(&tags(vec![tag("env"), tag("env")])));
        // one service means a span of that service, two mean services of the trace
        let with_services = |names: &[&str]| SearchFilter {
            services: names.iter().map(|name| (*name).to_owned()).collect(),
            ..tags(vec![tag("env")])
        };
        assert!(!exact(&with_services(&["a"])));
        assert!(exact(&with_services(&["a", "b"])));
        assert!(!exact(&SearchFilter {
            status: Some(StatusCode::Error),
            ..tags(vec![tag("env")])
        }));
    }

    #[test]
    fn a_tag_that_is_not_indexed_narrows_nothing() {
        let filter = SearchFilter {
            tags: vec![tag("other")],
            ..SearchFilter::default()
        };
        let plan = Plan::new(&TenantId::default(), &filter, &[]);
        assert_eq!(plan.conditions, vec![]);
    }
}
