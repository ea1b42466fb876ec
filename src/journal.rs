//! What stockade writes down: a record of each jail for this boot, and what outlives a reboot
//! (id ranges, jails held down by hand, restarts in a row).
//!
//! Records are written before the phase they name, by temporary file and rename. Below the run
//! directory nothing is synced to disk: a crash of the machine ends the boot they belong to. What
//! lies below the state directory is synced.

pub mod exits;
pub mod ids;
pub mod lock;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use rustix::fs::{AtFlags, IFlags, Mode, OFlags, ioctl_getflags, ioctl_setflags, statat};
use rustix::io::Errno;

use crate::desired::{Paths, RootFile};
use crate::jail::JailName;
use crate::live::{RECORD_SCHEMA, Record, Restarts};

/// A record larger than this is not ours.
const RECORD_BYTES_MAX: u64 = 4 << 20;
/// One read for most of them, where a growing buffer takes six.
const RECORD_BYTES_USUAL: usize = 8 << 10;

/// Beside a jail's record.
const FILES: &str = "files.json";

/// Writes a file whole or not at all, for readers and for crashes of this process.
pub fn replace(path: &Path, contents: &[u8]) -> Result<()> {
    let temporary = temporary(path);
    let written = std::fs::write(&temporary, contents).and_then(|()| std::fs::rename(&temporary, path));
    written.inspect_err(|_| drop(remove(&temporary))).with_context(|| format!("write {}", path.display()))
}

/// As [`replace`], and on disk before it returns: for what must outlive the machine's crash.
pub fn replace_synced(path: &Path, contents: &[u8]) -> Result<()> {
    let temporary = temporary(path);
    let write = || -> std::io::Result<()> {
        let mut file = std::fs::File::create(&temporary)?;
        file.write_all(contents)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)?;
        match path.parent() {
            Some(directory) => std::fs::File::open(directory)?.sync_all(),
            None => Ok(()),
        }
    };
    write().inspect_err(|_| drop(remove(&temporary))).with_context(|| format!("write {}", path.display()))
}

/// Beside the target, and not the same for two writers.
fn temporary(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{}", std::process::id()))
}

/// Removes a file; one that is not there is as good.
pub fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Milliseconds since the epoch.
pub fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}

/// random(4): different for each boot of the machine.
pub fn boot_id() -> Result<String> {
    let path = "/proc/sys/kernel/random/boot_id";
    Ok(std::fs::read_to_string(path).with_context(|| format!("read {path}"))?.trim_end().to_owned())
}

/// The journal of one set of directories.
#[derive(Clone, Debug)]
pub struct Journal {
    pub paths: Paths,
    pub boot_id: String,
    /// `<run>/jails` and `<state>/jails`. What is looked at for each jail is opened below these: a
    /// look at a thousand jails would walk the same path some five thousand times.
    run_jails: Arc<OwnedFd>,
    state_jails: Arc<OwnedFd>,
}

/// What the directories say before any file is opened.
#[derive(Clone, Debug, Default)]
pub struct Listing {
    /// Jails with a record or data of their own.
    pub names: Vec<JailName>,
    /// Those whose restarts were counted, or whose start failed.
    pub counted: BTreeSet<JailName>,
}

impl Journal {
    /// Opens it, making its directories.
    pub fn open(paths: &Paths) -> Result<Self> {
        for (directory, mode) in [
            (paths.run.clone(), 0o711),
            (paths.run.join("jails"), 0o700),
            (paths.run.join("locks"), 0o700),
            (paths.run.join("exits"), 0o700),
            (paths.state.clone(), 0o700),
            (paths.state.join("jails"), 0o700),
            (paths.state.join("layers"), 0o700),
            (paths.state.join("ids"), 0o700),
            (paths.log.clone(), 0o750),
        ] {
            make_directory(&directory, mode)?;
        }
        spread(&paths.state.join("jails"));
        Ok(Self {
            paths: paths.clone(),
            boot_id: boot_id()?,
            run_jails: directory(&paths.run.join("jails"))?,
            state_jails: directory(&paths.state.join("jails"))?,
        })
    }

    /// `<run>/jails/NAME`: gone at reboot.
    pub fn run_dir(&self, name: &JailName) -> PathBuf {
        self.paths.run.join("jails").join(name.as_str())
    }

    /// `<state>/jails/NAME`: the jail's own writes and what outlives a reboot.
    pub fn state_dir(&self, name: &JailName) -> PathBuf {
        self.paths.state.join("jails").join(name.as_str())
    }

    /// The record of a jail in this boot. One of another boot describes nothing that still is.
    pub fn record(&self, name: &JailName) -> Result<Option<Record>> {
        let path = format!("{name}/record.json");
        let Some(text) = self.read(&path)? else { return Ok(None) };
        let context = || format!("read {}", self.full(&path).display());
        let record = serde_json::from_slice::<Record>(&text);
        // Another version's may well be read without an error.
        if record.as_ref().is_ok_and(|record| record.schema == RECORD_SCHEMA) {
            return Ok(record.ok().filter(|record| record.boot_id == self.boot_id));
        }
        let head: Schema = serde_json::from_slice(&text).with_context(context)?;
        if head.schema != RECORD_SCHEMA {
            bail!("{}: written by another version (schema {})", context(), head.schema);
        }
        if head.boot_id != self.boot_id {
            return Ok(None);
        }
        record.map(Some).with_context(context)
    }

    /// A file below `<run>/jails`; nothing when it is not there.
    fn read(&self, path: &str) -> Result<Option<Vec<u8>>> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let file = match rustix::fs::openat(&self.run_jails, path, flags, Mode::empty()) {
            Err(Errno::NOENT) => return Ok(None),
            other => File::from(other.with_context(|| format!("open {}", self.full(path).display()))?),
        };
        whole(file).map(Some).with_context(|| format!("read {}", self.full(path).display()))
    }

    fn full(&self, path: &str) -> PathBuf {
        self.paths.run.join("jails").join(path)
    }

    pub fn write_record(&self, record: &Record) -> Result<()> {
        let directory = self.run_dir(&record.name);
        make_directory(&directory, 0o700)?;
        let text = serde_json::to_vec(record).context("write a record")?;
        replace(&directory.join("record.json"), &text)
    }

    /// What a start lays into the jail's root beside its layers: kept, so that the jail can start
    /// again as it was once its files have errors.
    pub fn write_files(&self, name: &JailName, files: &[RootFile]) -> Result<()> {
        if files.is_empty() {
            return Ok(());
        }
        let text = serde_json::to_vec(files).context("write a jail's files")?;
        replace(&self.run_dir(name).join(FILES), &text)
    }

    /// What was kept, perhaps of an earlier start: the record's digests tell.
    pub fn files(&self, name: &JailName) -> Result<Vec<RootFile>> {
        let path = self.run_dir(name).join(FILES);
        let context = || format!("read {}", path.display());
        match std::fs::read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
            other => serde_json::from_slice(&other.with_context(context)?).with_context(context),
        }
    }

    /// Forgets everything of this boot about a jail.
    pub fn forget(&self, name: &JailName) -> Result<()> {
        remove(&exits::bell(&self.paths.run, name))?;
        let directory = self.run_dir(name);
        match std::fs::remove_dir_all(&directory) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(e).with_context(|| format!("remove {}", directory.display()))
            }
            _ => Ok(()),
        }
    }

    /// How the instance of `record` ended, if it has.
    pub fn exit(&self, record: &Record) -> Result<Option<crate::live::Exit>> {
        let Some(text) = self.read(&format!("{}/exit.json", record.name))? else { return Ok(None) };
        // One that cannot be read tells as little as one that was never written.
        let exit = serde_json::from_slice::<exits::ExitRecord>(&text).ok();
        Ok(exit.filter(|exit| exit.instance == record.instance).map(|exit| exit.exit))
    }

    /// Stopped by hand: stays down, over reboots too, until it is started by hand.
    pub fn held(&self, name: &JailName) -> bool {
        self.has(name, "held")
    }

    /// Whether the jail has something of this name below its state directory.
    pub fn has(&self, name: &JailName, what: &str) -> bool {
        statat(&self.state_jails, format!("{name}/{what}"), AtFlags::empty()).is_ok()
    }

    pub fn hold(&self, name: &JailName) -> Result<()> {
        make_directory(&self.state_dir(name), 0o700)?;
        replace_synced(&self.state_dir(name).join("held"), b"")
    }

    pub fn release_hold(&self, name: &JailName) -> Result<()> {
        remove(&self.state_dir(name).join("held"))
    }

    /// Restarts in a row, in this boot.
    pub fn restarts(&self, name: &JailName) -> Result<Restarts> {
        let Some(text) = self.read(&format!("{name}.restarts"))? else { return Ok(Restarts::default()) };
        // Of another boot, or not to be read: it counts from the start.
        let counted = serde_json::from_slice::<Counted>(&text).ok();
        Ok(counted.filter(|c| c.boot_id == self.boot_id).map(|c| c.restarts).unwrap_or_default())
    }

    pub fn write_restarts(&self, name: &JailName, restarts: &Restarts) -> Result<()> {
        let path = self.paths.run.join("jails").join(format!("{name}.restarts"));
        if *restarts == Restarts::default() {
            return remove(&path);
        }
        let counted = Counted { boot_id: self.boot_id.clone(), restarts: restarts.clone() };
        replace(&path, &serde_json::to_vec(&counted).context("write restarts")?)
    }

    /// Names with a record or data of their own.
    pub fn names(&self) -> Result<Vec<JailName>> {
        Ok(self.listing()?.names)
    }

    /// Gives a jail's lock up. Its file goes too, if there is no such jail.
    pub fn unlock(&self, lock: lock::Lock, name: &JailName) -> Result<()> {
        if self.names()?.contains(name) { Ok(()) } else { lock::remove(lock, &self.paths, name) }
    }

    pub fn listing(&self) -> Result<Listing> {
        let mut listing = Listing::default();
        list(&self.paths.run.join("jails"), &mut listing)?;
        list(&self.paths.state.join("jails"), &mut listing)?;
        listing.names.sort();
        listing.names.dedup();
        Ok(listing)
    }
}

/// Restarts with the boot they were counted in.
#[derive(serde::Serialize, serde::Deserialize)]
struct Counted {
    boot_id: String,
    restarts: Restarts,
}

#[derive(serde::Deserialize)]
struct Schema {
    schema: u32,
    boot_id: String,
}

fn list(parent: &Path, listing: &mut Listing) -> Result<()> {
    let entries = std::fs::read_dir(parent).with_context(|| format!("list {}", parent.display()))?;
    for entry in entries {
        let entry = entry.with_context(|| format!("list {}", parent.display()))?;
        let file_name = entry.file_name();
        let Some(file_name) = file_name.to_str() else { continue };
        if let Some(counted) = file_name.strip_suffix(".restarts") {
            let counted = JailName::new(counted);
            // Of one that did not start there may be nothing else.
            listing.names.extend(counted.clone());
            listing.counted.extend(counted);
        } else if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            listing.names.extend(JailName::new(file_name));
        }
    }
    Ok(())
}

fn directory(path: &Path) -> Result<Arc<OwnedFd>> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = rustix::fs::open(path, flags, Mode::empty());
    opened.map(Arc::new).with_context(|| format!("open {}", path.display()))
}

/// All of a short regular file, mostly by one read: what it gives less than asked for is the end.
fn whole(file: File) -> std::io::Result<Vec<u8>> {
    let mut text = Vec::with_capacity(RECORD_BYTES_USUAL);
    rustix::io::read(&file, rustix::buffer::spare_capacity(&mut text))?;
    if text.len() == text.capacity() {
        file.take(RECORD_BYTES_MAX).read_to_end(&mut text)?;
    }
    Ok(text)
}

/// Tells ext4 that what lies in the directory has nothing in common, so that each jail's files go
/// to a block group of their own. Every mount of an overlay makes and deletes a few inodes, ext4
/// steps over each one it has freed in the last five seconds, and with hundreds of jails in one
/// group those steps are most of a start. Other file systems refuse, and need no hint.
fn spread(directory: &Path) {
    let hinted = std::fs::File::open(directory).and_then(|directory| {
        let found = ioctl_getflags(&directory)?;
        if found.contains(IFlags::TOPDIR) {
            Ok(())
        } else {
            Ok(ioctl_setflags(&directory, found | IFlags::TOPDIR)?)
        }
    });
    // Only speed is lost without it.
    let _ = hinted;
}

/// Makes one directory with exactly this mode; an existing one keeps its own.
pub fn make_directory(path: &Path, mode: u32) -> Result<()> {
    use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
    if path.is_dir() {
        return Ok(());
    }
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        .and_then(|()| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)))
        .with_context(|| format!("make directory {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restarts_are_counted_in_one_boot() {
        let base = tempfile::tempdir().unwrap();
        let path = |name: &str| base.path().join(name);
        let paths = Paths { config: path("etc"), state: path("state"), run: path("run"), log: path("log") };
        let mut journal = Journal::open(&paths).unwrap();
        let name = JailName::new("web").unwrap();
        let restarts = Restarts { count: 3, crash_loop: true, ..Restarts::default() };
        journal.write_restarts(&name, &restarts).unwrap();
        assert_eq!(journal.restarts(&name).unwrap(), restarts);
        journal.boot_id = "the next".into();
        assert_eq!(journal.restarts(&name).unwrap(), Restarts::default());
    }

    #[test]
    fn what_cannot_be_written_leaves_nothing_behind() {
        let base = tempfile::tempdir().unwrap();
        // A directory cannot be replaced by a file.
        std::fs::create_dir(base.path().join("record.json")).unwrap();
        for write in [replace, replace_synced] {
            assert!(write(&base.path().join("record.json"), b"{}").is_err());
            assert_eq!(std::fs::read_dir(base.path()).unwrap().count(), 1);
        }
    }
}
