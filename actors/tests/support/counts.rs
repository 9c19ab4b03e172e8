//! Reads counters of the nodes of a test, whose tasks all run on its thread.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};

/// Counters by name and first label.
#[derive(Debug, Default)]
pub struct Counts(Mutex<BTreeMap<(String, String), Arc<AtomicU64>>>);

impl Counts {
    fn counter(&self, name: &str, label: &str) -> Arc<AtomicU64> {
        let mut counts = self.0.lock().unwrap();
        Arc::clone(
            counts
                .entry((name.to_owned(), label.to_owned()))
                .or_default(),
        )
    }

    /// The counter of this name whose first label has this value.
    pub fn get(&self, name: &str, label: &str) -> u64 {
        self.counter(name, label).load(Ordering::Relaxed)
    }
}

impl Recorder for Counts {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        let label = key.labels().next().map_or("", |label| label.value());
        Counter::from_arc(self.counter(key.name(), label))
    }

    fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::noop()
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}
