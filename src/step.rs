//! The order of things: start and stop as tables of phases, as in jail(8); undo walks the start
//! table back.

use std::fmt;

use serde::{Deserialize, Serialize};

/// One slot in the life of a jail. `execute` fills it; the order is in [`START`] and [`STOP`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Directories, id range, the record itself.
    Claim,
    /// `exec.prepare`, on the host, before anything of the jail exists.
    Prepare,
    /// Layers are built and the rendered files are in place.
    Root,
    /// The bridge the jail wants to join.
    Bridge,
    /// Its cgroup, with every limit set.
    Cgroup,
    /// `exec.prestart`, on the host.
    Prestart,
    /// Keeper, namespaces, mounts, link: the jail exists, nothing runs in it.
    Create,
    /// `exec.created`, on the host.
    Created,
    /// `exec.start` and the main process, inside.
    Start,
    /// `exec.poststart`, on the host.
    Poststart,
    /// The keeper was told to keep it: the jail is on its own. The one phase that is written down
    /// after it was done, since what was cut off before it must not pass for a jail that ran.
    Up,
    /// `exec.prestop`, on the host.
    Prestop,
    /// `exec.stop`, inside.
    Stop,
    /// The polite signal, and the wait.
    Terminate,
    /// Everything inside is killed, the keeper ends, the cgroup goes.
    Remove,
    /// `exec.poststop`, on the host.
    Poststop,
    /// `exec.release`, on the host, after everything else.
    Release,
}

pub const START: &[Phase] = &[
    Phase::Claim,
    Phase::Prepare,
    Phase::Root,
    Phase::Bridge,
    Phase::Cgroup,
    Phase::Prestart,
    Phase::Create,
    Phase::Created,
    Phase::Start,
    Phase::Poststart,
    Phase::Up,
];

pub const STOP: &[Phase] =
    &[Phase::Prestop, Phase::Stop, Phase::Terminate, Phase::Remove, Phase::Poststop, Phase::Release];

impl Phase {
    /// What undoes a phase of the start, for the walk back after a failure in or after it.
    pub fn undo(self) -> Option<Phase> {
        match self {
            Phase::Prepare => Some(Phase::Release),
            Phase::Prestart => Some(Phase::Poststop),
            Phase::Cgroup | Phase::Create => Some(Phase::Remove),
            _ => None,
        }
    }

    /// The parameter of jail(8) this phase runs, if it is a hook.
    pub fn hook(self) -> Option<&'static str> {
        match self {
            Phase::Prepare => Some("exec.prepare"),
            Phase::Prestart => Some("exec.prestart"),
            Phase::Created => Some("exec.created"),
            Phase::Poststart => Some("exec.poststart"),
            Phase::Prestop => Some("exec.prestop"),
            Phase::Stop => Some("exec.stop"),
            Phase::Poststop => Some("exec.poststop"),
            Phase::Release => Some("exec.release"),
            _ => None,
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Phase::Claim => "claim",
            Phase::Prepare => "prepare",
            Phase::Root => "root",
            Phase::Bridge => "bridge",
            Phase::Cgroup => "cgroup",
            Phase::Prestart => "prestart",
            Phase::Create => "create",
            Phase::Created => "created",
            Phase::Start => "start",
            Phase::Poststart => "poststart",
            Phase::Up => "up",
            Phase::Prestop => "prestop",
            Phase::Stop => "stop",
            Phase::Terminate => "terminate",
            Phase::Remove => "remove",
            Phase::Poststop => "poststop",
            Phase::Release => "release",
        })
    }
}
