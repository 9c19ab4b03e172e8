//! The messages of OTLP traces: names in JSON, numbers and types in protobuf (opentelemetry-proto 1.x).

/// How a field is written on both sides.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    /// Text.
    Text,
    /// Bytes that JSON writes in hexadecimal: trace and span ids.
    Hex,
    /// Bytes that JSON writes in base64.
    Base64,
    /// `fixed64`, in JSON a decimal string.
    Fixed64,
    /// `int64`, in JSON a decimal string.
    Int64,
    /// `uint32`.
    Uint32,
    /// `fixed32`.
    Fixed32,
    /// An enum: an integer in JSON; the names are read too, as other receivers do.
    Enum(&'static [&'static str]),
    /// `bool`.
    Bool,
    /// `double`; not-a-number and the infinities are text in JSON.
    Double,
    /// A message.
    Message(&'static Schema),
}

/// One field of a message.
pub(super) struct Field {
    pub(super) name: &'static str,
    pub(super) number: u32,
    pub(super) kind: Kind,
    pub(super) repeated: bool,
    /// Written to JSON also when it is absent: strict readers of JSON demand it.
    pub(super) always: bool,
}

/// One message.
pub(super) struct Schema {
    pub(super) fields: &'static [Field],
    /// The fields exclude each other, so that a default value says something.
    pub(super) oneof: bool,
}

const fn one(number: u32, name: &'static str, kind: Kind) -> Field {
    Field {
        name,
        number,
        kind,
        repeated: false,
        always: false,
    }
}

const fn many(number: u32, name: &'static str, kind: Kind) -> Field {
    Field {
        repeated: true,
        ..one(number, name, kind)
    }
}

const fn always(field: Field) -> Field {
    Field {
        always: true,
        ..field
    }
}

const fn message(fields: &'static [Field]) -> Schema {
    Schema {
        fields,
        oneof: false,
    }
}

/// `TracesData`, and `ExportTraceServiceRequest`, which is the same on the wire.
pub(super) static TRACES: Schema =
    message(&[always(many(1, "resourceSpans", Kind::Message(&RESOURCE_SPANS)))]);

pub(super) static RESOURCE_SPANS: Schema = message(&[
    one(1, "resource", Kind::Message(&RESOURCE)),
    many(2, "scopeSpans", Kind::Message(&SCOPE_SPANS)),
    one(3, "schemaUrl", Kind::Text),
]);

static RESOURCE: Schema = message(&[
    many(1, "attributes", Kind::Message(&KEY_VALUE)),
    one(2, "droppedAttributesCount", Kind::Uint32),
    many(3, "entityRefs", Kind::Message(&ENTITY_REF)),
]);

static ENTITY_REF: Schema = message(&[
    always(one(1, "schemaUrl", Kind::Text)),
    always(one(2, "type", Kind::Text)),
    always(many(3, "idKeys", Kind::Text)),
    always(many(4, "descriptionKeys", Kind::Text)),
]);

static SCOPE_SPANS: Schema = message(&[
    one(1, "scope", Kind::Message(&SCOPE)),
    many(2, "spans", Kind::Message(&SPAN)),
    one(3, "schemaUrl", Kind::Text),
]);

static SCOPE: Schema = message(&[
    one(1, "name", Kind::Text),
    one(2, "version", Kind::Text),
    many(3, "attributes", Kind::Message(&KEY_VALUE)),
    one(4, "droppedAttributesCount", Kind::Uint32),
]);

static SPAN: Schema = message(&[
    one(1, "traceId", Kind::Hex),
    one(2, "spanId", Kind::Hex),
    one(3, "traceState", Kind::Text),
    one(4, "parentSpanId", Kind::Hex),
    one(16, "flags", Kind::Fixed32),
    one(5, "name", Kind::Text),
    one(6, "kind", Kind::Enum(&SPAN_KINDS)),
    one(7, "startTimeUnixNano", Kind::Fixed64),
    one(8, "endTimeUnixNano", Kind::Fixed64),
    many(9, "attributes", Kind::Message(&KEY_VALUE)),
    one(10, "droppedAttributesCount", Kind::Uint32),
    many(11, "events", Kind::Message(&EVENT)),
    one(12, "droppedEventsCount", Kind::Uint32),
    many(13, "links", Kind::Message(&LINK)),
    one(14, "droppedLinksCount", Kind::Uint32),
    one(15, "status", Kind::Message(&STATUS)),
]);

static SPAN_KINDS: [&str; 6] = [
    "SPAN_KIND_UNSPECIFIED",
    "SPAN_KIND_INTERNAL",
    "SPAN_KIND_SERVER",
    "SPAN_KIND_CLIENT",
    "SPAN_KIND_PRODUCER",
    "SPAN_KIND_CONSUMER",
];

static EVENT: Schema = message(&[
    one(1, "timeUnixNano", Kind::Fixed64),
    one(2, "name", Kind::Text),
    many(3, "attributes", Kind::Message(&KEY_VALUE)),
    one(4, "droppedAttributesCount", Kind::Uint32),
]);

static LINK: Schema = message(&[
    one(1, "traceId", Kind::Hex),
    one(2, "spanId", Kind::Hex),
    one(3, "traceState", Kind::Text),
    many(4, "attributes", Kind::Message(&KEY_VALUE)),
    one(5, "droppedAttributesCount", Kind::Uint32),
    one(6, "flags", Kind::Fixed32),
]);

static STATUS: Schema = message(&[
    one(2, "message", Kind::Text),
    one(3, "code", Kind::Enum(&STATUS_CODES)),
]);

static STATUS_CODES: [&str; 3] = ["STATUS_CODE_UNSET", "STATUS_CODE_OK", "STATUS_CODE_ERROR"];

static KEY_VALUE: Schema = message(&[
    always(one(1, "key", Kind::Text)),
    one(2, "value", Kind::Message(&ANY_VALUE)),
]);

static ANY_VALUE: Schema = Schema {
    oneof: true,
    fields: &[
        one(1, "stringValue", Kind::Text),
        one(2, "boolValue", Kind::Bool),
        one(3, "intValue", Kind::Int64),
        one(4, "doubleValue", Kind::Double),
        one(5, "arrayValue", Kind::Message(&ARRAY_VALUE)),
        one(6, "kvlistValue", Kind::Message(&KEY_VALUE_LIST)),
        one(7, "bytesValue", Kind::Base64),
    ],
};

static ARRAY_VALUE: Schema = message(&[always(many(1, "values", Kind::Message(&ANY_VALUE)))]);

static KEY_VALUE_LIST: Schema = message(&[always(many(1, "values", Kind::Message(&KEY_VALUE)))]);
