//! The layer around the host's own /usr: directories, links, a small /etc of its own, and the few
//! files of the host's /etc without which programs from its /usr do not run.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use rustix::fs::{AtFlags, FileType};
use sha2::{Digest, Sha256};

use super::Progress;
use super::copied::{metadata, open_regular};
use super::tree::{Metadata, Tree};
use crate::sys::file;
use crate::template::hex;

/// Raised when the layer is made another way, so that its name changes.
const VERSION: &str = "1";
/// Entries of one copied directory; /etc/ssl/certs has some 300.
const NAMES_MAX: usize = 10_000;

/// Directories with their modes. /usr is where the host's own is bound.
const DIRECTORIES: &[(&str, u32)] = &[
    ("", 0o755),
    ("dev", 0o755),
    ("etc", 0o755),
    ("home", 0o755),
    ("mnt", 0o755),
    ("opt", 0o755),
    ("proc", 0o555),
    ("root", 0o700),
    ("run", 0o755),
    ("srv", 0o755),
    ("sys", 0o555),
    ("tmp", 0o1777),
    ("usr", 0o755),
    ("var", 0o755),
    ("var/cache", 0o755),
    ("var/lib", 0o755),
    ("var/log", 0o755),
    ("var/tmp", 0o1777),
];

const LINKS: &[(&str, &str)] =
    &[("var/run", "/run"), ("var/lock", "/run/lock"), ("etc/mtab", "../proc/self/mounts")];

/// Laid as the host has them, and only if they are links into /usr there.
const USR_LINKS: &[&str] = &["bin", "sbin", "lib", "lib32", "lib64", "libx32"];

/// Files of the layer's own; the host's users are nobody's business in a jail.
const OWN: &[(&str, &str)] = &[
    (
        "etc/passwd",
        "root:x:0:0:root:/root:/bin/sh\n\
         daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin\n\
         bin:x:2:2:bin:/bin:/usr/sbin/nologin\n\
         mail:x:8:8:mail:/var/mail:/usr/sbin/nologin\n\
         www-data:x:33:33:www-data:/var/www:/usr/sbin/nologin\n\
         nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
    ),
    (
        "etc/group",
        "root:x:0:\ndaemon:x:1:\nbin:x:2:\ntty:x:5:\nmail:x:8:\nwww-data:x:33:\nutmp:x:43:\n\
         users:x:100:\nnogroup:x:65534:\n",
    ),
    ("etc/shells", "/bin/sh\n/bin/bash\n"),
    ("etc/hosts", "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n"),
    (
        "etc/nsswitch.conf",
        "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\nnetworks: files\n\
         protocols: files\nservices: files\n",
    ),
    ("etc/fstab", ""),
];

/// Taken from the host's /etc: regular files that everybody may read, links as they are, and of
/// a directory what lies in it directly.
const TAKEN: &[&str] = &[
    "alternatives",
    "ca-certificates.conf",
    "debian_version",
    "gai.conf",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "localtime",
    "mime.types",
    "os-release",
    "pki/ca-trust/extracted/pem",
    "pki/tls/certs",
    "protocols",
    "services",
    "ssl/certs",
    "ssl/openssl.cnf",
    "terminfo",
    "timezone",
];

/// What the layer depends on, cheap enough for each pass: one lstat(2) for every thing taken. A
/// directory is seen to change when a file in it is replaced, as packages do, not when one is
/// written in place.
pub fn stamp() -> String {
    let mut digest = Sha256::new();
    digest.update(VERSION);
    for name in USR_LINKS {
        let target = fs::read_link(Path::new("/").join(name)).unwrap_or_default();
        digest.update(format!("{name} {}\n", target.display()));
    }
    for name in TAKEN {
        let seen = fs::symlink_metadata(Path::new("/etc").join(name)).map_or(String::new(), |m| {
            let (seconds, nanoseconds) = (m.ctime(), m.ctime_nsec());
            format!("{} {} {} {seconds} {nanoseconds}", m.mode(), m.size(), m.ino())
        });
        digest.update(format!("{name} {seen}\n"));
    }
    hex(&digest.finalize())
}

/// Makes the layer.
pub fn build(tree: &mut Tree, progress: Progress<'_>) -> anyhow::Result<()> {
    progress("host: the layer around the host's /usr");
    let mode = |mode| Metadata { mode, ..Metadata::default() };
    for (path, bits) in DIRECTORIES {
        tree.directory(Path::new(path), mode(*bits)).with_context(|| format!("/{path}"))?;
    }
    for (path, target) in LINKS {
        tree.link(Path::new(path), Path::new(target), mode(0o777)).with_context(|| format!("/{path}"))?;
    }
    usr_links(tree)?;
    for (path, text) in OWN {
        let size = text.len() as u64;
        tree.file(Path::new(path), mode(0o644), size, &mut text.as_bytes())
            .with_context(|| format!("/{path}"))?;
    }
    for name in TAKEN {
        take(Path::new(name), tree).with_context(|| format!("copy /etc/{name}"))?;
    }
    Ok(())
}

/// A host whose /bin is a directory of its own cannot be shown by its /usr alone.
fn usr_links(tree: &mut Tree) -> anyhow::Result<()> {
    for name in USR_LINKS {
        match fs::read_link(Path::new("/").join(name)) {
            Ok(target) => tree.link(Path::new(name), &target, Metadata::default())?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                bail!("/{name} of this host is not a link into /usr, so a `host` base cannot be made")
            }
            Err(error) => return Err(error).with_context(|| format!("read link /{name}")),
        }
    }
    Ok(())
}

fn take(name: &Path, tree: &mut Tree) -> anyhow::Result<()> {
    let path = Path::new("/etc").join(name);
    let parent = path.parent().unwrap_or(Path::new("/etc"));
    let Ok(directory) = file::open_directory(parent) else { return Ok(()) };
    let last = name.file_name().unwrap_or_default();
    let Ok(stat) = rustix::fs::statat(&directory, last, AtFlags::SYMLINK_NOFOLLOW) else { return Ok(()) };
    if !FileType::from_raw_mode(stat.st_mode).is_dir() {
        return one(&directory, last.as_ref(), &Path::new("etc").join(name), tree);
    }
    let child = file::open_child(&directory, last)?;
    tree.directory(&Path::new("etc").join(name), Metadata { mode: 0o755, ..Metadata::default() })?;
    for inner in file::names(&child, NAMES_MAX)? {
        one(&child, inner.as_ref(), &Path::new("etc").join(name).join(&inner), tree)?;
    }
    Ok(())
}

/// Copies one file or link; leaves out all that is neither, and what not everybody may read.
fn one(directory: &rustix::fd::OwnedFd, name: &Path, to: &Path, tree: &mut Tree) -> anyhow::Result<()> {
    let stat = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW).context("stat")?;
    let root_owned = Metadata { uid: 0, gid: 0, ..metadata(&stat) };
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Symlink => {
            let target = rustix::fs::readlinkat(directory, name, Vec::new()).context("read link")?;
            let target = PathBuf::from(OsString::from_vec(target.into_bytes()));
            tree.link(to, &target, root_owned)
        }
        FileType::RegularFile if stat.st_mode & 0o004 != 0 => {
            let source = open_regular(directory, name)?;
            tree.copy(to, root_owned, &source).map(drop)
        }
        _ => Ok(()),
    }
}
