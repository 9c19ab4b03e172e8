#![allow(clippy::unwrap_used)]

use std::sync::atomic::AtomicUsize;

use super::*;
use crate::disk::{RealDisk, SimulatedDisk};

const DIR: &str = "/data";

/// A guard, and how often it told of a failed sync.
fn guard(inner: &SimulatedDisk) -> (GuardedDisk, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let told = Arc::clone(&count);
    let on_failed_sync = Box::new(move |_: &str| {
        told.fetch_add(1, Ordering::Relaxed);
    });
    let inner = Arc::new(inner.clone());
    let guard = GuardedDisk::open(inner, Path::new(DIR), on_failed_sync).unwrap();
    (guard, count)
}

fn list(disk: &SimulatedDisk) -> String {
    let list = disk.read(&Path::new(DIR).join(FILE)).unwrap();
    assert_eq!(list.len(), SUSPICION_FILE_BYTES);
    let text = list.split(|byte| *byte == 0).next().unwrap();
    String::from_utf8(text.to_vec()).unwrap()
}

fn path(name: &str) -> PathBuf {
    Path::new(DIR).join(name)
}

#[test]
fn what_a_failed_sync_lost_is_durable_after_the_next_start() {
    for seed in 0..50 {
        let disk = SimulatedDisk::new(seed);
        let (guard_1, told) = guard(&disk);
        let file = guard_1.create(&path("a")).unwrap();
        file.write(0, &[1; 3_000]).unwrap();
        file.sync_data().unwrap();
        guard_1.sync_dir(Path::new(DIR)).unwrap();
        // Given a sync that fails after a shrink and a write
        file.set_len(2_000).unwrap();
        file.write(500, &[2; 1_000]).unwrap();
        disk.fail_sync(1);
        assert!(file.sync_data().is_err());
        assert_eq!(told.load(Ordering::Relaxed), 1);
        assert_eq!(list(&disk), "a\n");
        let read = disk.read(&path("a")).unwrap();

        // When the process is started again, and the power fails later
        let (guard_2, _) = guard(&disk);
        assert_eq!(list(&disk), "");
        drop(guard_2);
        disk.power_loss();

        // Then the disk has what was read
        assert_eq!(disk.read(&path("a")).unwrap(), read, "seed {seed}");
    }
}

#[test]
fn a_renamed_file_is_named_as_it_is_called_now() {
    let disk = SimulatedDisk::new(1);
    let (guard, told) = guard(&disk);
    let file = guard.create(&path("a.tmp")).unwrap();
    file.sync_data().unwrap();
    guard.rename(&path("a.tmp"), &path("a")).unwrap();
    disk.fail_sync(1);
    assert!(file.sync_data().is_err());
    disk.fail_sync(1);
    assert!(guard.sync_dir(Path::new(DIR)).is_err());
    disk.fail_sync(1);
    assert!(guard.write_atomically(&path("b"), b"b").is_err());
    assert_eq!(list(&disk), "a\n.\nb.tmp\n");
    // Told once: the process is on its way out.
    assert_eq!(told.load(Ordering::Relaxed), 1);
}

#[test]
fn an_ordinary_failure_of_a_write_tells_nobody() {
    let disk = SimulatedDisk::new(1);
    let (guard, told) = guard(&disk);
    disk.set_capacity(20_000);
    let file = guard.create(&path("a")).unwrap();
    assert!(file.write(0, &[1; 30_000]).is_err());
    assert_eq!(
        (told.load(Ordering::Relaxed), list(&disk)),
        (0, String::new())
    );
}

#[test]
fn more_failures_than_the_list_has_room_for_make_everything_suspicious() {
    let disk = SimulatedDisk::new(1);
    let (guard_1, _) = guard(&disk);
    guard_1.create_dir_all(&path("deep/er")).unwrap();
    let file = guard_1.create(&path("deep/er/last")).unwrap();
    file.write(0, &[1; 5_000]).unwrap();
    file.sync_data().unwrap();
    guard_1.sync_dir(&path("deep/er")).unwrap();
    let name = "n".repeat(900);
    for number in 0..20 {
        let file = guard_1.create(&path(&format!("{name}{number}"))).unwrap();
        disk.fail_sync(1);
        assert!(file.sync_data().is_err());
    }
    file.write(0, &[2; 5_000]).unwrap();
    disk.fail_sync(1);
    assert!(file.sync_data().is_err());
    assert!(list(&disk).contains("\n*\n"));

    drop(guard(&disk));
    disk.power_loss();

    assert_eq!(disk.read(&path("deep/er/last")).unwrap(), [2; 5_000]);
}

#[test]
fn a_suspect_that_cannot_be_synced_stops_the_start_and_stays_suspicious() {
    let disk = SimulatedDisk::new(1);
    let (guard_1, _) = guard(&disk);
    let file = guard_1.create(&path("a")).unwrap();
    disk.fail_sync(1);
    assert!(file.sync_data().is_err());
    drop((file, guard_1));

    disk.fail_sync(1);
    let inner = Arc::new(disk.clone());
    let error = GuardedDisk::open(inner, Path::new(DIR), Box::new(|_| {})).unwrap_err();

    assert_eq!(error.path, path("a"));
    assert_eq!(list(&disk), "a\n");
    drop(guard(&disk));
    assert_eq!(list(&disk), "");
}

#[test]
fn a_list_that_was_cut_off_or_leads_elsewhere_means_everything() {
    let named = |names: &[&str]| Suspects::Named(names.iter().map(PathBuf::from).collect());
    assert_eq!(suspects(b""), named(&[]));
    assert_eq!(suspects(b"\0\0"), named(&[]));
    assert_eq!(suspects(b"a/b\n.\n\0"), named(&["a/b", "."]));
    let odd: [&[u8]; 6] = [
        b"a/b",
        b"a\n*\n",
        b"../a\n",
        b"/a\n",
        b"\xff\n",
        b"a\nb\0c\n",
    ];
    for list in odd {
        assert_eq!(suspects(list), Suspects::Everything);
    }
}

#[test]
fn real_files_and_directories_are_written_again() {
    let dir = tempfile::tempdir().unwrap();
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let open = || GuardedDisk::open(Arc::clone(&disk), dir.path(), Box::new(|_| {}));
    drop(open().unwrap());
    std::fs::create_dir(dir.path().join("inside")).unwrap();
    let content = vec![7; REWRITE_CHUNK_BYTES + 100];
    std::fs::write(dir.path().join("inside/a"), &content).unwrap();
    for listed in ["inside/a\ninside\n.\ngone\n", "*\n"] {
        std::fs::write(dir.path().join(FILE), listed).unwrap();

        drop(open().unwrap());

        let blank = vec![0; SUSPICION_FILE_BYTES];
        assert_eq!(std::fs::read(dir.path().join(FILE)).unwrap(), blank);
        assert_eq!(std::fs::read(dir.path().join("inside/a")).unwrap(), content);
        assert_eq!(
            std::fs::read_dir(dir.path().join("inside"))
                .unwrap()
                .count(),
            1
        );
    }
}
