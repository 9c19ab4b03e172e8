//! As for the journal: what a failed sync lost, and the next process of the same boot still reads, must not be lost at
//! a later power loss.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::block_test::{DIR, fetch, open, spans, write};
use super::{BlockError, BlockOptions, BlockStore};
use crate::disk::{GuardedDisk, SimulatedDisk};

/// Of the commits of one life; three traces each.
const BUCKETS: [u32; 8] = [5, 6, 5, 7, 6, 5, 8, 5];

fn guarded(disk: &SimulatedDisk, stopped: &Arc<AtomicBool>) -> Arc<GuardedDisk> {
    let told = Arc::clone(stopped);
    let on_failed_sync = Box::new(move |_: &str| told.store(true, Ordering::Relaxed));
    let guarded = GuardedDisk::open(Arc::new(disk.clone()), Path::new("/data"), on_failed_sync);
    Arc::new(guarded.unwrap())
}

/// Commits until a sync fails; answers how many traces are acknowledged.
fn work(disk: Arc<GuardedDisk>, boot: u64, first: u64) -> (u64, Result<(), BlockError>) {
    let options = BlockOptions {
        boot,
        max_open_files: 2,
        ..BlockOptions::default()
    };
    let store = match BlockStore::open(disk, Path::new(DIR), options) {
        Ok(store) => store,
        Err(error) => return (first, Err(error)),
    };
    let mut next = first;
    for bucket in BUCKETS {
        if let Err(error) = store.commit(&write(bucket, "a", next..next + 3)) {
            return (next, Err(error));
        }
        next += 3;
    }
    (next, Ok(()))
}

/// The `syncs`-th sync fails. False when there are not so many.
fn run(syncs: u64) -> bool {
    // Given blocks whose process stopped at a failed sync
    let disk = SimulatedDisk::new(syncs);
    let stopped = Arc::new(AtomicBool::new(false));
    let first_process = guarded(&disk, &stopped);
    disk.fail_sync(syncs);
    let (acknowledged, worked) = work(first_process, 1, 0);
    if !stopped.load(Ordering::Relaxed) {
        worked.unwrap();
        return false;
    }

    // When the next process goes on without a restart of the machine, and the power fails
    let (end, worked) = work(guarded(&disk, &stopped), 2, 100);
    worked.unwrap();
    disk.power_loss();

    // Then every acknowledged trace is there
    let store = open(&disk, 3);
    for number in (0..acknowledged).chain(100..end) {
        assert_eq!(
            fetch(&store, "a", number),
            spans(number),
            "sync {syncs}, trace {number}"
        );
    }
    true
}

#[test]
fn a_failed_sync_costs_no_block_at_a_later_power_loss() {
    let failed = (1..200).take_while(|syncs| run(*syncs)).count();
    assert!(failed > 2 * BUCKETS.len(), "{failed}");
}
