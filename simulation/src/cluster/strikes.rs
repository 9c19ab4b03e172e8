//! How each kind of fault strikes, and how it ends.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;
use spandrel_raft::ClusterState;
use spandrel_storage::disk::{Disk, DiskImage, SimulatedDisk};

use super::fleet::Order;
use super::machine::Presence;
use super::plan::Planned;
use super::player::{DISK_BYTES, Player, RESTART_MS};
use super::streams::host;
use crate::faults::FaultKind;
use crate::life::data_dir;

/// Milliseconds between two kills of a storm at most.
const STORM_MS: u64 = 1_500;
/// Operations of the disk after which the power fails, at most.
const POWER_OPERATIONS: u64 = 3_000;
/// Bytes of a page of redb.
const REDB_PAGE: usize = 4_096;
/// Two pages that differ are looked for so often.
const MISDIRECTIONS: u32 = 200;

impl Player {
    pub(super) fn strike(&mut self, planned: &Planned) {
        let (kind, place, other) = (planned.kind, planned.place, planned.other);
        let fleet = Arc::clone(&self.fleet);
        fleet.world.note(format!(
            "fault of node {} for {} ms: {kind} {}",
            place + 1,
            planned.for_ms,
            planned.amount
        ));
        let again_ms = self.now_ms() + planned.for_ms;
        if self.machines[place].presence != Presence::Here {
            return;
        }
        let runs = self.runs(place);
        match kind {
            FaultKind::Kill if runs => self.end(place, again_ms),
            FaultKind::PowerLoss if runs && planned.amount.is_multiple_of(2) => {
                self.power_off(place, again_ms);
            }
            FaultKind::PowerLoss if runs => {
                let operations = planned.amount % POWER_OPERATIONS + 1;
                return fleet.arm(place, |disk| disk.fail_power_after(operations));
            }
            FaultKind::Blackout => return self.blackout(planned.for_ms),
            FaultKind::Stop if self.serves(place) => {
                self.machines[place].stops = true;
                return fleet.stop(place);
            }
            // Counts when the process goes on.
            FaultKind::Pause if runs => {
                self.machines[place].paused_until_ms = again_ms;
                return;
            }
            FaultKind::RestartStorm if runs => {
                self.machines[place].storm = planned.amount;
                return self.end(place, self.now_ms() + 100);
            }
            FaultKind::CrashInStart => {
                self.end(place, self.now_ms() + 100);
                self.machines[place].dies_after = Some(planned.amount);
                return;
            }
            // These count when the disk has failed somebody.
            FaultKind::FailedSync => {
                return fleet.arm(place, |disk| disk.fail_sync(planned.amount));
            }
            FaultKind::FailedWrite => {
                return fleet.arm(place, |disk| disk.fail_write(planned.amount));
            }
            FaultKind::FailedRead => {
                return fleet.arm(place, |disk| disk.fail_read(planned.amount));
            }
            FaultKind::FullDisk => {
                let used = fleet.disks[place].used_bytes();
                return fleet.disks[place].set_capacity(used + planned.amount);
            }
            FaultKind::SlowDisk if runs => fleet.set_slow(place, planned.amount),
            FaultKind::HungDisk if runs => fleet.hang(place, again_ms),
            FaultKind::Rot if runs => {
                self.end(place, again_ms);
                match planned.amount % 2 {
                    0 if self.rot(place) => {}
                    1 if self.misdirect(place) => return fleet.fired(FaultKind::Misdirected),
                    _ => return,
                }
            }
            FaultKind::LostIndex if runs => {
                self.end(place, again_ms);
                if !self.delete_index(place) {
                    return;
                }
            }
            FaultKind::LostDisk | FaultKind::Leave => {
                return self.postponed.push(planned.clone());
            }
            FaultKind::OldDisk if self.serves(place) => {
                let image = fleet.disks[place].image();
                fleet.places()[place].image = Some(image);
                // The next start begins another life, or the node does while it runs.
                if planned.amount.is_multiple_of(2) {
                    self.end(place, self.now_ms() + RESTART_MS / 4);
                }
                return;
            }
            FaultKind::ClockSkew | FaultKind::ClockJump | FaultKind::ClockDrift if runs => {
                fleet.world.demands().clocks_differ = true;
                match kind {
                    FaultKind::ClockDrift => fleet.clocks[place].drift(planned.offset_ms()),
                    _ => fleet.clocks[place].set_offset_ms(planned.offset_ms()),
                }
            }
            FaultKind::Isolation if runs => self.network.cut_off(&[place]),
            FaultKind::Partition if runs => self.network.cut_off(&[place, other]),
            FaultKind::OneWay if runs => {
                self.network.sim.partition_oneway(host(place), host(other));
            }
            FaultKind::Held if runs => self.network.sim.hold(host(place), host(other)),
            FaultKind::SlowLink if runs => self.network.slow(place, other, planned.amount),
            FaultKind::Jitter if runs => self.network.jitter(place, other, planned.amount),
            FaultKind::LossyLink if runs => {
                let per_mille = u32::try_from(planned.amount).unwrap_or_default();
                self.network.lose(place, other, per_mille);
            }
            FaultKind::HalfOpen if runs => {
                self.network.cut_off(&[place]);
                if let Some(kernel) = self.kernel(place) {
                    kernel.sever();
                }
            }
            FaultKind::Join => {
                let later = self
                    .machines
                    .iter_mut()
                    .find(|machine| machine.presence == Presence::Later);
                let Some(machine) = later else { return };
                machine.presence = Presence::Here;
            }
            FaultKind::PolicyChange => {
                fleet.order(place, Order::ChangePolicy);
                return;
            }
            FaultKind::MemoryPressure if runs => {
                fleet.places()[place].small_pool = Some(planned.amount);
                return self.end(place, self.now_ms() + RESTART_MS / 4);
            }
            _ => return,
        }
        fleet.fired(kind);
    }

    pub(super) fn cease(&mut self, planned: &Planned) {
        let (place, other) = (planned.place, planned.other);
        let fleet = Arc::clone(&self.fleet);
        match planned.kind {
            FaultKind::FullDisk => fleet.disks[place].set_capacity(DISK_BYTES),
            FaultKind::SlowDisk => fleet.set_slow(place, 0),
            FaultKind::HungDisk => fleet.hang(place, 0),
            FaultKind::ClockSkew | FaultKind::ClockJump | FaultKind::ClockDrift => {
                fleet.clocks[place].set_offset_ms(0)
            }
            FaultKind::Isolation | FaultKind::HalfOpen => self.network.join_again(&[place]),
            FaultKind::Partition => self.network.join_again(&[place, other]),
            FaultKind::OneWay => self.network.sim.repair_oneway(host(place), host(other)),
            FaultKind::Held => self.network.sim.release(host(place), host(other)),
            FaultKind::SlowLink | FaultKind::Jitter | FaultKind::LossyLink => {
                self.network.restore(place, other);
            }
            FaultKind::OldDisk => self.postponed.push(planned.clone()),
            FaultKind::MemoryPressure => {
                fleet.places()[place].small_pool = None;
                fleet.stop(place);
            }
            _ => {}
        }
    }

    /// Everything is well from now on, and who is down comes back.
    pub(super) fn end_faults(&mut self) {
        self.network.restore_all();
        self.postponed.clear();
        let now = self.now_ms();
        for place in 0..self.machines.len() {
            self.fleet.clocks[place].set_offset_ms(0);
            self.fleet.disks[place].set_capacity(DISK_BYTES);
            self.fleet.set_slow(place, 0);
            self.fleet.hang(place, 0);
            self.fleet.arm(place, |disk| disk.disarm());
            let machine = &mut self.machines[place];
            machine.storm = 0;
            machine.dies_after = None;
            machine.paused_until_ms = machine.paused_until_ms.min(now + 1);
            machine.again_ms = machine.again_ms.min(now + RESTART_MS);
            let is_small = self.fleet.places()[place].small_pool.take().is_some();
            if is_small || self.fleet.places()[place].now.is_hurt {
                // redb answers with the first error of a file until the process starts anew.
                self.fleet.stop(place);
            }
        }
    }

    fn blackout(&mut self, for_ms: u64) {
        let running = self.here().into_iter().filter(|place| self.runs(*place));
        let running: Vec<usize> = running.collect();
        for place in &running {
            let again_ms = self.now_ms() + self.fleet.below(for_ms + 1);
            self.power_off(*place, again_ms);
        }
        if running.len() > 1 {
            self.fleet.fired(FaultKind::Blackout);
        }
    }

    /// The next kill of a storm is planned when its process begins.
    pub(super) fn next_of_storm(&mut self, place: usize) {
        if self.machines[place].storm > 0 {
            self.machines[place].dies_at_ms = self.now_ms() + 5 + self.fleet.below(STORM_MS);
        }
    }

    pub(super) fn storm(&mut self, place: usize, now: u64) {
        let machine = &self.machines[place];
        if machine.storm == 0 || machine.process.is_none() || now < machine.dies_at_ms {
            return;
        }
        self.machines[place].storm -= 1;
        if self.machines[place].storm == 0 {
            self.fleet.fired(FaultKind::RestartStorm);
        }
        let again_ms = now + self.fleet.below(200);
        self.end(place, again_ms);
    }

    /// Faults that take data along strike when the others have all of it.
    pub(super) fn strike_postponed(&mut self, state: &ClusterState) {
        let here = self.here();
        let waits = self.postponed.is_empty()
            || !self.leaving.is_empty()
            || !here.iter().all(|place| self.serves(*place))
            || self.fleet.unsettled(state, here.len()).is_some();
        if waits {
            return;
        }
        let planned = self.postponed.remove(0);
        let (place, fleet) = (planned.place, Arc::clone(&self.fleet));
        fleet.note(place, &format!("{} strikes now", planned.kind));
        match planned.kind {
            FaultKind::LostDisk => {
                self.end(place, self.now_ms() + planned.for_ms);
                self.wipe(place);
                fleet.fired(FaultKind::LostDisk);
            }
            FaultKind::Leave => {
                self.leaving.push(place);
                fleet.order(place, Order::Leave);
            }
            FaultKind::OldDisk => {
                let image = fleet.places()[place].image.take();
                let node = fleet.places()[place].node;
                let life = node.and_then(|node| state.lives.get(&node)).copied();
                let image = image.filter(|image| life.is_some_and(|life| !knows(image, life)));
                let Some(image) = image else { return };
                self.end(place, self.now_ms() + RESTART_MS);
                fleet.disks[place].restore(&image);
                fleet.places()[place].is_image = true;
            }
            _ => {}
        }
    }

    /// Flips bits in blocks and indexes. False when there are none.
    fn rot(&mut self, place: usize) -> bool {
        let disk = &self.fleet.disks[place];
        let files = files_in(disk, &["blocks", "index"]);
        let mut has_rotted = false;
        for _ in 0..1 + self.fleet.below(3) {
            let Some(path) = self.one_of(&files) else {
                return false;
            };
            let offset = self.fleet.below(disk.len_of(path).unwrap_or_default());
            let mask = 1 << self.fleet.below(8);
            if disk.flip(path, offset, mask) {
                self.note_damage(place, &format!("{} rots at {offset}", path.display()));
                has_rotted = true;
            }
        }
        has_rotted
    }

    /// Puts a page of a block in another one's place. False when none is changed by that.
    fn misdirect(&mut self, place: usize) -> bool {
        let disk = &self.fleet.disks[place];
        let Some(path) = self.one_of(&files_in(disk, &["blocks"])).cloned() else {
            return false;
        };
        let pages = disk.len_of(&path).unwrap_or_default() / REDB_PAGE as u64;
        // Most of a small file has never been written.
        for _ in 0..MISDIRECTIONS {
            let [from, to] = [(); 2].map(|()| self.fleet.below(pages) * REDB_PAGE as u64);
            if disk.misdirect(&path, from, to, REDB_PAGE) {
                let name = path.display();
                self.note_damage(place, &format!("{name}: what is at {from} is at {to}, too"));
                return true;
            }
        }
        false
    }

    fn one_of<'a>(&self, paths: &'a [PathBuf]) -> Option<&'a PathBuf> {
        let number = self.fleet.below(paths.len() as u64);
        paths.get(usize::try_from(number).unwrap_or_default())
    }

    fn note_damage(&self, place: usize, what: &str) {
        self.fleet.note(place, what);
        let node = self.fleet.places()[place].node;
        self.fleet.world.demands().rotted.extend(node);
        crate::panics::expect_damage();
    }

    /// False when there is none.
    fn delete_index(&mut self, place: usize) -> bool {
        let index = data_dir().join("index");
        let disk = &self.fleet.disks[place];
        let is_there = |path: &Path| path.starts_with(&index);
        let found = disk.paths().iter().any(|path| is_there(path));
        let removed = disk
            .remove_dir_all(&index)
            .and_then(|()| disk.sync_dir(&index));
        if let Err(error) = removed {
            self.fleet
                .note(place, &format!("the index cannot be deleted: {error}"));
        }
        found
    }
}

/// The files of some directories of a node.
fn files_in(disk: &SimulatedDisk, dirs: &[&str]) -> Vec<PathBuf> {
    let dirs: Vec<PathBuf> = dirs.iter().map(|dir| data_dir().join(dir)).collect();
    let paths = disk.paths().into_iter();
    paths
        .filter(|path| dirs.iter().any(|dir| path.starts_with(dir)))
        .collect()
}

/// Whether an image knows a life of its directory, so that it cannot be told from the node itself.
fn knows(image: &DiskImage, life: u64) -> bool {
    let identity = image.file(&data_dir().join("identity.json"));
    let identity = identity.and_then(|bytes| serde_json::from_slice::<Value>(bytes).ok());
    let lives = identity
        .as_ref()
        .and_then(|identity| identity["lives"].as_array());
    lives.is_none_or(|lives| lives.iter().any(|known| known.as_u64() == Some(life)))
}
