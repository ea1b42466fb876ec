//! What a jail's processes may do: its profile, decided here and applied by `init` through `sys`.
//!
//! Pure: from the checked keys of a jail to data, reading nothing of the machine. Two profiles:
//! `app` for a jail that runs commands, `system` for one that boots an init and therefore needs
//! its own user namespace. A request that would quietly do nothing, or quietly undo the boundary,
//! is refused with the key it stands at.

#![forbid(unsafe_code)]

pub mod capability;
pub mod passwd;
pub mod paths;
pub mod rlimit;
pub mod seccomp;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::jail::{Allow, Jail, NetworkMode};
use capability::{APP, NEVER_ON_HOST, SYSTEM, known};
use rlimit::Rlimit;

/// Which of the two profiles a jail has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Runs commands.
    App,
    /// Boots an init of its own.
    System,
}

/// What the filter opens beyond the calls that follow from capabilities.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Allowances {
    /// The mount calls, and namespaces other than user namespaces.
    pub mount: bool,
    /// Tracing, and the memory of other processes.
    pub ptrace: bool,
}

/// Everything that `init` imposes on itself before the jail's first instruction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Profile {
    pub kind: Kind,
    /// Bounding = permitted = effective; inheritable and ambient are empty.
    pub capabilities: u64,
    pub no_new_privs: bool,
    /// False only for `security.seccomp = "none"`.
    pub filter: bool,
    pub allowances: Allowances,
    /// By resource number.
    pub rlimits: Vec<Rlimit>,
    /// Inside the jail; [`paths::MASKED_PER_CPU`] comes on top.
    pub masked: Vec<String>,
    pub read_only: Vec<String>,
    /// Below a read-only path, yet writable.
    pub writable: Vec<String>,
    /// Below /proc/sys, in the jail's own network namespace; empty without one.
    pub sysctls: Vec<(String, String)>,
    /// The whole environment at start, before `exec.env`; HOME becomes the user's own.
    pub env: BTreeMap<String, String>,
    pub umask: u32,
}

/// A key whose value cannot be, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Dotted, as in the definition.
    pub key: &'static str,
    pub message: String,
}

/// Ports below 1024 and ping are open to every user of the jail's own network, so that no process
/// needs a privilege for them, and no router on the wire can move the jail's routes.
const SYSCTLS: &[(&str, &str)] = &[
    ("net/ipv4/ip_unprivileged_port_start", "0"),
    ("net/ipv4/ping_group_range", "0 65535"),
    ("net/ipv6/conf/all/accept_ra", "0"),
    ("net/ipv6/conf/default/accept_ra", "0"),
];

const ENV: &[(&str, &str)] = &[
    ("HOME", "/root"),
    ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
    ("TERM", "xterm"),
    ("container", "stockade"),
];

const UMASK: u32 = 0o022;

/// The profile of `jail`, or every reason why it cannot have one.
pub fn profile(jail: &Jail) -> Result<Profile, Vec<Refusal>> {
    let mut refusals = Vec::new();
    let kind = if jail.exec.boot.is_some() { Kind::System } else { Kind::App };
    refuse_on_host(jail, kind, &mut refusals);
    refuse_in_namespace(jail, &mut refusals);
    let capabilities = capabilities(jail, kind, &mut refusals);
    let filter = filter(jail, &mut refusals);
    let rlimits = rlimit::limits(&jail.security.rlimits).unwrap_or_else(|wrong| {
        refusals.extend(wrong.into_iter().map(|message| Refusal { key: "security.rlimits", message }));
        Vec::new()
    });
    if !refusals.is_empty() {
        return Err(refusals);
    }
    Ok(Profile {
        kind,
        capabilities,
        no_new_privs: kind == Kind::App || capabilities & known("SYS_ADMIN") == 0,
        filter,
        allowances: Allowances { mount: jail.allow.mount, ptrace: jail.allow.ptrace },
        rlimits,
        masked: masked(jail.allow.kmsg),
        read_only: owned(paths::READ_ONLY),
        writable: if kind == Kind::System { owned(paths::WRITABLE_IN_SYSTEM) } else { Vec::new() },
        sysctls: sysctls(jail),
        env: pairs(ENV).collect(),
        umask: UMASK,
    })
}

/// The device nodes in the jail's /dev.
pub fn devices(allow: &Allow) -> Vec<paths::Device> {
    let mut devices = paths::DEVICES.to_vec();
    if allow.kmsg {
        devices.push(paths::KMSG);
    }
    devices
}

/// Without a user namespace root inside is root outside, held by the profile alone.
fn refuse_on_host(jail: &Jail, kind: Kind, refusals: &mut Vec<Refusal>) {
    if jail.security.userns {
        return;
    }
    let mut refuse = |holds: bool, key, message: &str| {
        if holds {
            refusals.push(Refusal { key, message: message.into() });
        }
    };
    let named = jail.security.not_safe.iter().any(|name| name == "host-root");
    refuse(
        !named,
        "security.userns",
        "without a user namespace root in the jail is root on the host: say so with `unsafe = [\"host-root\"]`, or leave it on",
    );
    refuse(kind == Kind::System, "exec.boot", "a whole system needs `security.userns = true`");
    refuse(jail.allow.mount, "allow.mount", "mounting needs `security.userns = true`");
}

/// Rights that the kernel gives to nobody in a user namespace: the key would do nothing.
fn refuse_in_namespace(jail: &Jail, refusals: &mut Vec<Refusal>) {
    if !jail.security.userns {
        return;
    }
    for (asked, key, what) in [
        (jail.allow.settime, "allow.settime", "set the clock"),
        (jail.allow.chflags, "allow.chflags", "make files immutable"),
    ] {
        if asked {
            let message = format!("the kernel lets nobody in a user namespace {what}");
            refusals.push(Refusal { key, message });
        }
    }
}

/// The mask, with every contradiction between `[allow]` and `security.capabilities` refused.
fn capabilities(jail: &Jail, kind: Kind, refusals: &mut Vec<Refusal>) -> u64 {
    const KEY: &str = "security.capabilities";
    let granted = granted(&jail.allow);
    let base = granted.iter().fold(base(jail, kind), |mask, (_, name)| mask | known(name));
    let mask = match capability::parse(&jail.security.capabilities, base) {
        Ok(mask) => mask,
        Err(wrong) => {
            refusals.extend(wrong.into_iter().map(|message| Refusal { key: KEY, message }));
            return 0;
        }
    };
    for (key, name) in granted {
        if mask & known(name) == 0 {
            let message = format!("it needs {name}, which `{KEY}` leaves out");
            refusals.push(Refusal { key, message });
        }
    }
    let forbidden = mask & NEVER_ON_HOST & !base;
    if !jail.security.userns && forbidden != 0 {
        let message = format!("{}: never without a user namespace", capability::names(forbidden).join(", "));
        refusals.push(Refusal { key: KEY, message });
    }
    mask
}

/// What `default` stands for in a jail with nothing allowed.
fn base(jail: &Jail, kind: Kind) -> u64 {
    let own_network = jail.network.mode != NetworkMode::Inherit;
    match kind {
        // The jail's own network opens all ports to everyone: see SYSCTLS.
        Kind::App if own_network => APP & !known("NET_BIND_SERVICE"),
        Kind::App => APP,
        Kind::System if own_network => SYSTEM | known("NET_ADMIN"),
        Kind::System => SYSTEM,
    }
}

/// The keys of `[allow]` that are on and act by a capability, with its name.
fn granted(allow: &Allow) -> Vec<(&'static str, &'static str)> {
    [
        (allow.raw_sockets, ("allow.raw_sockets", "NET_RAW")),
        (allow.mount, ("allow.mount", "SYS_ADMIN")),
        (allow.mlock, ("allow.mlock", "IPC_LOCK")),
        (allow.chflags, ("allow.chflags", "LINUX_IMMUTABLE")),
        (allow.settime, ("allow.settime", "SYS_TIME")),
        (allow.kmsg, ("allow.kmsg", "SYSLOG")),
    ]
    .into_iter()
    .filter_map(|(on, row)| on.then_some(row))
    .collect()
}

fn filter(jail: &Jail, refusals: &mut Vec<Refusal>) -> bool {
    match jail.security.seccomp.as_str() {
        "default" => {}
        "none" => return false,
        other => refusals.push(Refusal {
            key: "security.seccomp",
            message: format!("`{other}` is not a filter: `default` or `none`"),
        }),
    }
    true
}

fn masked(kmsg: bool) -> Vec<String> {
    paths::MASKED.iter().filter(|path| !(kmsg && **path == "/proc/kmsg")).map(ToString::to_string).collect()
}

fn sysctls(jail: &Jail) -> Vec<(String, String)> {
    if jail.network.mode == NetworkMode::Inherit { Vec::new() } else { pairs(SYSCTLS).collect() }
}

fn owned(table: &[&str]) -> Vec<String> {
    table.iter().map(ToString::to_string).collect()
}

fn pairs(table: &[(&str, &str)]) -> impl Iterator<Item = (String, String)> {
    table.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
}

impl Profile {
    /// The program of the jail's filter; none for `security.seccomp = "none"`.
    pub fn program(&self) -> Option<Vec<seccomp::Instruction>> {
        self.filter.then(|| seccomp::program(self.kind, self.capabilities, self.allowances))
    }
}

#[cfg(test)]
mod tests;
