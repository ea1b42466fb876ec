//! What a keeper is told: everything about one start, decided beforehand.
//!
//! Pure data, made by `execute` from the desired jail and what the earlier phases prepared. It is
//! handed over once, as one message; it is never stored.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::desired::{Paths, RootFile};
use crate::jail::{Jail, JailName};
use crate::root::changes::OwnLower;
use crate::storage::FileSystem;
use crate::{network, security};

/// One start of one jail.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Spec {
    pub jail: Jail,
    pub instance: String,
    pub paths: Paths,
    /// The v2 cgroup the next is below; empty: the top.
    pub cgroup_base: String,
    /// The parent of all jails' cgroups, and the jail's below it.
    pub cgroup_parent: String,
    /// First host id of the jail's range.
    pub first_id: u32,
    pub root: RootSpec,
    pub network: Option<network::Spec>,
    /// Files of its /etc, written below the root before anything is mounted there.
    pub etc: Vec<RootFile>,
    pub profile: security::Profile,
    pub stdio: Stdio,
}

/// How the root is put together.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum RootSpec {
    /// An overlay, everything topmost first: `own`, what the jail or another one wrote before a
    /// snapshot, lies over `lower`, the template's layers.
    Overlay { own: Vec<OwnLower>, lower: Vec<PathBuf>, writes: Writes, host_usr: bool },
    /// A directory of the host, ids shifted by its mount.
    Directory { path: PathBuf, host_usr: bool },
}

/// Where an overlay's changes go.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Writes {
    Kept {
        upper: PathBuf,
        work: PathBuf,
    },
    /// A file that holds a file system.
    Image {
        file: PathBuf,
        file_system: FileSystem,
    },
    /// A tmpfs that dies with the jail, at most this many bytes and files.
    Discarded {
        bytes: u64,
        inodes: Option<u64>,
    },
}

/// The main process's standard streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stdio {
    /// Pipes to the keeper, which writes the log.
    Log,
    /// A pseudo-terminal held by the keeper, which writes the log too.
    Console,
    /// The caller's own streams (`run` without a terminal).
    Inherit,
    /// A pseudo-terminal relayed to the caller's (`run` on a terminal).
    Relay,
}

impl RootSpec {
    /// Whether what the jail writes goes to an upper directory on disk.
    pub fn keeps_writes(&self) -> bool {
        matches!(self, RootSpec::Overlay { writes: Writes::Kept { .. }, .. })
    }

    pub fn host_usr(&self) -> bool {
        matches!(self, RootSpec::Overlay { host_usr: true, .. } | RootSpec::Directory { host_usr: true, .. })
    }
}

impl Spec {
    pub fn name(&self) -> &JailName {
        &self.jail.name
    }

    /// `<run>/jails/NAME`.
    pub fn run_dir(&self) -> PathBuf {
        self.paths.run.join("jails").join(self.name().as_str())
    }
}
