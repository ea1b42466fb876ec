//! Files on their way between a jail and the host, as a tar stream: one side packs what it has
//! been told below its root, the other lays it below its own, and neither trusts the other.

use std::ffi::{OsStr, OsString};
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{CWD, Mode, OFlags};

use super::layers::archive::entry::{self, Keep, Nodes};
use super::layers::tree::{self, Tree};
use super::pack::{self, Pack};
use crate::sys::file;

/// Where one side begins: at a jail's root, or at the host's own working directory.
pub type Root<'r> = Option<BorrowedFd<'r>>;

/// Packs `paths` into `out`, each under its own last name, or what is in it if it ends in `/.`.
/// Gives what could not go along.
pub fn pack(
    root: Root<'_>,
    paths: &[PathBuf],
    owners: bool,
    out: impl Write,
    told: &dyn Fn(u64),
) -> Result<Vec<PathBuf>> {
    let keep = if owners { pack::Keep::Owners } else { pack::Keep::Plain };
    let mut pack = Pack::new(out, keep, told);
    for path in paths {
        let (parent, name) = split(path);
        match name {
            Some(name) => {
                let parent = directory(root, parent)?;
                pack.entry(parent.as_fd(), name, Path::new(name))
            }
            None => pack.inner(&directory(root, path)?, Path::new("")),
        }
        .with_context(|| format!("copy {}", path.display()))?;
    }
    let left_out = std::mem::take(&mut pack.left_out);
    pack.finish()?.flush().context("write")?;
    Ok(left_out)
}

/// Whether all that is in `path` is meant, and not `path` itself.
pub fn means_contents(path: &Path) -> bool {
    split(path).1.is_none()
}

fn split(path: &Path) -> (&Path, Option<&OsStr>) {
    let text = path.as_os_str().as_bytes();
    if text.ends_with(b"/.") || text == b"." {
        return (path, None);
    }
    (path.parent().unwrap_or(Path::new("")), path.file_name())
}

/// Lays the stream below `target`: into it if it is a directory, which it must be with `many`,
/// else under its name. Gives what could not be laid.
pub fn lay<'r>(
    root: Root<'_>,
    target: &Path,
    many: bool,
    owners: bool,
    stream: Box<dyn Read + 'r>,
) -> Result<Vec<PathBuf>> {
    let (parent, new_name) = destination(root, target, many)?;
    let mut tree = Tree::in_use(parent);
    let mut left_out = Vec::new();
    let keep = Keep {
        attribute: if owners { is_owners } else { |_| false },
        nodes: Nodes::None,
        set_id: owners,
        owner: owners,
    };
    entry::each(stream, &mut |item| {
        let path = renamed(&item.path, new_name.as_deref())?;
        if item.is_hard_link() {
            let first = renamed(&item.link_target()?, new_name.as_deref())?;
            return tree.hard_link(&path, &first);
        }
        if !item.lay(&path, &mut tree, keep)? {
            left_out.push(path);
        }
        Ok(())
    })?;
    tree.settle()?;
    Ok(left_out)
}

fn is_owners(name: &str) -> bool {
    name.starts_with("user.") || name.starts_with("system.posix_acl_")
}

/// The directory to begin in, and the name that what comes is to have there.
fn destination(root: Root<'_>, target: &Path, many: bool) -> Result<(OwnedFd, Option<OsString>)> {
    let shown = || format!("open {}", target.display());
    match open(root, target) {
        Ok(directory) => return Ok((directory, None)),
        Err(error) => match rustix::io::Errno::from_io_error(&error) {
            Some(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => {}
            _ => return Err(error).with_context(shown),
        },
    }
    if many || target.as_os_str().as_bytes().ends_with(b"/") {
        bail!("{} is not a directory", target.display());
    }
    let name = target.file_name().with_context(|| format!("{} has no name", target.display()))?;
    Ok((directory(root, target.parent().unwrap_or(Path::new("")))?, Some(name.to_owned())))
}

/// `path` with its first name changed.
fn renamed(path: &Path, name: Option<&OsStr>) -> Result<PathBuf> {
    let path = tree::inside(path)?;
    let Some(name) = name else { return Ok(path) };
    let mut parts = path.components();
    ensure!(matches!(parts.next(), Some(Component::Normal(_))), "an entry without a name");
    let rest = parts.as_path();
    Ok(if rest.as_os_str().is_empty() { PathBuf::from(name) } else { Path::new(name).join(rest) })
}

fn directory(root: Root<'_>, path: &Path) -> Result<OwnedFd> {
    open(root, path).with_context(|| format!("open {}", path.display()))
}

fn open(root: Root<'_>, path: &Path) -> std::io::Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    match root {
        Some(root) => file::open_inside(root, path, OFlags::DIRECTORY, file::INSIDE),
        None => Ok(rustix::fs::openat(CWD, path, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_a_name_in_a_directory_or_all_that_is_in_it() {
        for (path, parent, name) in [
            ("a", "", Some("a")),
            ("/a/b/", "/a", Some("b")),
            ("/", "/", None),
            (".", ".", None),
            ("/a/.", "/a/.", None),
            ("/a/..", "/a", None),
        ] {
            let found = split(Path::new(path));
            assert_eq!(found.1, name.map(OsStr::new), "{path}");
            if name.is_some() {
                assert_eq!(found.0, Path::new(parent), "{path}");
            }
        }
    }

    #[test]
    fn the_first_name_alone_is_changed() {
        let check = |path: &str, name: Option<&str>| renamed(Path::new(path), name.map(OsStr::new)).ok();
        assert_eq!(check("./a/b", None), Some("a/b".into()));
        assert_eq!(check("/a/a", Some("c")), Some("c/a".into()));
        assert_eq!(check("a", Some("c")), Some("c".into()));
        assert_eq!(check(".", Some("c")), None);
        assert_eq!(check("a/../../b", Some("c")), None);
    }
}
