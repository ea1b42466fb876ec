//! Faults that were not survived once. A number of a call is not the same for long, so that each is
//! named by the place that the call is made from.

use nix::errno::Errno;

use super::operations::Operation;
use super::sample::Case;
use super::sweep::{all, prime, title};
use super::tracer::Fault;
use super::{ATTEMPTS, HOST, meet, steps};
use crate::machine::Machine;

/// The operation, how the place begins, and the fault.
const ONCE: &[(&str, &str, Fault)] = &[
    // What could not be listed was taken for empty: a snapshot without what the jail had written.
    ("snapshot", "openat ~/state/jails/# upper ", Fault::Error(Errno::EMFILE)),
    ("snapshot", "getdents64 ~/state/jails/#/upper ", Fault::Error(Errno::EIO)),
    // A range of ids was recorded and could not be made durable: it was never given back.
    ("import", "openat . ~/state/jails/.importing-# after rename", Fault::Error(Errno::EMFILE)),
    // A first process that could not go on ended with 125, and its reason was not told.
    ("run", "read anon_inode:[signalfd] ", Fault::Error(Errno::EIO)),
    // An apply that was interrupted at its lock waited for itself.
    ("start", "flock ~/run/apply.lock", Fault::Error(Errno::EINTR)),
    // A keeper that could not hear that it is to keep its jail ended it, after `started` was told.
    ("start", "recvfrom socket:[#] after ppoll", Fault::Error(Errno::ENOSPC)),
    // What a jail's writes are was looked at twice, came out differently, and half was left out.
    ("later snapshot", "statx ~/state/jails/#/upper ", Fault::Error(Errno::EMFILE)),
];

#[test]
fn what_failed_once_is_survived() {
    let machines = Machine::several(1);
    let [machine] = &machines[..] else { return };
    machine.host(HOST);
    for (name, place, fault) in ONCE {
        let operation = all().find(|operation| operation.name == *name).expect("it is in the table");
        let clean = prime(&machines, operation).remove(0);
        let mut runs = (0..ATTEMPTS).map(|_| cases(machine, operation, place, *fault));
        let cases = runs.find(|cases| !cases.is_empty());
        let cases = cases.unwrap_or_else(|| panic!("{name}: no call is `{place}`"));
        for case in &cases {
            let met = meet(machine, operation, &clean, case);
            assert!(met.is_ok(), "{}: {}", title(operation, case), met.err().unwrap_or_default());
        }
    }
}

/// Some calls are not made in every run, such as one for a signal that comes beside another.
fn cases(machine: &Machine, operation: &Operation, place: &str, fault: Fault) -> Vec<Case> {
    let steps = steps(machine, operation).into_iter().filter(|(_, of)| of.starts_with(place));
    steps.map(|(step, _)| (step, fault)).collect()
}
