//! Where a jail's own writes go, and what keeps them to their limits: the words, and the choice.
//!
//! Pure: what the host can do is handed in as a [`Ground`], what the jail has as [`Held`].

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::jail::Jail;
use crate::keys;

const MIB: u64 = 1 << 20;
/// The length of an image whose jail has no limit: sparse, so it costs what is written.
pub const IMAGE_BYTES_DEFAULT: u64 = 10 << 30;

/// What a jail's own writes are kept in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// An overlay's upper directory, on the state directory's own file system.
    Overlay,
    /// The same in a subvolume of its own.
    Btrfs,
    /// The same in a file system of its own, in one sparse file.
    Image,
    /// A whole root, copied from the layers: nothing is shared.
    Directory,
    /// The same as an overlay's, in memory: gone with the jail.
    Tmpfs,
}

/// What an image can be formatted with, the first that is here is taken: ext4 is the fastest to
/// make and the smallest, and the only one that grows and, while it is down, shrinks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FileSystem {
    Ext4,
    Xfs,
    Btrfs,
}

/// What the host can do for volumes; each reason says what would help.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ground {
    /// Of the state directory.
    pub file_system: String,
    /// Project quotas are enforced there.
    pub project: Result<(), String>,
    /// Subvolumes there can be limited.
    pub subvolume: Result<(), String>,
    /// What images can be made with, best first.
    pub image: Result<Vec<FileSystem>, String>,
    /// An ext4 can be grown while it is mounted.
    pub grows_ext4: bool,
}

impl Default for Ground {
    /// A host that can do nothing of it.
    fn default() -> Self {
        let unknown = || "nothing is known of the state directory".to_owned();
        Self {
            file_system: String::new(),
            project: Err(unknown()),
            subvolume: Err(unknown()),
            image: Err(unknown()),
            grows_ext4: false,
        }
    }
}

/// The volume a jail has on disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    pub kind: Kind,
    /// Of an image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_system: Option<FileSystem>,
    /// Why it was chosen; empty for the default.
    #[serde(default)]
    pub why: String,
    /// The length of an image.
    #[serde(skip)]
    pub bytes: Option<u64>,
    /// All of it is counted by a project quota.
    #[serde(skip)]
    pub counted: bool,
}

/// What enforces the limits of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quota {
    /// There is no limit.
    None,
    Project,
    Subvolume,
    /// The volume is a file system of just that size.
    Size,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    pub kind: Kind,
    pub quota: Quota,
    /// Of an image.
    pub file_system: Option<FileSystem>,
    pub why: String,
}

/// A key that this host cannot enforce.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub key: &'static str,
    pub reason: String,
}

/// What the jail's volume is to be; none for a jail whose root is a directory of the host.
pub fn choose(jail: &Jail, ground: &Ground, held: Option<&Held>) -> Result<Option<Choice>, Refusal> {
    if jail.path.is_some() {
        return no_volume(jail).map_or(Ok(None), Err);
    }
    match wanted(&jail.root.storage) {
        Some(kind) => fit(kind, jail, ground, held, "asked for").map(Some),
        None => automatic(jail, ground, held).map(Some),
    }
}

fn wanted(storage: &str) -> Option<Kind> {
    Kind::ALL.into_iter().find(|kind| kind.as_str() == storage)
}

/// The host's own directory is neither stockade's to limit nor to put elsewhere.
fn no_volume(jail: &Jail) -> Option<Refusal> {
    let key = if jail.limits.disk.is_some() {
        "limits.disk"
    } else if jail.limits.inodes.is_some() {
        "limits.inodes"
    } else if jail.root.storage != "auto" {
        "root.storage"
    } else {
        return None;
    };
    Some(Refusal { key, reason: "the root is a directory of the host (`path`)".to_owned() })
}

/// What the jail has, if that can keep the limits; else the first that can.
fn automatic(jail: &Jail, ground: &Ground, held: Option<&Held>) -> Result<Choice, Refusal> {
    let kept = held.filter(|held| held.kind != Kind::Tmpfs);
    if let Some(Ok(choice)) = kept.map(|held| fit(held.kind, jail, ground, Some(held), "auto")) {
        return Ok(choice);
    }
    let mut reasons = Vec::new();
    let mut key = "limits.disk";
    // A subvolume costs no more than an overlay, and a snapshot of it, while it runs, next to nothing.
    let kinds = match ground.file_system.as_str() {
        "btrfs" => [Kind::Btrfs, Kind::Overlay, Kind::Image],
        _ => [Kind::Overlay, Kind::Btrfs, Kind::Image],
    };
    for kind in kinds {
        let why = match (kind, reasons.first()) {
            (Kind::Overlay, _) | (_, None) => "auto".to_owned(),
            (_, Some(reason)) => format!("auto, for {reason}"),
        };
        match fit(kind, jail, ground, held, &why) {
            Ok(choice) => return Ok(choice),
            Err(refusal) => {
                if refusal.key == "limits.inodes" {
                    key = refusal.key;
                }
                // Not being on btrfs is no news.
                if refusal.key != "root.storage" || kind == Kind::Image {
                    reasons.push(refusal.reason);
                }
            }
        }
    }
    Err(Refusal { key, reason: reasons.join("; ") })
}

/// The choice of this kind, or what stands against it.
fn fit(kind: Kind, jail: &Jail, ground: &Ground, held: Option<&Held>, why: &str) -> Result<Choice, Refusal> {
    let choice = |quota| Choice { kind, quota, file_system: None, why: why.to_owned() };
    match kind {
        Kind::Tmpfs => Ok(choice(Quota::Size)),
        Kind::Overlay | Kind::Directory => by_project(jail, ground).map(choice),
        Kind::Btrfs => by_subvolume(jail, ground).map(choice),
        Kind::Image => {
            let held = held.filter(|held| held.kind == Kind::Image);
            let (file_system, why) = in_image(jail, ground, held, why)?;
            Ok(Choice { file_system: Some(file_system), why, ..choice(Quota::Size) })
        }
    }
}

fn refuse(key: &'static str, reason: impl Into<String>) -> Refusal {
    Refusal { key, reason: reason.into() }
}

fn by_project(jail: &Jail, ground: &Ground) -> Result<Quota, Refusal> {
    let key = match (jail.limits.disk, jail.limits.inodes) {
        (None, None) => return Ok(Quota::None),
        (Some(_), _) => "limits.disk",
        (None, Some(_)) => "limits.inodes",
    };
    if !jail.security.userns {
        return Err(refuse(key, "a jail without a range of ids has no project number"));
    }
    ground.project.clone().map(|()| Quota::Project).map_err(|reason| refuse(key, reason))
}

fn by_subvolume(jail: &Jail, ground: &Ground) -> Result<Quota, Refusal> {
    if ground.file_system != "btrfs" {
        let reason = format!("the state directory is on {}, not on btrfs", ground.file_system);
        return Err(refuse("root.storage", reason));
    }
    if jail.limits.inodes.is_some() {
        return Err(refuse("limits.inodes", "btrfs does not count files"));
    }
    match (jail.limits.disk, &ground.subvolume) {
        (None, _) => Ok(Quota::None),
        (Some(_), Ok(())) => Ok(Quota::Subvolume),
        (Some(_), Err(reason)) => Err(refuse("limits.disk", reason.clone())),
    }
}

fn in_image(
    jail: &Jail,
    ground: &Ground,
    held: Option<&Held>,
    why: &str,
) -> Result<(FileSystem, String), Refusal> {
    if jail.limits.inodes.is_some() {
        return Err(refuse("limits.inodes", "the file system of an image has as many files as it has"));
    }
    let bytes = jail.limits.disk.unwrap_or(IMAGE_BYTES_DEFAULT);
    let here = ground.image.clone().map_err(|reason| refuse("root.storage", reason))?;
    let kept = held.and_then(|held| held.file_system.zip(held.bytes));
    if let Some((file_system, now)) = kept {
        let shrinks = jail.limits.disk.is_some() && bytes < now;
        if file_system == FileSystem::Xfs && shrinks {
            let now = keys::show("limits.disk", &now.into());
            return Err(refuse("limits.disk", format!("an image with xfs cannot shrink, and has {now}")));
        }
        if bytes >= file_system.least() {
            return Ok((file_system, why.to_owned()));
        }
    }
    let Some(first) = here.iter().find(|file_system| bytes >= file_system.least()) else {
        let least = here.iter().map(|file_system| file_system.least()).min().unwrap_or(0);
        let least = keys::show("limits.disk", &least.into());
        return Err(refuse("limits.disk", format!("no image can be smaller than {least} here")));
    };
    let why = match *first {
        FileSystem::Ext4 => why.to_owned(),
        other => format!("{why}; with {}, for there is no mkfs.ext4", other.as_str()),
    };
    Ok((*first, why))
}

impl Kind {
    pub const ALL: [Kind; 5] = [Kind::Overlay, Kind::Btrfs, Kind::Image, Kind::Directory, Kind::Tmpfs];

    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Overlay => "overlay",
            Kind::Btrfs => "btrfs",
            Kind::Image => "image",
            Kind::Directory => "directory",
            Kind::Tmpfs => "tmpfs",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FileSystem {
    pub const ALL: [FileSystem; 3] = [FileSystem::Ext4, FileSystem::Xfs, FileSystem::Btrfs];

    pub fn as_str(self) -> &'static str {
        match self {
            FileSystem::Ext4 => "ext4",
            FileSystem::Xfs => "xfs",
            FileSystem::Btrfs => "btrfs",
        }
    }

    /// The smallest that its mkfs makes, and that something can then be written to.
    pub fn least(self) -> u64 {
        match self {
            FileSystem::Ext4 => 8 * MIB,
            FileSystem::Xfs => 300 * MIB,
            FileSystem::Btrfs => 128 * MIB,
        }
    }
}

impl Held {
    /// What has no note of its own.
    pub fn overlay() -> Self {
        Self { kind: Kind::Overlay, file_system: None, why: String::new(), bytes: None, counted: false }
    }
}

#[cfg(test)]
mod tests;
