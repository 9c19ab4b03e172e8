//! The event log of a run: everything that happened, hashed with its virtual time, and the last events in words.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use xxhash_rust::xxh3::Xxh3;

use crate::limits::REPORTED_EVENTS;

/// Whether events are printed while they happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Printing {
    /// Only the last ones, after a failure.
    Last,
    /// Each one.
    All,
}

pub(crate) struct EventLog {
    inner: Mutex<Inner>,
    printing: Printing,
}

struct Inner {
    hasher: Xxh3,
    last: VecDeque<String>,
    count: u64,
}

impl EventLog {
    pub(crate) fn new(printing: Printing) -> Self {
        Self {
            inner: Mutex::new(Inner {
                hasher: Xxh3::new(),
                last: VecDeque::new(),
                count: 0,
            }),
            printing,
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An event in words; `elapsed_nanos` is the virtual time since the beginning.
    pub(crate) fn note(&self, elapsed_nanos: u64, event: String) {
        let millis = elapsed_nanos / 1_000_000;
        let line = format!("{:>6}.{:03} {event}", millis / 1_000, millis % 1_000);
        if self.printing == Printing::All {
            println!("{line}");
        }
        let mut inner = self.inner();
        inner.hasher.update(&elapsed_nanos.to_le_bytes());
        inner.hasher.update(line.as_bytes());
        inner.count += 1;
        inner.last.push_back(line);
        if inner.last.len() > REPORTED_EVENTS {
            inner.last.pop_front();
        }
    }

    /// An event that only counts for the hash: what goes to disks and over the network, and what nodes have in memory.
    pub(crate) fn fold(&self, elapsed_nanos: u64, parts: &[&[u8]]) {
        let mut inner = self.inner();
        inner.hasher.update(&elapsed_nanos.to_le_bytes());
        parts.iter().for_each(|part| inner.hasher.update(part));
        inner.count += 1;
    }

    pub(crate) fn hash(&self) -> u64 {
        self.inner().hasher.digest()
    }

    pub(crate) fn count(&self) -> u64 {
        self.inner().count
    }

    pub(crate) fn last(&self) -> Vec<String> {
        self.inner().last.iter().cloned().collect()
    }
}
