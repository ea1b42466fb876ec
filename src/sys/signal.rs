//! Thin: what is done in a signal's handler. It asks for an end, or it calls sem_post(3) for a thread
//! in sem_wait(3): unlike a byte that is sent to the other end of a socket, that needs no memory and
//! cannot be lost.

use std::cell::UnsafeCell;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// What the handler and the waiting thread share.
struct Bell {
    semaphore: UnsafeCell<libc::sem_t>,
    /// A bit for each signal that has come and was not taken yet.
    pending: AtomicU64,
}

// SAFETY: the semaphore is made to be used from several threads, and by sem_post(3) and sem_wait(3)
// alone; it is never moved, for it lives as long as the program.
unsafe impl Sync for Bell {}

/// Signals that no longer do what they do by default, but are waited for.
pub struct Signals {
    bell: &'static Bell,
}

impl Signals {
    pub fn catch(signals: &[i32]) -> io::Result<Self> {
        // SAFETY: all zeros are a value of this C structure, which sem_init(3) then fills in.
        let semaphore = UnsafeCell::new(unsafe { std::mem::zeroed() });
        let bell: &'static Bell = Box::leak(Box::new(Bell { semaphore, pending: AtomicU64::new(0) }));
        // SAFETY: nobody else knows the semaphore yet, and it is at its place for good.
        if unsafe { libc::sem_init(bell.semaphore.get(), 0, 0) } != 0 {
            return Err(io::Error::last_os_error());
        }
        for &signal in signals {
            let act = move || {
                bell.pending.fetch_or(1 << signal, Ordering::SeqCst);
                // SAFETY: the semaphore was initialised, and sem_post(3) may be called by a handler
                // (signal-safety(7)). It fails only where it counts two thousand million.
                unsafe { libc::sem_post(bell.semaphore.get()) };
            };
            // SAFETY: the action changes an atomic and calls sem_post(3), as a handler may.
            unsafe { signal_hook::low_level::register(signal, act)? };
        }
        Ok(Self { bell })
    }

    /// The next of them. One that comes again before it is taken is taken once, as ever.
    pub fn wait(&self) -> i32 {
        loop {
            // SAFETY: the semaphore was initialised. An interrupted wait finds nothing pending.
            unsafe { libc::sem_wait(self.bell.semaphore.get()) };
            let pending = self.bell.pending.load(Ordering::SeqCst);
            if pending != 0 {
                let signal = pending.trailing_zeros();
                self.bell.pending.fetch_and(!(1 << signal), Ordering::SeqCst);
                return signal.cast_signed();
            }
        }
    }
}

/// What a person is told whose ctrl-C was heard.
const CLEARING_UP: &str = "stockade: interrupted; clearing up, once more to end at once\n";

/// Has SIGINT and SIGTERM set `asked`. With `told`, this process, but none that it forks, says so, and
/// a second one ends each at once.
pub fn catch_interrupt(asked: &'static AtomicBool, told: bool) -> io::Result<()> {
    let catcher = std::process::id();
    for signal in [libc::SIGINT, libc::SIGTERM] {
        let act = move || {
            if asked.swap(true, Ordering::Relaxed) && told {
                super::process::exit_now(128 + libc::SIGINT);
            }
            if told && std::process::id() == catcher {
                // SAFETY: write(2) from a constant text of that length. Who reads no more of what
                // is said needs no error.
                unsafe { libc::write(libc::STDERR_FILENO, CLEARING_UP.as_ptr().cast(), CLEARING_UP.len()) };
            }
        };
        // SAFETY: the action changes an atomic and calls getpid(2), write(2) and _exit(2):
        // a handler may do all of these (signal-safety(7)), and signal-hook keeps errno.
        unsafe { signal_hook::low_level::register(signal, act)? };
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_signal_is_told_of() {
        let signals = Signals::catch(&[libc::SIGUSR1, libc::SIGUSR2]).unwrap();
        for expect in [libc::SIGUSR1, libc::SIGUSR2, libc::SIGUSR1] {
            // SAFETY: raise(3) takes a plain number, of a signal that is caught.
            unsafe { libc::raise(expect) };
            assert_eq!(signals.wait(), expect);
        }
    }
}
