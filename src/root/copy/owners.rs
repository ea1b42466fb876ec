//! Who owns the copies: ids are not only in a file's owner, but also in its ACL and in the
//! capabilities it gives.

use std::ffi::OsStr;

use anyhow::{Context, bail, ensure};
use rustix::fs::{FileType, Gid, Stat, Uid};

use crate::sys::namespace::IDS;

const ACL: [&str; 2] = ["system.posix_acl_access", "system.posix_acl_default"];
const CAPABILITY: &str = "security.capability";
/// Of an ACL's attribute: its version, and then eight bytes an entry; acl(5), linux/posix_acl_xattr.h.
const ACL_HEADER: usize = 4;
const ACL_ENTRY: usize = 8;
/// The tags of the entries that name a user or a group.
const ACL_NAMED: [u16; 2] = [0x02, 0x08];
/// Revisions of a file's capabilities, capabilities(7): the third names the root that they are for.
const REVISION: u32 = 0xff00_0000;
const REVISION_2: u32 = 0x0200_0000;
const REVISION_3: u32 = 0x0300_0000;
const ROOT_AT: usize = 20;

/// How the owners of the copies follow from those of the originals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owners {
    Same,
    /// A jail's range of 65,536 ids becomes another; an owner outside of it is an error.
    Shifted {
        from: u32,
        to: u32,
    },
    /// Those of the jail's range with this first id become the ids inside, which others must have
    /// already: its own writes merged with its layers.
    Inner(u32),
    /// Files and directories of the caller's own, as somebody would write them who was told their
    /// contents: no set-id bits, no attributes, no links and no device nodes.
    Plain,
}

impl Owners {
    pub fn of(self, stat: &Stat) -> anyhow::Result<(Uid, Gid)> {
        if self == Owners::Plain {
            return Ok((rustix::process::geteuid(), rustix::process::getegid()));
        }
        // The kernel makes whiteouts as the mount's owner, the host's root, and they stay his.
        let is_whiteout = FileType::from_raw_mode(stat.st_mode).is_char_device() && stat.st_rdev == 0;
        if is_whiteout && stat.st_uid == 0 && self.id(0).is_err() {
            return Ok((Uid::ROOT, Gid::ROOT));
        }
        let uid = self.id(stat.st_uid).context("its user")?;
        let gid = self.id(stat.st_gid).context("its group")?;
        Ok((Uid::from_raw(uid), Gid::from_raw(gid)))
    }

    fn id(self, id: u32) -> anyhow::Result<u32> {
        let (from, to) = match self {
            Owners::Same | Owners::Plain => return Ok(id),
            Owners::Inner(_) if id < IDS => return Ok(id),
            Owners::Inner(first) => (first, 0),
            Owners::Shifted { from, to } => (from, to),
        };
        match id.checked_sub(from) {
            Some(inner) if inner < IDS => Ok(to + inner),
            _ => bail!("{id} is outside of the ids {from} to {}", from + (IDS - 1)),
        }
    }

    /// The value of an attribute with the ids in it shifted.
    pub fn attribute(self, name: &OsStr, mut value: Vec<u8>) -> anyhow::Result<Vec<u8>> {
        if self == Owners::Same {
            return Ok(value);
        }
        if ACL.iter().any(|acl| name == *acl) {
            self.acl(&mut value).context("its ACL")?;
        } else if name == CAPABILITY {
            self.capability(&mut value).context("its capabilities")?;
        }
        Ok(value)
    }

    fn acl(self, value: &mut [u8]) -> anyhow::Result<()> {
        ensure!(value.len() >= ACL_HEADER, "too short");
        for entry in value[ACL_HEADER..].chunks_exact_mut(ACL_ENTRY) {
            let tag = u16::from_le_bytes([entry[0], entry[1]]);
            if ACL_NAMED.contains(&tag) {
                let id = u32::from_le_bytes([entry[4], entry[5], entry[6], entry[7]]);
                entry[4..8].copy_from_slice(&self.id(id)?.to_le_bytes());
            }
        }
        Ok(())
    }

    /// Those of the host's root have no owner written down; a jail's name its first id.
    fn capability(self, value: &mut Vec<u8>) -> anyhow::Result<()> {
        ensure!(value.len() >= ROOT_AT, "too short");
        let magic = u32::from_le_bytes([value[0], value[1], value[2], value[3]]);
        let root = match (magic & REVISION, value.get(ROOT_AT..ROOT_AT + 4)) {
            (REVISION_2, _) => 0,
            (REVISION_3, Some(root)) => u32::from_le_bytes([root[0], root[1], root[2], root[3]]),
            _ => bail!("of an unknown revision"),
        };
        let root = self.id(root)?;
        let revision = if root == 0 { REVISION_2 } else { REVISION_3 };
        value.truncate(ROOT_AT);
        value[..4].copy_from_slice(&(magic & !REVISION | revision).to_le_bytes());
        if root != 0 {
            value.extend(root.to_le_bytes());
        }
        Ok(())
    }
}
