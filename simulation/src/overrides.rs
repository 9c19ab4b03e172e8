//! Link-time replacements of `getrandom`, `getentropy` and `clock_gettime`: within a simulated thread they are seeded
//! and virtual, everywhere else they are the system calls.
//!
//! They catch what no seam of ours reaches: the keys of `HashMap`s in dependencies, their random ids, and
//! `Instant::now` and `SystemTime::now` wherever they are called. Linux only.

use std::cell::{Cell, RefCell};
use std::ffi::{c_int, c_long, c_uint, c_void};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::limits::EPOCH_SECONDS;

const NANOS_PER_SECOND: u64 = 1_000_000_000;
/// `CLOCK_MONOTONIC` at the beginning, in seconds: not 0, because dependencies subtract from it.
const MONOTONIC_START_SECONDS: u64 = 100_000;
/// Most bytes that `getentropy` gives at once, by POSIX.
const MAX_ENTROPY_BYTES: usize = 256;

// Both are const-initialised and need no destructor: reading them neither allocates nor fails, even while a thread
// starts or ends.
thread_local! {
    static RANDOM: RefCell<Option<ChaCha8Rng>> = const { RefCell::new(None) };
    static ELAPSED_NANOS: Cell<Option<u64>> = const { Cell::new(None) };
}

/// Makes this thread a simulated one, whose random numbers follow from `seed` and whose clock stands at the epoch.
///
/// # Panics
/// When the linker did not take the replacements: every simulation would be a lie.
#[allow(clippy::disallowed_methods)] // the override itself is checked
pub(crate) fn install(seed: u64) {
    RANDOM.with(|random| *random.borrow_mut() = Some(ChaCha8Rng::seed_from_u64(seed)));
    set_elapsed_nanos(0);
    let seconds = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let seconds = seconds.map_or(0, |since| since.as_secs());
    assert_eq!(seconds, EPOCH_SECONDS, "clock_gettime is not replaced");
    // On a fresh thread the first hasher draws its keys.
    drop(std::hash::RandomState::new());
    let drawn = RANDOM.with(|random| random.borrow().as_ref().map(ChaCha8Rng::get_word_pos));
    assert_ne!(
        drawn,
        Some(0),
        "getrandom is not replaced, or the thread is not fresh"
    );
}

/// Sets the virtual clock of this thread: nanoseconds since the epoch of the simulation.
pub(crate) fn set_elapsed_nanos(nanos: u64) {
    ELAPSED_NANOS.with(|elapsed| elapsed.set(Some(nanos)));
}

/// Fills `bytes` from the seeded generator of this thread; false when it has none.
fn fill_seeded(bytes: &mut [u8]) -> bool {
    RANDOM.with(|random| match random.try_borrow_mut() {
        Ok(mut random) => match random.as_mut() {
            Some(random) => {
                random.fill_bytes(bytes);
                true
            }
            None => false,
        },
        Err(_) => false,
    })
}

/// The C library's `getrandom`.
///
/// # Safety
/// `buffer` must be valid for writes of `len` bytes, as the original demands.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn getrandom(buffer: *mut c_void, len: usize, flags: c_uint) -> isize {
    // A length of 0 is how callers probe for the call, with a dangling pointer.
    if len > 0 && !buffer.is_null() && isize::try_from(len).is_ok() {
        // SAFETY: the caller promises that `buffer` is valid for writes of `len` bytes, and `len` fits an isize. The
        // bytes may be uninitialised, so they are zeroed before a slice of them is made; nobody else has the buffer
        // during the call.
        let bytes = unsafe {
            std::ptr::write_bytes(buffer.cast::<u8>(), 0, len);
            std::slice::from_raw_parts_mut(buffer.cast::<u8>(), len)
        };
        if fill_seeded(bytes) {
            return isize::try_from(len).unwrap_or(isize::MAX);
        }
    }
    // SAFETY: the arguments are those of the system call of the same name, passed through.
    let result = unsafe { libc::syscall(libc::SYS_getrandom, buffer, len, flags) };
    isize::try_from(result).unwrap_or(-1)
}

/// The C library's `getentropy`.
///
/// # Safety
/// As [`getrandom`].
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn getentropy(buffer: *mut c_void, len: usize) -> c_int {
    if len > MAX_ENTROPY_BYTES {
        return -1;
    }
    // SAFETY: the caller's promise is the one that `getrandom` asks for. Up to 256 bytes come whole.
    let filled = unsafe { getrandom(buffer, len, 0) };
    if usize::try_from(filled) == Ok(len) {
        0
    } else {
        -1
    }
}

/// The C library's `clock_gettime`.
///
/// # Safety
/// `time` must be valid for the write of a `timespec`, as the original demands.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn clock_gettime(clock: libc::clockid_t, time: *mut libc::timespec) -> c_int {
    let start_seconds = match clock {
        libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_COARSE => Some(EPOCH_SECONDS),
        libc::CLOCK_MONOTONIC
        | libc::CLOCK_MONOTONIC_RAW
        | libc::CLOCK_MONOTONIC_COARSE
        | libc::CLOCK_BOOTTIME => Some(MONOTONIC_START_SECONDS),
        // Processor time stays real.
        _ => None,
    };
    let elapsed = ELAPSED_NANOS.with(Cell::get);
    if let (Some(start), Some(nanos), false) = (start_seconds, elapsed, time.is_null()) {
        let seconds = start + nanos / NANOS_PER_SECOND;
        let value = libc::timespec {
            tv_sec: libc::time_t::try_from(seconds).unwrap_or(libc::time_t::MAX),
            tv_nsec: c_long::try_from(nanos % NANOS_PER_SECOND).unwrap_or(0),
        };
        // SAFETY: `time` is not null, and the caller promises that it is valid for the write of a timespec.
        unsafe { time.write(value) };
        return 0;
    }
    // SAFETY: the arguments are those of the system call of the same name, passed through.
    let result = unsafe { libc::syscall(libc::SYS_clock_gettime, clock, time) };
    c_int::try_from(result).unwrap_or(-1)
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)] // what is overridden is tested on threads of its own
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    fn on_a_simulated_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
        let body = || {
            install(7);
            work()
        };
        std::thread::spawn(body).join().unwrap()
    }

    #[test]
    fn a_simulated_thread_has_seeded_hash_keys_and_a_clock_that_stands() {
        use std::hash::BuildHasher;
        let draw = || std::hash::RandomState::new().hash_one("x");
        assert_eq!(on_a_simulated_thread(draw), on_a_simulated_thread(draw));
        let (first, later) = on_a_simulated_thread(|| {
            let before = Instant::now();
            let first = before.elapsed();
            set_elapsed_nanos(5 * NANOS_PER_SECOND);
            (first, before.elapsed())
        });
        assert_eq!((first, later), (Duration::ZERO, Duration::from_secs(5)));
    }

    #[test]
    fn other_threads_keep_the_machine_s_clock_and_randomness() {
        on_a_simulated_thread(|| ());
        let mut bytes = [[0u8; 16]; 2];
        for half in &mut bytes {
            // SAFETY: the slice is valid for writes of its length.
            let filled = unsafe { getrandom(half.as_mut_ptr().cast(), half.len(), 0) };
            assert_eq!(filled, 16);
        }
        assert_ne!(bytes[0], bytes[1]);
    }
}
