//! Desired against live: the plan. Pure; the same code serves `plan`, `apply` and the daemon.

use crate::jail::JailName;
use crate::keys::Cost;

/// Everything that will be done, in the order of names; `after` carries the dependency order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    pub actions: Vec<Action>,
    /// Jails that must not be touched, with the reason (`config-error`, refused by this host).
    pub refused: Vec<(JailName, String)>,
}

/// What happens to one jail.
#[derive(Clone, Debug, PartialEq)]
pub struct Action {
    pub name: JailName,
    pub kind: ActionKind,
    /// What the definition changed.
    pub changes: Vec<Change>,
    /// What was changed outside stockade.
    pub drift: Vec<Change>,
    /// Jails whose own action must have ended well before this one begins.
    pub after: Vec<JailName>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ActionKind {
    /// It has never been, or is down and should be up.
    Create,
    /// Live changes only.
    Update,
    /// Stop and start.
    Restart,
    /// Stop, throw its root away, start.
    Rebuild,
    /// Down by itself or by definition (`enabled = false`): stop or finish the stop.
    Stop,
    /// The definition is gone: stop, keep the data.
    Remove,
}

/// One key's change.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// The dotted key, or the path of a rendered file.
    pub key: String,
    /// As a person writes it, `512M`; absent when the key was.
    pub from: Option<String>,
    pub to: Option<String>,
    pub cost: Cost,
}
