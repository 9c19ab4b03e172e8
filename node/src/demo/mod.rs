//! Traffic of a made-up shop over OTLP: to look at, to test with, and as the load of the benchmarks.
//!
//! Traces are planned call by call (`plan`, `calls`, `flows`), encoded once into a stock of templates (`template`,
//! `library`), and sent as copies with their own ids, times and texts (`generator`, `outbox`): about a tenth of a
//! microsecond a span. The same seed and times make the same bytes.

mod attributes;
mod calls;
mod flows;
mod generator;
mod history;
mod library;
mod options;
mod outbox;
mod plan;
mod report;
mod run;
mod services;
mod statistics;
mod template;
mod wire;

#[cfg(test)]
mod generator_test;

pub use generator::{Batch, Example, Generator, TracePart};
pub use options::{DemoOptions, Grouping, Shape};
pub use report::{DemoReport, ExampleReport, LatencyReport};
pub use run::{DemoError, run};
