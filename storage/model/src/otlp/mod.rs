//! OTLP: the wire-format scanner, the attribute policy, and writing `TracesData` back.
