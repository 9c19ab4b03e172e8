//! The tasks of the links, supervised together: they end with the links, and a panic in one stops the node.

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::runtime::Handle;
use tokio::task::{JoinError, JoinSet};

/// See the module.
pub(crate) struct Tasks {
    runtime: Handle,
    /// `None` once they were stopped.
    running: Mutex<Option<JoinSet<()>>>,
    halt: Arc<dyn Fn(&str) + Send + Sync>,
}

impl Tasks {
    /// Tasks of the runtime that the caller is in.
    pub(crate) fn new(halt: Arc<dyn Fn(&str) + Send + Sync>) -> Self {
        Self {
            runtime: Handle::current(),
            running: Mutex::new(Some(JoinSet::new())),
            halt,
        }
    }

    /// Runs a task; drops it when all were stopped before.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(tasks) = running.as_mut() else {
            return;
        };
        while let Some(ended) = tasks.try_join_next() {
            self.judge(ended);
        }
        tasks.spawn_on(task, &self.runtime);
    }

    /// Tells all to end; returns those that still run.
    pub(crate) fn stop(&self) -> Option<JoinSet<()>> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let mut tasks = running.take()?;
        tasks.abort_all();
        Some(tasks)
    }

    fn judge(&self, ended: Result<(), JoinError>) {
        if ended.is_err_and(|error| error.is_panic()) {
            (self.halt)("a task of the links panicked");
        }
    }
}
