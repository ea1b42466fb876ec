//! Directories that lie on each other, merged as overlayfs merges them, but with what they hide.

use std::ffi::OsStr;
use std::os::fd::{BorrowedFd, OwnedFd};

use anyhow::{Context, Result};
use rustix::fs::{AtFlags, FileType};
use rustix::io::Errno;

use crate::root::diff;
use crate::sys::file;

/// One directory, as it is in several trees.
#[derive(Clone, Copy)]
pub struct Stack<'s> {
    /// What is packed, topmost first; never empty.
    pub own: &'s [BorrowedFd<'s>],
    /// What shows through from trees that are not packed, where that is known. In a directory that
    /// nothing shows through, overlayfs looks for no whiteouts and lists those there are.
    pub base: Option<&'s [BorrowedFd<'s>]>,
}

/// What became of a directory in a [`Stack`].
pub struct Merged {
    pub own: Vec<OwnedFd>,
    pub base: Option<Vec<OwnedFd>>,
    /// Others than the first hide what is below.
    pub hides: bool,
}

impl<'s> Stack<'s> {
    /// Of a tree alone.
    pub fn of(own: &'s [BorrowedFd<'s>]) -> Self {
        Self { own, base: None }
    }

    /// The directory `name`, which has been opened in the topmost, and all that shows through it.
    pub fn merge(&self, directory: OwnedFd, name: &OsStr) -> Result<Merged> {
        let (mut own, mut below) = (vec![directory], Vec::new());
        let first = diff::is_opaque(&own[0]);
        let hides = first || extend(&mut own, &self.own[1..], name)?;
        if let Some(base) = self.base.filter(|_| !hides) {
            extend(&mut below, base, name)?;
        }
        Ok(Merged { own, base: self.base.map(|_| below), hides: hides && !first })
    }
}

/// Adds the directories of this name up to one that hides the others: whether there is one.
fn extend(merged: &mut Vec<OwnedFd>, stack: &[BorrowedFd<'_>], name: &OsStr) -> Result<bool> {
    for parent in stack {
        match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode).is_dir() => {
                let directory = file::open_child(parent, name)?;
                let hides = diff::is_opaque(&directory);
                merged.push(directory);
                if hides {
                    return Ok(true);
                }
            }
            // A whiteout too.
            Ok(_) => return Ok(true),
            Err(Errno::NOENT) => {}
            Err(error) => return Err(error).context("stat"),
        }
    }
    Ok(false)
}
