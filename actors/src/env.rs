//! The seams: wall time, blocking work, the disk, the links to other nodes and secrets. Production and the simulation
//! differ in nothing else, but that the simulation may ask for what is rare.

use std::sync::Arc;
use std::time::Duration;

use spandrel_model::ids::UnixNanos;
use spandrel_storage::disk::Disk;

use crate::buggify::Buggify;
use crate::limits::{INLINE_WORK_BYTES, SIMULATED_INLINE_WORK_BYTES};
use crate::membership::LinkFactory;
use crate::start_phase::StartPhase;

/// The wall clock.
pub trait Clock: Send + Sync {
    /// Now. May jump either way; nothing that must be safe depends on it.
    fn now(&self) -> UnixNanos;

    /// Nanoseconds of processor time that the calling thread has used, for the metrics alone; 0 where nobody measures.
    fn thread_cpu_nanos(&self) -> u64 {
        0
    }
}

/// Where blocking work (disk, compression) runs.
#[derive(Clone)]
pub enum BlockingMode {
    /// On tokio's blocking threads: production.
    Threads,
    /// On the caller, when the future is first awaited: the simulation, which must not depend on threads. Then the
    /// caller waits for what this returns: how long the disk would have taken.
    Inline(Arc<dyn Fn() -> Duration + Send + Sync>),
}

impl BlockingMode {
    /// Work on the caller, which takes no time.
    #[must_use]
    pub fn inline() -> Self {
        Self::Inline(Arc::new(|| Duration::ZERO))
    }
}

/// Everything that a node takes from the outside world.
#[derive(Clone)]
pub struct Env {
    /// Wall time.
    pub clock: Arc<dyn Clock>,
    /// Files.
    pub disk: Arc<dyn Disk>,
    /// Where blocking work runs.
    pub blocking: BlockingMode,
    /// Stops the process: called when a durable write or any sync failed, because a failed fsync is never retried.
    pub halt: Arc<dyn Fn(&str) + Send + Sync>,
    /// The links to other nodes; [`NoLinks`](crate::membership::NoLinks) for a node that stays alone.
    pub links: Arc<dyn LinkFactory>,
    /// 256 random bits that nobody can guess, others each time: for join tokens, and to tell the starts of a node apart.
    pub secret: Arc<dyn Fn() -> [u8; 32] + Send + Sync>,
    /// Is told how far the start has come.
    pub start_phase: Arc<dyn Fn(StartPhase) + Send + Sync>,
    /// Where the node does what is rare: nowhere, but in the simulation.
    pub buggify: Buggify,
}

impl Env {
    /// Now, by the wall clock.
    #[must_use]
    pub fn now(&self) -> UnixNanos {
        self.clock.now()
    }

    /// A random number, another one each time.
    #[must_use]
    pub(crate) fn random_number(&self) -> u64 {
        let [a, b, c, d, e, f, g, h, ..] = (self.secret)();
        u64::from_le_bytes([a, b, c, d, e, f, g, h])
    }

    /// Raw bytes up to which work of the processor is done at once: in the simulation fewer, so that both ways are
    /// taken there, whose requests are small.
    #[must_use]
    pub(crate) fn inline_work_bytes(&self) -> usize {
        match self.blocking {
            BlockingMode::Threads => INLINE_WORK_BYTES,
            BlockingMode::Inline(_) => SIMULATED_INLINE_WORK_BYTES,
        }
    }

    /// Runs blocking work and waits for it.
    ///
    /// # Panics
    /// When the work panicked: the panic goes on in the caller.
    pub async fn block<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        match &self.blocking {
            BlockingMode::Inline(takes) => {
                let value = work();
                let takes = takes();
                if !takes.is_zero() {
                    tokio::time::sleep(takes).await;
                }
                value
            }
            BlockingMode::Threads => match tokio::task::spawn_blocking(work).await {
                Ok(value) => value,
                Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                // The runtime is shutting down: nobody waits for an answer any more.
                Err(_) => std::future::pending().await,
            },
        }
    }
}

impl std::fmt::Debug for Env {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Env")
            .field("disk", &self.disk)
            .finish_non_exhaustive()
    }
}
