//! The program with a wall clock that somebody else shifts: for the fault `clock` of the chaos runner, and for nothing
//! else. The file that `SPANDREL_SHIFT_FILE` names holds by how many milliseconds the clock is ahead, negative when it is
//! behind, and may be replaced at any time.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use spandrel_actors::Clock;
use spandrel_model::ids::UnixNanos;
use spandrel_node::program;
use spandrel_node::system_clock::SystemClock;

/// As in the binary.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// The machine's clock and a shift.
struct ShiftedClock {
    file: PathBuf,
}

impl Clock for ShiftedClock {
    #[allow(clippy::panic)] // a run whose clock is not the one that was asked for proves nothing
    fn now(&self) -> UnixNanos {
        let text = std::fs::read_to_string(&self.file);
        let shift_ms = text.ok().and_then(|text| text.trim().parse::<i64>().ok());
        let Some(shift_ms) = shift_ms else {
            panic!("{} holds no shift", self.file.display());
        };
        let (now, shift) = (
            SystemClock.now(),
            shift_ms.unsigned_abs() * UnixNanos::PER_MILLI,
        );
        if shift_ms < 0 {
            now.minus(shift)
        } else {
            now.plus(shift)
        }
    }

    fn thread_cpu_nanos(&self) -> u64 {
        SystemClock.thread_cpu_nanos()
    }
}

fn main() -> ExitCode {
    #[allow(clippy::disallowed_methods)] // it is no setting of the program
    let Some(file) = std::env::var_os("SPANDREL_SHIFT_FILE") else {
        eprintln!("error: SPANDREL_SHIFT_FILE must name the file that holds the shift");
        return ExitCode::FAILURE;
    };
    program::run(Arc::new(ShiftedClock { file: file.into() }))
}
