//! Where a jail's own writes go, and what limits them: the words for it. Pure.

use std::fmt;

use serde::{Deserialize, Serialize};

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

impl Kind {
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
