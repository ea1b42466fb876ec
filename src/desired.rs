//! What the files ask for, after every check: the input of the plan.
//!
//! Pure data, made by `resolve`. Everything a step needs later is already here: file contents are
//! rendered, layers are named, so that nothing is left to decide while acting.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::jail::{Jail, JailName, Network, Settings};

/// Where everything lives on the host. Before `resolve`, an empty path is one that no flag gave.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Paths {
    pub config: PathBuf,
    pub state: PathBuf,
    pub run: PathBuf,
    pub log: PathBuf,
}

/// The host's own keys, `stockade.toml`.
#[derive(Clone, Debug, PartialEq)]
pub struct HostConfig {
    pub paths: Paths,
    pub ids: IdPool,
    /// Bridges made on demand, by interface name.
    pub bridges: BTreeMap<String, Bridge>,
    /// The cgroup below which all jails live, relative to each hierarchy's root.
    pub cgroup: String,
    /// Why the file cannot be believed: where jails and their data are is not known then, and
    /// nothing may be done to them.
    pub broken: Option<String>,
}

/// Ranges of 65,536 ids handed to jails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdPool {
    /// First host id of the pool.
    pub first: u32,
    /// How many ranges it holds.
    pub ranges: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bridge {
    /// The host's own addresses on it, at most one of each family; jails use them as default routes.
    pub address: Vec<Network>,
    pub mtu: Option<u32>,
}

/// Everything wanted of this host.
#[derive(Clone, Debug)]
pub struct Desired {
    pub host: HostConfig,
    pub jails: BTreeMap<JailName, DesiredJail>,
    /// Jails whose file is there but has errors: they are left as they are, or run again as they
    /// did. The text is the first error, `file:line:column: message`.
    pub broken: BTreeMap<JailName, String>,
    /// False when a directory could not be read, or the host's file has errors: nothing may be
    /// removed then, since absence proves nothing.
    pub complete: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub struct DesiredJail {
    /// The definition file.
    pub file: PathBuf,
    pub settings: Settings,
    /// Large, and handed on several times until it is here.
    pub jail: Box<Jail>,
    pub root: DesiredRoot,
}

/// A jail's root file system.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DesiredRoot {
    /// Immutable layers, topmost first. Empty when the jail has a `path` of its own.
    pub layers: Vec<Layer>,
    /// Show the host's /usr read only at /usr (the `host` base).
    pub host_usr: bool,
    /// Files that stockade owns inside the root, rendered, sorted by target.
    pub files: Vec<RootFile>,
    /// Files of /etc that are written at each start.
    pub etc: Vec<EtcFile>,
}

/// One layer, named by the digest of what it is made from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// `sha256-` and 64 hexadecimal digits.
    pub id: String,
    pub source: LayerSource,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LayerSource {
    /// The skeleton around the host's own /usr.
    Host,
    /// A copy of a directory.
    Directory(PathBuf),
    /// An archive unpacked; `sha256` is checked while it is read.
    Tar { path: PathBuf, sha256: Option<String>, kept: Kept },
    /// One layer of an image; what it deletes lies in the layers `below`, topmost first.
    Image { archive: PathBuf, blob: Blob, kept: Kept, below: Vec<String> },
    /// A Debian root, made by mmdebstrap or debootstrap.
    Debootstrap(Debootstrap),
    /// What lines, run in a jail on the layers below, have changed.
    Build(Build),
    /// One that an earlier start has made: it is there, or nowhere.
    Built,
    /// The copied (not rendered) part of a template's `files/`, sorted by target.
    Files(Vec<CopiedFile>),
}

/// What stays of an archive's entries of all that the kernel gives a meaning of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Set-user-ID and set-group-ID bits.
    pub setuid: bool,
    /// Device nodes and FIFOs.
    pub devices: bool,
    /// The capabilities of files.
    pub capabilities: bool,
}

impl Default for Kept {
    fn default() -> Self {
        Self { setuid: true, devices: false, capabilities: false }
    }
}

impl Kept {
    /// What is not as usual, a word each: part of a layer's name.
    pub fn words<'w>(self) -> impl Iterator<Item = &'w str> {
        let words =
            [(!self.setuid, "nosuid"), (self.devices, "devices"), (self.capabilities, "capabilities")];
        words.into_iter().filter_map(|(unusual, word)| unusual.then_some(word))
    }
}

/// What mmdebstrap(1) is asked for; every word was checked to be no option.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Debootstrap {
    pub suite: String,
    pub variant: Option<String>,
    pub include: Vec<String>,
    pub mirror: Option<String>,
    /// By Debian's name; the host's own when absent.
    pub arch: Option<String>,
    pub components: Vec<String>,
    pub keyring: Option<PathBuf>,
}

/// Lines that are run in a build jail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Build {
    /// Topmost first.
    pub lower: Vec<String>,
    pub host_usr: bool,
    /// For sh(1), one after the other.
    pub run: Vec<String>,
    pub env: BTreeMap<String, String>,
    /// The host's network, or none.
    pub network: bool,
    /// Milliseconds, for all of them.
    pub timeout: u64,
}

/// One file of an image's archive or directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blob {
    /// The path inside of it.
    pub name: PathBuf,
    /// 64 lower-case hexadecimal digits, checked while it is read.
    pub sha256: String,
    /// Bytes, if the image says how many.
    pub size: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopiedFile {
    pub source: PathBuf,
    pub target: PathBuf,
    /// Permission bits; without meaning for a link.
    pub mode: u32,
    pub kind: CopiedKind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CopiedKind {
    File,
    Directory,
    /// A symbolic link, laid as it is.
    Link(PathBuf),
}

/// A file that stockade owns inside a jail's root.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootFile {
    /// Absolute, as the jail sees it.
    pub target: PathBuf,
    /// Always text: what expressions give.
    #[serde(with = "as_text")]
    pub contents: Vec<u8>,
    pub mode: u32,
    /// Ids inside the jail.
    pub uid: u32,
    pub gid: u32,
    pub on_change: OnChange,
}

/// A list of numbers would be four times as long.
mod as_text {
    use serde::{Deserialize, Deserializer, Serialize, Serializer, ser::Error};

    pub fn serialize<S: Serializer>(contents: &[u8], to: S) -> Result<S::Ok, S::Error> {
        std::str::from_utf8(contents).map_err(S::Error::custom)?.serialize(to)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        String::deserialize(from).map(String::into_bytes)
    }
}

/// What follows when a rendered file of a running jail has changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnChange {
    Restart,
    /// Run this inside the jail.
    Reload(Vec<String>),
    None,
}

/// A file of /etc that tells the jail who and where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EtcFile {
    /// hosts(5), for a jail with a network.
    Hosts,
    /// resolv.conf(5), likewise.
    ResolvConf,
    /// hostname(5), which a booted system reads and would undo the definition's name by.
    Hostname,
    /// machine-id(5), for a booted system: those of one template must not share its layer's.
    MachineId,
}

impl EtcFile {
    pub const ALL: [Self; 4] = [Self::Hosts, Self::ResolvConf, Self::Hostname, Self::MachineId];

    /// As the jail sees it.
    pub fn target(self) -> &'static Path {
        Path::new(match self {
            Self::Hosts => "/etc/hosts",
            Self::ResolvConf => "/etc/resolv.conf",
            Self::Hostname => "/etc/hostname",
            Self::MachineId => "/etc/machine-id",
        })
    }

    /// Permission bits.
    pub fn mode(self) -> u32 {
        if self == Self::MachineId { 0o444 } else { 0o644 }
    }
}
