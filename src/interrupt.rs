//! Whether somebody wants this process to stop: what has begun is undone then, and nothing new
//! begins. Whoever does what may last asks now and again.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::sys::signal;

static ASKED: AtomicBool = AtomicBool::new(false);
static CAUGHT: AtomicBool = AtomicBool::new(false);

pub fn asked() -> bool {
    ASKED.load(Ordering::Relaxed)
}

/// Has ctrl-C and SIGTERM ask, and tells the person so; a second one ends the process at once. It
/// takes no thread, so that this process may still be forked.
pub fn catch() -> io::Result<()> {
    // Caught twice, the first signal would be its own second.
    if CAUGHT.swap(true, Ordering::Relaxed) { Ok(()) } else { signal::catch_interrupt(&ASKED, true) }
}

/// For a process of the daemon's, which may be asked often: when the daemon is killed it passes its
/// children on from thread to thread as these die, and each sends the signal. What hangs the daemon
/// kills.
pub fn catch_from_daemon() -> io::Result<()> {
    signal::catch_interrupt(&ASKED, false)
}
