//! Security calls: whichever of them fails, the jail's program never runs.

use std::collections::BTreeSet;

use nix::errno::Errno;

use super::tracer::{Fault, Step};
use super::{calls, operations::Operation, output, run, sample, steps};
use crate::machine::Machine;

/// What takes rights away, or makes the place in which a program is confined.
const CALLS: &[&str] = &[
    "capset",
    "chdir",
    "clone3",
    "close_range",
    "fchdir",
    "fsconfig",
    "fsmount",
    "fsopen",
    "keyctl",
    "mount",
    "mount_setattr",
    "move_mount",
    "open_tree",
    "personality",
    "pivot_root",
    "prctl",
    "prlimit64",
    "seccomp",
    "setdomainname",
    "setgroups",
    "sethostname",
    "setns",
    "setresgid",
    "setresuid",
    "setsid",
    "umount2",
    "unshare",
    "write",
];
/// EIO is one that none of these calls gives, and so none that anything could excuse.
const ERRORS: &[Errno] = &[Errno::EPERM, Errno::EIO];
/// Cases where not all are asked for.
const SAMPLE: usize = 150;

/// A start whose program leaves a mark on the host.
const START: Operation = Operation {
    name: "confinement",
    before: |machine| {
        let shared = machine.path().join("shared");
        std::fs::create_dir_all(&shared).unwrap();
        rustix::fs::chmod(&shared, rustix::fs::Mode::from_raw_mode(0o777)).unwrap();
        let mount = format!("[[mount]]\nsource = '{}'\ntarget = '/mnt'\n", shared.display());
        let command = "command = ['sh', '-c', 'touch /mnt/ran; exec sleep 1000']";
        machine.jail("a", &format!("template = 'host'\n[exec]\n{command}\n{mount}"));
    },
    words: |machine| machine.words(&["apply"]),
    failed: 1,
    running: &[],
    jails: &["a"],
    held: false,
    after: |_, _| Ok(()),
};

/// The command's own child is the keeper's first stage; the keeper, the init and the program follow.
fn generation(step: &Step) -> usize {
    step.process.matches('.').count()
}

fn confines(step: &Step) -> bool {
    let name = calls::name(step.call);
    match generation(step) {
        2 => matches!(name.as_str(), "clone3" | "mount_setattr" | "setns" | "unshare" | "write"),
        3.. => CALLS.contains(&name.as_str()),
        _ => false,
    }
}

/// A hard limit that may not be raised stays tighter than it was asked to be: the one excuse.
fn is_excused(step: &Step, error: Errno) -> bool {
    error == Errno::EPERM && step.call == nix::libc::SYS_prlimit64
}

#[test]
fn a_program_whose_confinement_fails_never_runs() {
    let Some(machine) = Machine::new() else { return };
    (START.before)(&machine);
    machine.good(&["apply"]);
    super::reset(&machine);
    let steps: Vec<Step> =
        steps(&machine, &START).into_iter().map(|(step, _)| step).filter(confines).collect();
    let names: BTreeSet<String> = steps.iter().map(|step| calls::name(step.call)).collect();
    for call in ["capset", "pivot_root", "prctl", "seccomp", "setgroups", "setresgid", "setresuid", "unshare"]
    {
        assert!(names.contains(call), "{call} is not among {names:?}");
    }
    let cases = steps.iter().flat_map(|step| ERRORS.iter().map(move |error| (step, *error)));
    let cases: Vec<(&Step, Errno)> = cases.filter(|(step, error)| !is_excused(step, *error)).collect();
    // Odd, for there are two errors.
    let every =
        if std::env::var_os("STOCKADE_FAULTS").is_some() { 1 } else { cases.len().div_ceil(SAMPLE) | 1 };
    let seed = sample::number("STOCKADE_FAULTS_SEED").unwrap_or(0);
    // And always the first call of each kind.
    let is_chosen = |index: usize, (step, error): &(&Step, Errno)| {
        (index + seed).is_multiple_of(every) || step.number == 1 && *error == ERRORS[0]
    };
    let chosen = cases.iter().enumerate().filter(|(index, case)| is_chosen(*index, case));
    let chosen: Vec<_> = chosen.map(|(_, case)| *case).collect();
    eprintln!(
        "confinement: {} calls, {} cases, of which {} (every {every}, seed {seed})",
        steps.len(),
        cases.len(),
        chosen.len()
    );
    let wrong: Vec<String> =
        chosen.into_iter().filter_map(|(step, error)| refuse(&machine, step, error).err()).collect();
    assert!(wrong.is_empty(), "{} failures:\n{}", wrong.len(), wrong.join("\n"));
}

fn refuse(machine: &Machine, step: &Step, error: Errno) -> Result<(), String> {
    (START.before)(machine);
    let mark = machine.path().join("shared/ran");
    // Of a run without a fault.
    let _ = std::fs::remove_file(&mark);
    let traced = run(machine, &START, Some((step.clone(), Fault::Error(error))));
    let said = output(machine);
    let bad = |why: &str| Err(format!("{error} at {step}: {why}: status {:?}, said {said:?}", traced.status));
    if traced.status == Some(0) {
        super::reset_calmly(machine)?;
    }
    let ran = std::fs::remove_file(&mark).is_ok();
    let lines = said.lines().filter(|line| line.starts_with("stockade: a: ")).count();
    match traced.status {
        _ if !traced.fired => bad("the fault was not met"),
        _ if ran => bad("the program ran"),
        Some(1) if lines == 1 => Ok(()),
        _ => bad("not one failure with one message"),
    }
}
