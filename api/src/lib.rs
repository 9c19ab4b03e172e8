//! What clients of Spandrel speak: OTLP, the native HTTP and gRPC API, Tempo's trace fetch.
