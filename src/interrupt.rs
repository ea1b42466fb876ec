//! Whether somebody wants this process to stop: what has begun is undone then, and nothing new
//! begins. Whoever does what may last asks now and again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::sys::signal::Signals;

static ASKED: AtomicBool = AtomicBool::new(false);

pub fn ask() {
    ASKED.store(true, Ordering::Relaxed);
}

pub fn asked() -> bool {
    ASKED.load(Ordering::Relaxed)
}

/// Has ctrl-C and SIGTERM ask, and says so; a second one ends this process at once. It takes a
/// thread: who forks has [`crate::sys::process::catch_interrupt`].
pub fn catch() -> Result<()> {
    for signal in [SIGINT, SIGTERM] {
        let again = Arc::new(AtomicBool::new(false));
        signal_hook::flag::register_conditional_shutdown(signal, 128 + SIGINT, again.clone())?;
        signal_hook::flag::register(signal, again)?;
    }
    let signals = Signals::catch(&[SIGINT, SIGTERM])?;
    let wait = move || {
        signals.wait();
        ask();
        eprintln!("stockade: interrupted; clearing up, once more to end at once");
    };
    std::thread::Builder::new().spawn(wait).context("start a thread")?;
    Ok(())
}
