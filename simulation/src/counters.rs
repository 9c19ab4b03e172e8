//! The node's own counters, read back.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};

type Cells = BTreeMap<String, Vec<(Key, Arc<AtomicU64>)>>;

/// Counters by name, each label set on its own. Clones are the same counters; gauges and histograms are not kept.
#[derive(Debug, Clone, Default)]
pub(crate) struct Counters {
    cells: Arc<Mutex<Cells>>,
    /// What the counters said when this life began.
    before: BTreeMap<String, u64>,
}

impl Counters {
    /// The counters from now on.
    pub(crate) fn since_now(&self) -> Self {
        let cells = self.cells.lock().unwrap_or_else(PoisonError::into_inner);
        let before = cells.iter().map(|(name, cells)| (name.clone(), sum(cells)));
        Self {
            before: before.collect(),
            cells: Arc::clone(&self.cells),
        }
    }

    /// The counter of this name, all labels together.
    pub(crate) fn total(&self, name: &str) -> u64 {
        let cells = self.cells.lock().unwrap_or_else(PoisonError::into_inner);
        let now = cells.get(name).map_or(0, |cells| sum(cells));
        now - self.before.get(name).copied().unwrap_or_default()
    }
}

fn sum(cells: &[(Key, Arc<AtomicU64>)]) -> u64 {
    cells
        .iter()
        .map(|(_, cell)| cell.load(Ordering::Relaxed))
        .sum()
}

impl Recorder for Counters {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        let mut cells = self.cells.lock().unwrap_or_else(PoisonError::into_inner);
        let named = cells.entry(key.name().to_owned()).or_default();
        let known = named.iter().find(|(other, _)| other == key);
        let cell = match known {
            Some((_, cell)) => Arc::clone(cell),
            None => {
                let cell = Arc::new(AtomicU64::new(0));
                named.push((key.clone(), Arc::clone(&cell)));
                cell
            }
        };
        Counter::from_arc(cell)
    }

    fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::noop()
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}
