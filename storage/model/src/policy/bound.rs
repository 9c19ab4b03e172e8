//! A policy set bound to the interests of a scan: what it notes of each span.

use std::sync::Arc;

use foldhash::fast::FixedState;
use hashbrown::HashMap;

use super::leaf::{LeafBits, LeafTest, SERVICE_KEY, ValueTest, trace_state_has};
use super::set::PolicySet;
use crate::batch::{Run, SpanBatch, SpanHeader};
use crate::interest::Interests;
use crate::limits::UNKNOWN_SERVICE;

/// The W3C sampled flag in OTLP's `flags`.
const SAMPLED_FLAG: u32 = 1;

/// A [`PolicySet`] with its attribute keys resolved to numbers; made by [`PolicySet::bind`].
#[derive(Debug)]
pub struct BoundPolicy {
    set: Arc<PolicySet>,
    /// By status number: the conditions that such a span satisfies.
    by_status: [LeafBits; 3],
    sampled_flag: LeafBits,
    /// By service name: the conditions that such a span satisfies.
    by_service: HashMap<String, LeafBits, FixedState>,
    /// Conditions on the text of `service.name`: their leaf and bit.
    service_texts: Vec<(usize, LeafBits)>,
    trace_states: Vec<(usize, LeafBits)>,
    /// By the key's number in the interests: the leaves that look at its value, with their bits.
    by_key: Vec<Vec<(usize, LeafBits)>>,
    /// False when no condition looks at attributes other than the service's name.
    reads_attributes: bool,
}

impl BoundPolicy {
    pub(super) fn new(set: Arc<PolicySet>, interests: &Interests) -> Self {
        let mut bound = Self {
            by_status: [0; 3],
            sampled_flag: 0,
            by_service: HashMap::default(),
            service_texts: Vec::new(),
            trace_states: Vec::new(),
            by_key: vec![Vec::new(); interests.keys().len()],
            reads_attributes: false,
            set: Arc::clone(&set),
        };
        for (index, leaf) in set.leaves().iter().enumerate() {
            bound.add(index, &leaf.test, interests);
        }
        bound
    }

    fn add(&mut self, index: usize, test: &LeafTest, interests: &Interests) {
        // There are at most 128 leaves, the number of bits.
        let bit: LeafBits = 1 << index;
        match test {
            LeafTest::Status(codes) => {
                for code in codes {
                    self.by_status[*code as usize] |= bit;
                }
            }
            LeafTest::SampledFlag => self.sampled_flag |= bit,
            LeafTest::Service(services) => {
                for service in services {
                    *self.by_service.entry(service.clone()).or_default() |= bit;
                }
            }
            LeafTest::TraceState { .. } => self.trace_states.push((index, bit)),
            LeafTest::Attribute { key, .. } if key == SERVICE_KEY => {
                self.service_texts.push((index, bit));
            }
            LeafTest::Attribute { key, .. } => {
                // Keys that are not in the interests are never reported: such a leaf stays unset.
                let number = interests.number(key).map(usize::from);
                if let Some(leaves) = number.and_then(|number| self.by_key.get_mut(number)) {
                    leaves.push((index, bit));
                    self.reads_attributes = true;
                }
            }
        }
    }

    /// The leaf conditions that a span satisfies, by itself or by its resource. The union over a trace's spans goes
    /// into [`TraceFacts::bits`](super::TraceFacts::bits). The batch must come from a scan with the interests that
    /// this was bound to.
    #[inline]
    #[must_use]
    pub fn observe(&self, batch: &SpanBatch, span: &SpanHeader) -> LeafBits {
        let mut bits = self.by_status[span.status as usize];
        if span.flags & SAMPLED_FLAG != 0 {
            bits |= self.sampled_flag;
        }
        if !self.trace_states.is_empty() && !span.trace_state.is_empty() {
            bits |= self.observe_trace_state(batch.text(span.trace_state));
        }
        if self.reads_attributes {
            bits |= self.observe_attributes(batch, span.attributes);
            bits |= self.observe_attributes(batch, batch.context(span).attributes);
        }
        if !self.by_service.is_empty() || !self.service_texts.is_empty() {
            bits |= self.observe_service(batch.text(batch.context(span).service));
        }
        bits
    }

    /// The policy set.
    #[must_use]
    pub fn set(&self) -> &Arc<PolicySet> {
        &self.set
    }

    fn test(&self, index: usize) -> Option<&LeafTest> {
        self.set.leaves().get(index).map(|leaf| &leaf.test)
    }

    fn value_test(&self, index: usize) -> Option<&ValueTest> {
        match self.test(index) {
            Some(LeafTest::Attribute { test, .. }) => Some(test),
            _ => None,
        }
    }

    fn observe_trace_state(&self, trace_state: &str) -> LeafBits {
        let holds = |index: usize| match self.test(index) {
            Some(LeafTest::TraceState { key, values }) => trace_state_has(trace_state, key, values),
            _ => false,
        };
        let leaves = self.trace_states.iter();
        leaves
            .filter(|(index, _)| holds(*index))
            .fold(0, |bits, (_, bit)| bits | bit)
    }

    fn observe_attributes(&self, batch: &SpanBatch, run: Run) -> LeafBits {
        let mut bits = 0;
        for attribute in batch.attributes(run) {
            let leaves = self.by_key.get(usize::from(attribute.key));
            for (index, bit) in leaves.into_iter().flatten() {
                let holds = |test: &ValueTest| test.holds(batch, attribute.value);
                // Of a list or of several attributes with one key, one that matches is enough.
                if bits & bit == 0 && self.value_test(*index).is_some_and(holds) {
                    bits |= bit;
                }
            }
        }
        bits
    }

    fn observe_service(&self, service: &str) -> LeafBits {
        let name = if service.is_empty() {
            UNKNOWN_SERVICE
        } else {
            service
        };
        let mut bits = self.by_service.get(name).copied().unwrap_or_default();
        // An absent attribute satisfies no condition on its value, not even a pattern that matches everything.
        if !service.is_empty() {
            for (index, bit) in &self.service_texts {
                let holds = |test: &ValueTest| test.holds_for_text(service);
                if self.value_test(*index).is_some_and(holds) {
                    bits |= bit;
                }
            }
        }
        bits
    }
}
