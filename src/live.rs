//! What is: the state of every jail as the kernel and the journal show it. Types only.
//!
//! `probe` fills these in; `plan` compares them with what is desired.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::desired::EtcFile;
use crate::jail::{JailName, Settings};
use crate::step::Phase;
use crate::storage::{Ground, Held};

/// One look at the whole machine.
#[derive(Clone, Debug, Default)]
pub struct Live {
    /// Jails that run, have run since boot, or still keep data.
    pub jails: BTreeMap<JailName, LiveJail>,
    /// Ids of the layers that are built.
    pub layers: BTreeSet<String>,
    /// Ids of those that somebody builds just now.
    pub building: BTreeSet<String>,
    /// Why the last attempt to build a layer came to nothing, by its id.
    pub failed_builds: BTreeMap<String, String>,
    /// Keys this host cannot enforce, with the reason: `limits.io` → "no blkio controller".
    pub refused: BTreeMap<String, String>,
    /// What the host can do for jails' volumes.
    pub ground: Ground,
    /// Now, milliseconds since the epoch; the only clock the plan sees.
    pub now_ms: u64,
}

#[derive(Clone, Debug, Default)]
pub struct LiveJail {
    pub state: JailState,
    /// The journal's record of the last start, if it was in this boot.
    pub record: Option<Record>,
    /// Keys as found in the kernel now, for those that can be read back.
    pub observed: Settings,
    /// Gateways of the default routes that it has now, where it has a link.
    pub default_routes: Option<Vec<IpAddr>>,
    /// Rendered files found different from what was written, by target.
    pub changed_files: BTreeSet<PathBuf>,
    /// Stopped by hand with `stockade stop`, until `start`: sticky.
    pub held: bool,
    pub restarts: Restarts,
    /// How the last instance ended, if it ended by itself: kept after its stop is finished, until
    /// the next start, so that the restart policy still holds then.
    pub exit: Option<Exit>,
    /// Has files of its own below the state directory.
    pub has_data: bool,
    /// What they are in.
    pub volume: Option<Held>,
    /// Why its record cannot be read: it is left alone until a person has looked.
    pub unreadable: Option<String>,
    /// Another command works on it: nothing is planned for it until that has ended.
    pub busy: bool,
}

/// A jail as it is seen from outside. Produced by `probe`, consumed by `plan` and `status`.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum JailState {
    /// No trace of a running instance.
    #[default]
    Down,
    /// Runs under its keeper.
    Up,
    /// Runs, every process frozen.
    Frozen,
    /// Runs, but its keeper is gone.
    Orphaned,
    /// A start or stop was cut off; the record's phase says where.
    Partial,
    /// Ended by itself; its stop has not been finished (poststop, release).
    Exited(Exit),
}

/// How a jail's main process ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Exit code, when it exited.
    pub code: Option<i32>,
    /// Signal number, when it was killed.
    pub signal: Option<i32>,
    /// The kernel's out-of-memory killer took one of its processes.
    pub oom: bool,
    /// It asked for a reboot (reboot(2) inside).
    #[serde(default)]
    pub reboot: bool,
    /// Milliseconds since the epoch.
    pub at_ms: u64,
}

impl Exit {
    pub fn failed(&self) -> bool {
        !self.reboot && (self.code != Some(0) || self.oom)
    }
}

impl fmt::Display for Exit {
    /// `exited with 1`, `killed by signal 9 (out of memory)`, `asked for a reboot`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.reboot {
            return f.write_str("asked for a reboot");
        }
        match (self.code, self.signal) {
            (Some(code), _) => write!(f, "exited with {code}")?,
            (None, Some(signal)) => write!(f, "killed by signal {signal}")?,
            (None, None) => f.write_str("ended, nobody saw how")?,
        }
        if self.oom { f.write_str(" (out of memory)") } else { Ok(()) }
    }
}

/// Restarts in a row since the last good run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restarts {
    /// The instance whose end was counted last.
    #[serde(default)]
    pub instance: String,
    pub count: u64,
    /// Not before this, milliseconds since the epoch.
    pub not_before_ms: u64,
    /// The limit was reached: left down until changed or started by hand.
    pub crash_loop: bool,
    /// Why the last start came to nothing; none since one that did not.
    #[serde(default)]
    pub failure: Option<String>,
}

/// The longest pause between two restarts.
pub const BACK_OFF_MAX_MS: u64 = 300_000;

impl Restarts {
    /// How long the next start has to wait. No pause is longer than the longest: then the clock
    /// was set back, and there is none.
    pub fn wait_ms(&self, now_ms: u64) -> Option<u64> {
        let wait = self.not_before_ms.checked_sub(now_ms)?;
        (1..=BACK_OFF_MAX_MS).contains(&wait).then_some(wait)
    }
}

/// A process that cannot be mistaken for a later one with the same number: pid and the start
/// time of proc_pid_stat(5), field 22.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    pub pid: i32,
    pub start_time: u64,
}

/// The journal's record of one jail: written before each phase with an effect outside it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    pub schema: u32,
    pub boot_id: String,
    pub name: JailName,
    /// Different for each start, so that a late clean-up cannot hit the next instance.
    pub instance: String,
    /// The definition file that asked for it; empty for `run`.
    pub file: PathBuf,
    /// The last phase that was begun, and whether it is a start or a stop that walks.
    pub phase: Phase,
    pub stopping: bool,
    pub settings: Settings,
    /// Layer ids, topmost first.
    pub layers: Vec<String>,
    pub host_usr: bool,
    /// Files of /etc that the start has written.
    #[serde(default)]
    pub etc: Vec<EtcFile>,
    /// Digest of every rendered file by target, and its inode stamp as written.
    pub files: BTreeMap<PathBuf, FileStamp>,
    pub keeper: Option<Process>,
    pub init: Option<Process>,
    /// First host id of the jail's range.
    pub first_id: u32,
    /// The v2 cgroup that the starter makes everything below: a daemon's is its unit, a shell's
    /// the top, and each must find what the other has started.
    #[serde(default)]
    pub cgroup_base: String,
    /// Milliseconds since the epoch.
    pub started_ms: u64,
    /// Phases whose hook has run, or would have if it had lines, so that none runs twice and each
    /// is answered by its counterpart; and [`Phase::Terminate`], see [`Record::was_asked`].
    pub hooks_done: BTreeSet<Phase>,
    /// It runs as it did before, for another attempt did not come up: what was wanted then, so
    /// that just this is not tried again.
    #[serde(default)]
    pub instead_of: Option<String>,
}

impl Record {
    /// It is one of `stockade run`, which no file defines.
    pub fn is_throw_away(&self) -> bool {
        self.file.as_os_str().is_empty()
    }

    /// It was running when stockade stopped it: however it then ended says nothing to the restart
    /// policy.
    pub fn was_asked(&self) -> bool {
        self.hooks_done.contains(&Phase::Terminate)
    }
}

/// A rendered file as it was written: `digest` of contents, mode and owner, and what lstat(2)
/// showed right after, so that an unchanged file is recognised without reading it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileStamp {
    pub digest: String,
    pub inode: u64,
    pub size: u64,
    /// Nanoseconds since the epoch, status change time.
    pub ctime_ns: i128,
}

/// The record's version; another one is refused by name, never guessed at.
pub const RECORD_SCHEMA: u32 = 1;
