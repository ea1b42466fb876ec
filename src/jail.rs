//! The nouns, after checking: what one jail is to be.
//!
//! Pure data. A [`Jail`] is made from [`Settings`], the normalised keys of one definition
//! file with the host's defaults below and its enforced keys above; nothing here reads the machine.

mod nested;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The keys that are present for one jail, by their dotted name (`limits.memory`), normalised:
/// sizes are bytes, durations are milliseconds, CPUs are thousandths, all as JSON numbers.
/// An absent key belongs to the jail, so it is absent here too.
pub type Settings = BTreeMap<String, Value>;

/// A jail's name: `^[a-z0-9][a-z0-9-]{0,62}$`, also a valid host name, cgroup and file name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct JailName(String);

/// The longest jail name, a DNS label's length.
pub const NAME_BYTES_MAX: usize = 63;

impl JailName {
    /// Checks `text` against the name rule.
    pub fn new(text: &str) -> Result<Self, String> {
        let head = text.bytes().next().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        let rest = text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if head && rest && text.len() <= NAME_BYTES_MAX {
            return Ok(Self(text.to_owned()));
        }
        Err(format!(
            "`{text}` is not a jail name: a lower-case letter or digit, then up to 62 of a-z, 0-9 and -"
        ))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for JailName {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        Self::new(&text)
    }
}

impl From<JailName> for String {
    fn from(name: JailName) -> Self {
        name.0
    }
}

impl fmt::Display for JailName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// An address with its prefix length, `10.77.0.10/24` or `fd77::10/64`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Network {
    pub address: IpAddr,
    pub prefix: u8,
}

impl TryFrom<String> for Network {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let wrong = || {
            format!("`{text}` is not an address with a prefix length, such as 10.77.0.10/24 or fd77::10/64")
        };
        let (address, prefix) = text.split_once('/').ok_or_else(wrong)?;
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let prefix: u8 = prefix.parse().map_err(|_| wrong())?;
        let longest = if address.is_ipv4() { 32 } else { 128 };
        if prefix > longest { Err(wrong()) } else { Ok(Self { address, prefix }) }
    }
}

impl From<Network> for String {
    fn from(network: Network) -> Self {
        network.to_string()
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

/// One jail as its definition wants it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Jail {
    pub name: JailName,
    #[serde(default)]
    pub template: Option<String>,
    #[serde(default)]
    pub path: Option<PathBuf>,
    #[serde(default)]
    pub depend: Vec<JailName>,
    #[serde(default = "yes")]
    pub enabled: bool,
    #[serde(default)]
    pub persist: bool,
    #[serde(default)]
    pub host: Host,
    #[serde(default)]
    pub exec: Exec,
    #[serde(default)]
    pub network: JailNetwork,
    #[serde(default)]
    pub limits: Limits,
    #[serde(default)]
    pub mount: Vec<Mount>,
    #[serde(default)]
    pub allow: Allow,
    #[serde(default)]
    pub security: Security,
    #[serde(default)]
    pub root: Root,
    #[serde(default)]
    pub snapshot: Vec<Schedule>,
    #[serde(default)]
    pub restart: Restart,
    #[serde(default)]
    pub vars: BTreeMap<String, Value>,
}

const fn yes() -> bool {
    true
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Host {
    /// Absent: the jail's name.
    pub hostname: Option<String>,
    pub domainname: Option<String>,
    /// 32 lower-case hexadecimal digits, machine-id(5).
    pub machine_id: Option<String>,
}

/// What runs, and jail(8)'s hooks. A hook is a list of `sh` lines, each of which must exit 0.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Exec {
    pub prepare: Vec<String>,
    pub prestart: Vec<String>,
    pub created: Vec<String>,
    /// Inside the jail, before `command`.
    pub start: Vec<String>,
    /// The main process, as an argument vector.
    pub command: Vec<String>,
    /// A whole system: the path of its init inside the jail.
    pub boot: Option<String>,
    pub poststart: Vec<String>,
    pub prestop: Vec<String>,
    /// Inside the jail.
    pub stop: Vec<String>,
    pub poststop: Vec<String>,
    pub release: Vec<String>,
    /// Name or number, looked up in the jail's own passwd(5).
    pub user: Option<String>,
    pub workdir: Option<PathBuf>,
    pub env: BTreeMap<String, String>,
    /// Milliseconds one hook line may take.
    pub timeout: u64,
    /// Milliseconds between the polite signal and SIGKILL; 0 skips the polite one.
    pub stop_timeout: u64,
    /// The signal that asks the main process to end, as its name without SIG. Absent: TERM for a
    /// command; for a boot, SIGRTMIN+3 to systemd and USR1/TERM to others.
    pub stop_signal: Option<String>,
    /// A pseudo-terminal for the main process instead of pipes.
    pub console: bool,
}

impl Default for Exec {
    fn default() -> Self {
        Self {
            prepare: Vec::new(),
            prestart: Vec::new(),
            created: Vec::new(),
            start: Vec::new(),
            command: Vec::new(),
            boot: None,
            poststart: Vec::new(),
            prestop: Vec::new(),
            stop: Vec::new(),
            poststop: Vec::new(),
            release: Vec::new(),
            user: None,
            workdir: None,
            env: BTreeMap::new(),
            timeout: 60_000,
            stop_timeout: 10_000,
            stop_signal: None,
            console: false,
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NetworkMode {
    /// Its own stack, joined to a bridge by a veth pair.
    Vnet,
    /// The host's own stack; needs `allow.host_network`.
    Inherit,
    /// Its own stack with nothing but loopback.
    #[default]
    None,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct JailNetwork {
    pub mode: NetworkMode,
    /// Absent with `vnet`: `stockade0`.
    pub bridge: Option<String>,
    pub address: Vec<Network>,
    /// Default routes, at most one of each family. Absent: the bridge's own address of that family.
    pub gateway: Vec<IpAddr>,
    /// `02:…`; absent: made from the jail's name.
    pub mac: Option<String>,
    pub mtu: Option<u32>,
    /// resolv.conf(5)'s name servers; absent: the host's, as far as the jail can reach them.
    pub nameserver: Vec<IpAddr>,
    pub search: Vec<String>,
    pub publish: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// Bytes, hard.
    pub memory: Option<u64>,
    /// Bytes, soft: above it the jail is slowed and reclaimed.
    pub memory_high: Option<u64>,
    /// Bytes of swap beside `memory`.
    pub swap: Option<u64>,
    /// Thousandths of a CPU.
    pub cpu: Option<u64>,
    /// 1 to 10000, 100 is the middle.
    pub cpu_weight: Option<u64>,
    /// CPU list, `0-3,6`.
    pub cpuset: Option<String>,
    pub processes: Option<u64>,
    pub disk: Option<u64>,
    pub inodes: Option<u64>,
    pub io: Vec<IoLimit>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct IoLimit {
    pub path: PathBuf,
    pub read: Option<u64>,
    pub write: Option<u64>,
    pub read_ops: Option<u64>,
    pub write_ops: Option<u64>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Mount {
    /// Host path of a bind; empty for `tmpfs`.
    pub source: PathBuf,
    /// Path inside the jail.
    pub target: PathBuf,
    /// `bind` (the default), `tmpfs`, `readonly` or `hidden`.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// `ro`, `rw`, `nosuid`, `nodev`, `noexec`, `rbind`, `optional`, `idmap`, `size=64M`, `mode=1777`.
    pub options: Vec<String>,
}

/// What a jail may do beyond the default; all off.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[allow(clippy::struct_excessive_bools)]
pub struct Allow {
    pub raw_sockets: bool,
    pub mount: bool,
    pub ptrace: bool,
    pub mlock: bool,
    pub chflags: bool,
    pub settime: bool,
    pub kmsg: bool,
    pub host_network: bool,
    pub devices: Vec<String>,
    pub jails: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Security {
    pub userns: bool,
    /// `default`, `NAME` to add, `!NAME` to drop; capabilities(7) without CAP_.
    pub capabilities: Vec<String>,
    /// `default` or `none`.
    pub seccomp: String,
    /// `host-root` goes with `userns = false`.
    #[serde(rename = "unsafe")]
    pub not_safe: Vec<String>,
    /// setrlimit(2) names in lower case to values: `{ nofile = 4096 }`.
    pub rlimits: BTreeMap<String, u64>,
}

impl Default for Security {
    fn default() -> Self {
        Self {
            userns: true,
            capabilities: vec!["default".into()],
            seccomp: "default".into(),
            not_safe: Vec::new(),
            rlimits: BTreeMap::new(),
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnStop {
    #[default]
    Keep,
    Discard,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Root {
    pub storage: String,
    pub on_stop: OnStop,
    pub read_only: bool,
}

impl Default for Root {
    fn default() -> Self {
        Self { storage: "auto".into(), on_stop: OnStop::Keep, read_only: false }
    }
}

/// Snapshots that are taken by themselves.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Schedule {
    /// Milliseconds after the last one.
    pub every: u64,
    pub keep: u64,
    /// What their labels begin with.
    pub label: String,
}

impl Default for Schedule {
    fn default() -> Self {
        Self { every: 3_600_000, keep: 24, label: "auto".into() }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestartPolicy {
    No,
    OnFailure,
    #[default]
    Always,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Restart {
    pub policy: RestartPolicy,
    /// Milliseconds before the first restart; doubled each time up to five minutes.
    pub delay: u64,
    /// Restarts in a row before the jail is left in `crash-loop`.
    pub max: u64,
}

impl Default for Restart {
    fn default() -> Self {
        Self { policy: RestartPolicy::Always, delay: 1_000, max: 10 }
    }
}

/// `publish` entry after parsing; kept here so that clashes can be found across files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Publish {
    pub listen: SocketAddr,
    pub port: u16,
    pub protocol: String,
}

impl Jail {
    /// Builds the jail from its normalised keys. The key table has checked every value, so an
    /// error here is a disagreement between that table and these types.
    pub fn from_settings(name: &JailName, settings: &Settings) -> Result<Self, String> {
        nested::jail(name, settings).map_err(|e| format!("{name}: {e}"))
    }

    /// The hostname the jail sees.
    pub fn hostname(&self) -> &str {
        self.host.hostname.as_deref().unwrap_or(self.name.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_rule() {
        for good in ["a", "web", "0db", "web-1", &"a".repeat(63)] {
            assert!(JailName::new(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", "Web", "a.b", "a_b", "ä", &"a".repeat(64)] {
            assert!(JailName::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn settings_become_a_jail() {
        let mut settings = Settings::new();
        settings.insert("template".into(), "host".into());
        settings.insert("limits.memory".into(), 1024.into());
        settings.insert("network.address".into(), serde_json::json!(["10.0.0.2/24"]));
        let jail = Jail::from_settings(&JailName::new("web").unwrap(), &settings).unwrap();
        assert_eq!(jail.limits.memory, Some(1024));
        assert_eq!(jail.network.address[0].to_string(), "10.0.0.2/24");
        assert_eq!(jail.exec.stop_timeout, 10_000);
        assert!(jail.enabled && jail.security.userns);
    }
}
