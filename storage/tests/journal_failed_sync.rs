//! A sync fails, the process is started again on the same boot of the machine, and the power fails later.
//!
//! The simulation found it: reads showed what a failed sync had lost, redb built on it, and the next power loss left
//! a slice that did not open.

#![allow(clippy::unwrap_used)]

mod support;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use spandrel_model::ids::UnixNanos;
use spandrel_storage::disk::{Disk, GuardedDisk, SimulatedDisk};
use spandrel_storage::journal::{Journal, JournalError};
use support::workload::{Acknowledged, DIR, check, open, options, work};
use support::{NOW, Numbers};

/// A process that guards its disk and counts how often it was told to stop.
struct Process {
    disk: Arc<dyn Disk>,
    stops: Arc<AtomicU64>,
}

fn start(disk: &SimulatedDisk) -> Process {
    let stops = Arc::new(AtomicU64::new(0));
    let told = Arc::clone(&stops);
    let on_failed_sync = Box::new(move |_: &str| {
        told.fetch_add(1, Ordering::Relaxed);
    });
    let inner: Arc<dyn Disk> = Arc::new(disk.clone());
    let guarded = GuardedDisk::open(inner, Path::new("/data"), on_failed_sync).unwrap();
    Process {
        disk: Arc::new(guarded),
        stops,
    }
}

fn open_guarded(process: &Process, disk: &SimulatedDisk) -> Result<Journal, JournalError> {
    let dir = Path::new(DIR);
    let (journal, corrupt) = Journal::open(
        Arc::clone(&process.disk),
        dir,
        options(disk),
        UnixNanos(NOW),
    )?;
    assert_eq!(corrupt, []);
    Ok(journal)
}

/// The `syncs`-th sync of a journal's work fails. False when there are not so many.
fn run(syncs: u64) -> bool {
    // Given a journal whose process stopped at a failed sync
    let disk = SimulatedDisk::new(syncs);
    let mut numbers = Numbers(syncs ^ 0x5157);
    let mut known = Acknowledged::default();
    let process = start(&disk);
    disk.fail_sync(syncs);
    let worked =
        open_guarded(&process, &disk).and_then(|journal| work(&journal, &mut numbers, &mut known));
    let stops = process.stops.load(Ordering::Relaxed);
    // The last syncs are those of closing files.
    assert!(stops == 1 || (stops == 0 && worked.is_ok()), "{worked:?}");
    drop(process);
    if stops == 0 {
        return false;
    }

    // When the next process goes on, without a restart of the machine
    let process = start(&disk);
    let journal = open_guarded(&process, &disk).unwrap();
    check(&journal, &mut known);
    work(&journal, &mut numbers, &mut known).unwrap();
    drop((journal, process));

    // Then a power loss takes nothing that was acknowledged
    disk.power_loss();
    check(&open(&disk).unwrap(), &mut known);
    true
}

#[test]
fn a_failed_sync_costs_nothing_at_a_later_power_loss() {
    let failed = (1..200).take_while(|syncs| run(*syncs)).count();
    assert!(failed > 40, "{failed}");
}
