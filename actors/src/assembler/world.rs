//! A shard in a test: batches are made and scanned as in production, verdicts become durable on command.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, Status};
use prost::Message;
use spandrel_model::batch::SpanBatch;
use spandrel_model::ids::{Lsn, ShardId, TenantId, Term, TraceId, UnixNanos};
use spandrel_model::otlp::{AttributePolicy, scan_request};
use spandrel_model::policy::{Limiters, PolicySet};
use spandrel_model::routing::ShardRouter;
use spandrel_model::search::SearchFilter;
use spandrel_model::verdict::{Trigger, Verdict, VerdictRecord};

use super::{
    Applied, Decided, Depth, Earlier, Effects, HitLimits, PagingScope, Prior, ShardOptions,
    ShardSearch, ShardState, Step,
};
use crate::settings::Epoch;

pub(crate) const SECOND: u64 = UnixNanos::PER_SECOND;

/// Keeps errors, drops everything else.
pub(crate) const ERRORS_ONLY: &str = "
policies:
  - name: errors
    type: status_code
    status_codes: [ERROR]
";

/// A span to be sent.
#[derive(Clone)]
pub(crate) struct Sent {
    pub(crate) id: u64,
    pub(crate) parent: u64,
    pub(crate) service: &'static str,
    pub(crate) name: &'static str,
    pub(crate) start_ms: u64,
    pub(crate) duration_ms: u64,
    pub(crate) error: bool,
    pub(crate) route: Option<&'static str>,
}

pub(crate) fn span(id: u64, parent: u64) -> Sent {
    Sent {
        id,
        parent,
        service: "shop",
        name: "GET /",
        start_ms: 1_000,
        duration_ms: 10,
        error: false,
        route: None,
    }
}

fn attribute(key: &str, value: &str) -> KeyValue {
    KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue {
            value: Some(any_value::Value::StringValue(value.to_owned())),
        }),
        ..KeyValue::default()
    }
}

/// Kept traces that wait for no more spans.
pub(crate) const READY: PagingScope = PagingScope {
    all: false,
    followed: true,
};
/// All kept traces.
pub(crate) const EVERYTHING: PagingScope = PagingScope { all: true, ..READY };

/// What the test's journal holds of verdicts.
#[derive(Default)]
pub(crate) struct Horizon {
    pub(crate) verdicts: BTreeMap<TraceId, VerdictRecord>,
}

impl Decided for Horizon {
    fn prior(&self, _: ShardId, _: &TenantId, trace_id: TraceId, _: Lsn) -> Prior {
        if self.verdicts.contains_key(&trace_id) {
            Prior::Ask
        } else {
            Prior::None
        }
    }
}

pub(crate) struct World {
    pub(crate) state: ShardState,
    pub(crate) epoch: Epoch,
    pub(crate) horizon: Horizon,
    pub(crate) effects: Effects,
    pub(crate) now: UnixNanos,
    pub(crate) pressure: u8,
    pub(crate) next_lsn: Lsn,
    limiters: Mutex<Limiters>,
}

impl World {
    pub(crate) fn new(policy: &str) -> Self {
        let set = Arc::new(PolicySet::parse(policy, 1).unwrap());
        let limiters = Mutex::new(Limiters::new(&set));
        let router = ShardRouter::new(7, 1).unwrap();
        let options = ShardOptions {
            shard: ShardId(0),
            term: Term(1),
            router,
            bucket_nanos: 3_600 * SECOND,
        };
        Self {
            state: ShardState::new(options, Lsn(0)),
            epoch: Epoch::new(
                &["http.route".to_owned()],
                &AttributePolicy::default(),
                &[set],
            ),
            horizon: Horizon::default(),
            effects: Effects::default(),
            now: UnixNanos(1_800_000_000 * SECOND),
            pressure: 0,
            next_lsn: Lsn(1),
            limiters,
        }
    }

    /// Another policy comes into force; open traces are still decided by theirs.
    pub(crate) fn adopt(&mut self, policy: &str, version: u32) {
        let set = Arc::new(PolicySet::parse(policy, version).unwrap());
        let sets: Vec<_> = self.epoch.sets().cloned().chain([set]).collect();
        self.epoch = Epoch::new(
            &["http.route".to_owned()],
            &AttributePolicy::default(),
            &sets,
        );
    }

    /// A batch as the wire brings it.
    pub(crate) fn batch(&self, trace: u8, spans: &[Sent]) -> SpanBatch {
        let at = |ms: u64| self.base().0 + ms * UnixNanos::PER_MILLI;
        let resource_spans = spans.iter().map(|sent| ResourceSpans {
            resource: Some(Resource {
                attributes: vec![attribute("service.name", sent.service)],
                ..Resource::default()
            }),
            scope_spans: vec![ScopeSpans {
                spans: vec![Span {
                    trace_id: vec![trace; 16],
                    span_id: sent.id.to_be_bytes().to_vec(),
                    parent_span_id: if sent.parent == 0 {
                        vec![]
                    } else {
                        sent.parent.to_be_bytes().to_vec()
                    },
                    name: sent.name.to_owned(),
                    start_time_unix_nano: at(sent.start_ms),
                    end_time_unix_nano: at(sent.start_ms + sent.duration_ms),
                    attributes: sent
                        .route
                        .iter()
                        .map(|route| attribute("http.route", route))
                        .collect(),
                    status: sent.error.then(|| Status {
                        code: 2,
                        ..Status::default()
                    }),
                    ..Span::default()
                }],
                ..ScopeSpans::default()
            }],
            ..ResourceSpans::default()
        });
        let request = ExportTraceServiceRequest {
            resource_spans: resource_spans.collect(),
        };
        let bytes = Bytes::from(request.encode_to_vec());
        scan_request(bytes, TenantId::default(), self.now, self.epoch.rules())
            .unwrap()
            .batch
    }

    /// Starts of spans count from here, so that they do not move with the clock of the test.
    pub(crate) fn base(&self) -> UnixNanos {
        UnixNanos(1_800_000_000 * SECOND)
    }

    pub(crate) fn step<T>(
        &mut self,
        work: impl FnOnce(&mut ShardState, &Step<'_>, &mut Effects) -> T,
    ) -> T {
        let step = Step {
            decides: true,
            epoch: &self.epoch,
            decided: &self.horizon,
            limiters: &self.limiters,
            pressure: self.pressure,
            now: self.now,
        };
        let outcome = work(&mut self.state, &step, &mut self.effects);
        self.state.check();
        outcome
    }

    /// Spans become durable and are applied.
    pub(crate) fn send(&mut self, trace: u8, spans: &[Sent]) -> Applied {
        let batch = self.batch(trace, spans);
        let lsn = self.next_lsn;
        self.next_lsn = lsn.next();
        let rows: Vec<u32> = (0u32..).take(batch.spans.len()).collect();
        self.step(|state, step, effects| state.apply(lsn, &batch, &rows, step, effects))
    }

    /// Time passes and the shard looks at its entries.
    pub(crate) fn pass(&mut self, seconds: u64) {
        self.now = self.now.plus(seconds * SECOND);
        self.step(|state, step, effects| state.tick(step, effects));
    }

    /// Verdicts on their way become durable; returns them.
    pub(crate) fn commit(&mut self) -> Vec<VerdictRecord> {
        let records = std::mem::take(&mut self.effects.verdicts);
        if records.is_empty() {
            return records;
        }
        let lsn = self.next_lsn;
        self.next_lsn = lsn.next();
        for record in &records {
            self.horizon
                .verdicts
                .insert(record.trace_id, record.clone());
        }
        self.step(|state, step, effects| {
            state.verdicts_committed(lsn, &records, step, effects);
        });
        records
    }

    /// The journal answers what it was asked.
    pub(crate) fn confirm(&mut self) {
        for (tenant, trace_id) in std::mem::take(&mut self.effects.confirm) {
            let found = self.horizon.verdicts.get(&trace_id).cloned();
            let found = found.map(|record| Earlier {
                is_here: true,
                record,
            });
            self.step(|state, step, effects| {
                state.confirm(&tenant, trace_id, found, step, effects)
            });
        }
    }

    /// The only decision that is on its way, made durable.
    pub(crate) fn decided(&mut self) -> (Verdict, Trigger) {
        let records = self.commit();
        assert_eq!(records.len(), 1, "one decision, got {records:?}");
        (records[0].verdict, records[0].trigger)
    }
}

/// A search of the default tenant from the beginning.
pub(crate) fn search_of(filter: SearchFilter, limits: HitLimits) -> ShardSearch {
    ShardSearch {
        tenant: TenantId::default(),
        filter: Arc::new(filter),
        cursor: None,
        limits,
        include_dropped: false,
        depth: Depth::Live,
    }
}

pub(crate) fn trace(number: u8) -> TraceId {
    TraceId([number; 16])
}
