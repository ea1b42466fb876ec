//! The books of snapshots: which changes are below a jail's upper (`jails/NAME/base.json`), which
//! a label stands for (`jails/NAME/snapshots/LABEL.json`), and what is being done (`pending/NAME`).
//!
//! Every change of these begins with the pending file, which says all that is to be true in the
//! end, and ends with its removal; [`settle`] finishes or undoes what was cut off anywhere between.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::volume::{self, Kind, jail_directory};
use super::{changes, removal};
use crate::jail::JailName;
use crate::journal;
use crate::sys::file;

/// Of the three files.
pub const SCHEMA: u32 = 1;
const LABEL_BYTES_MAX: usize = 63;
/// Snapshots of one jail.
pub const SNAPSHOTS_MAX: usize = 10_000;
/// The snapshot of what a rollback has replaced.
pub const BEFORE_ROLLBACK: &str = "before-rollback";

/// The changes below a jail's own upper, topmost first; there is no file where there are none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Base {
    schema: u32,
    chain: Vec<String>,
}

/// What one label stands for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    pub schema: u32,
    pub label: String,
    pub at_ms: u64,
    /// Topmost first.
    pub chain: Vec<String>,
    /// The template's layers at that time.
    pub layers: Vec<String>,
    pub how: How,
    /// Milliseconds that the jail stood still for it; none where it was not running.
    pub pause_ms: Option<f64>,
    /// Milliseconds that putting everything on the disk took.
    pub flush_ms: f64,
    /// The label prefix of the `[[snapshot]]` that it was taken for.
    #[serde(default)]
    pub schedule: Option<String>,
    /// The instance of the jail that it was copied of while that ran.
    #[serde(default)]
    pub instance: Option<String>,
}

/// How a snapshot's own part came to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum How {
    /// The stopped jail's upper was set aside, and a new one begun over it.
    Moved,
    /// A snapshot of the running jail's subvolume.
    Subvolume,
    /// Copied while the jail stood still, blocks shared.
    Shared,
    /// Copied, with all its data.
    Copied,
    /// Copied is what has changed since the snapshot before, over which it lies.
    Changed,
    /// Nothing was written since the last one.
    Unchanged,
}

/// One operation, from its first trace to its last.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Pending {
    pub schema: u32,
    /// The changes that are being set aside or copied. None: there was nothing to.
    pub change: Option<String>,
    /// What a label is to stand for.
    pub snapshot: Option<Snapshot>,
    /// What is to be below the upper.
    pub base: Option<Vec<String>>,
    /// The jail was frozen for it, by us.
    pub froze: bool,
    /// The jail's upper was copied and not moved, and is to be emptied.
    #[serde(default)]
    pub clear: bool,
    /// The definition of a new jail, made of what is set aside: its file and text.
    #[serde(default)]
    pub definition: Option<(PathBuf, String)>,
}

/// A label: a file name that needs no escaping anywhere.
pub fn check_label(label: &str) -> Result<()> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte);
    let starts_well = label.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    ensure!(
        starts_well && label.len() <= LABEL_BYTES_MAX && label.bytes().all(allowed),
        "`{label}` is not a label: a letter or digit, then up to 62 of letters, digits, - _ . :"
    );
    Ok(())
}

/// `20261125-103000`, in UTC.
pub fn time_label(at_ms: u64) -> String {
    let at = i64::try_from(at_ms).ok().and_then(|at| jiff::Timestamp::from_millisecond(at).ok());
    let at = at.unwrap_or_default().to_zoned(jiff::tz::TimeZone::UTC);
    at.strftime("%Y%m%d-%H%M%S").to_string()
}

fn base_path(state: &Path, name: &JailName) -> PathBuf {
    jail_directory(state, name).join("base.json")
}

fn snapshots(state: &Path, name: &JailName) -> PathBuf {
    jail_directory(state, name).join("snapshots")
}

fn snapshot_path(state: &Path, name: &JailName, label: &str) -> PathBuf {
    snapshots(state, name).join(format!("{label}.json"))
}

fn pending_path(state: &Path, name: &str) -> PathBuf {
    state.join("pending").join(name)
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    match fs::read(path) {
        Ok(text) => {
            let value = serde_json::from_slice(&text).with_context(|| format!("read {}", path.display()))?;
            Ok(Some(value))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
    }
}

fn write<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    let directory = path.parent().expect("each of these lies in a directory");
    journal::make_directory(directory, 0o700)?;
    let text = serde_json::to_vec_pretty(value).context("write a record")?;
    journal::replace_synced(path, &text)
}

/// The changes below the jail's upper, topmost first.
pub fn base(state: &Path, name: &JailName) -> Result<Vec<String>> {
    Ok(read::<Base>(&base_path(state, name))?.unwrap_or_default().chain)
}

fn write_base(state: &Path, name: &JailName, chain: &[String]) -> Result<()> {
    let path = base_path(state, name);
    if chain.is_empty() {
        return journal::remove(&path);
    }
    write(&path, &Base { schema: SCHEMA, chain: chain.to_vec() })
}

/// What a new volume of this kind is to begin as: the topmost of what was set aside, if it is of
/// the same kind and has the jail's ids.
pub fn like(state: &Path, name: &JailName, kind: Kind, first_id: u32) -> Result<Option<PathBuf>> {
    let base = base(state, name)?;
    let Some(top) = base.first() else { return Ok(None) };
    let like = changes::part(state, top, volume::part(kind));
    // A whole root has the ids inside.
    let fits = kind == Kind::Directory || changes::origin(state, top)?.first_id == first_id;
    Ok(like.filter(|_| fits && kind != Kind::Overlay))
}

/// After a volume has begun as the topmost of what was below it.
pub fn forget_top(state: &Path, name: &JailName) -> Result<()> {
    let guard = changes::guard(state)?;
    let base = base(state, name)?;
    write_base(state, name, base.get(1..).unwrap_or_default())?;
    drop(guard);
    changes::sweep(state)
}

/// Lets go of what is below the jail's upper; for a root that is made anew.
pub fn forget_base(state: &Path, name: &JailName) -> Result<()> {
    let path = base_path(state, name);
    if !path.exists() {
        return Ok(());
    }
    journal::remove(&path)?;
    changes::sweep(state)
}

pub fn find(state: &Path, name: &JailName, label: &str) -> Result<Option<Snapshot>> {
    check_label(label)?;
    read(&snapshot_path(state, name, label))
}

/// A jail's snapshots, oldest first.
pub fn list(state: &Path, name: &JailName) -> Result<Vec<Snapshot>> {
    let mut all: Vec<Snapshot> = Vec::new();
    for label in labels(&snapshots(state, name))? {
        all.extend(find(state, name, &label)?);
    }
    all.sort_by(|a, b| (a.at_ms, &a.label).cmp(&(b.at_ms, &b.label)));
    Ok(all)
}

fn labels(directory: &Path) -> Result<Vec<String>> {
    let opened = match file::open_directory(directory) {
        Ok(opened) => opened,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("open {}", directory.display())),
    };
    let names = file::names(&opened, SNAPSHOTS_MAX).context("list the snapshots")?;
    let label = |name: std::ffi::OsString| Some(name.to_str()?.strip_suffix(".json")?.to_owned());
    Ok(names.into_iter().filter_map(label).filter(|label| check_label(label).is_ok()).collect())
}

/// Removes a label; what only it named is swept away afterwards.
pub fn remove(state: &Path, name: &JailName, label: &str) -> Result<()> {
    check_label(label)?;
    journal::remove(&snapshot_path(state, name, label))
}

/// The changes that any jail, any snapshot or any pending operation names.
pub fn named(state: &Path) -> Result<BTreeSet<String>> {
    Ok(lists(state)?.into_iter().flatten().collect())
}

/// Every list of changes that there is.
pub fn lists(state: &Path) -> Result<Vec<Vec<String>>> {
    let mut lists = Vec::new();
    for name in pending_names(state)? {
        if let Some(pending) = pending(state, &name)? {
            lists.extend(pending.change.map(|id| vec![id]));
            lists.extend(pending.base);
            lists.extend(pending.snapshot.map(|snapshot| snapshot.chain));
        }
    }
    for name in jails(state)? {
        lists.push(base(state, &name)?);
        lists.extend(list(state, &name)?.into_iter().map(|snapshot| snapshot.chain));
    }
    Ok(lists)
}

/// Takes changes, of which nothing is left, out of all lists that are not pending. The caller
/// holds the guard.
pub fn leave_out(state: &Path, gone: &BTreeSet<String>) -> Result<()> {
    for name in jails(state)? {
        let mut base = base(state, &name)?;
        if base.iter().any(|id| gone.contains(id)) {
            base.retain(|id| !gone.contains(id));
            write_base(state, &name, &base)?;
        }
        for mut snapshot in list(state, &name)? {
            if snapshot.chain.iter().any(|id| gone.contains(id)) {
                snapshot.chain.retain(|id| !gone.contains(id));
                write(&snapshot_path(state, &name, &snapshot.label), &snapshot)?;
            }
        }
    }
    Ok(())
}

/// The jails, and those to be, that stand on these changes.
pub fn users(state: &Path, id: &str) -> Result<BTreeSet<JailName>> {
    let mut users = BTreeSet::new();
    for name in jails(state)? {
        if base(state, &name)?.iter().any(|one| one == id) {
            users.insert(name);
        }
    }
    for name in pending_names(state)? {
        let base = pending(state, &name)?.and_then(|pending| pending.base);
        if base.is_some_and(|base| base.iter().any(|one| one == id)) {
            users.insert(name);
        }
    }
    Ok(users)
}

fn jails(state: &Path) -> Result<Vec<JailName>> {
    names(&state.join("jails"))
}

/// The jails of which something is pending.
pub fn pending_names(state: &Path) -> Result<Vec<JailName>> {
    names(&state.join("pending"))
}

fn names(directory: &Path) -> Result<Vec<JailName>> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("list {}", directory.display())),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.with_context(|| format!("list {}", directory.display()))?;
        names.extend(entry.file_name().to_str().and_then(|name| JailName::new(name).ok()));
    }
    Ok(names)
}

pub fn pending(state: &Path, name: &JailName) -> Result<Option<Pending>> {
    read(&pending_path(state, name.as_str()))
}

/// Writes down what is about to be done. The changes that it leads to must still be there.
pub fn begin(state: &Path, name: &JailName, pending: &Pending) -> Result<()> {
    let _guard = changes::guard(state)?;
    let lists = [pending.base.as_ref(), pending.snapshot.as_ref().map(|snapshot| &snapshot.chain)];
    for id in lists.into_iter().flatten().flatten() {
        if pending.change.as_ref() != Some(id) && !changes::is_whole(state, id) {
            bail!("the changes {id} are gone");
        }
    }
    for chain in lists.into_iter().flatten() {
        let most = changes::CHAIN_MAX;
        ensure!(chain.len() <= most, "more than {most} snapshots lie below each other: remove some of them");
    }
    write(&pending_path(state, name.as_str()), pending)
}

/// Finishes what is pending when its changes are whole, and else undoes it. `thaw` lets the jail
/// go on.
pub fn settle(state: &Path, name: &JailName, thaw: &dyn Fn() -> Result<()>) -> Result<()> {
    let Some(pending) = pending(state, name)? else { return Ok(()) };
    if pending.froze {
        thaw().context("thaw the jail after a snapshot that was cut off")?;
    }
    if let Some((file, _)) = &pending.definition {
        clear_cut_definition(file)?;
    }
    let whole = pending.change.as_ref().is_none_or(|id| changes::is_whole(state, id));
    if whole { finish(state, name, &pending) } else { undo(state, name) }
}

/// The end of every operation: what it was to lead to becomes true.
pub fn finish(state: &Path, name: &JailName, pending: &Pending) -> Result<()> {
    let _guard = changes::guard(state)?;
    if let Some(base) = &pending.base {
        write_base(state, name, base)?;
    }
    if let Some(snapshot) = &pending.snapshot {
        write(&snapshot_path(state, name, &snapshot.label), snapshot)?;
    }
    if let Some((file, text)) = pending.definition.as_ref().filter(|(file, _)| !file.exists()) {
        // Written at once and whole: a daemon may be looking.
        journal::replace_synced(file, text.as_bytes())?;
    }
    end(state, name)
}

/// Forgets an operation whose changes never became whole.
pub fn undo(state: &Path, name: &JailName) -> Result<()> {
    let guard = changes::guard(state)?;
    end(state, name)?;
    drop(guard);
    changes::sweep(state)
}

/// Removes what writers were killed over before they had renamed it. The caller holds the guard,
/// under which alone these files are written.
fn clear_cut(directory: &Path, is_cut: impl Fn(&str) -> bool) -> Result<()> {
    let Ok(opened) = file::open_directory(directory) else { return Ok(()) };
    for name in file::names(&opened, SNAPSHOTS_MAX).context("list a directory")? {
        if name.to_str().is_some_and(&is_cut) {
            removal::remove(&opened, &name)?;
        }
    }
    Ok(())
}

/// The same for the definition of a clone, whose directory is a person's: an editor has files there
/// with much the same names.
fn clear_cut_definition(file: &Path) -> Result<()> {
    let start = format!(".{}.", file.file_name().unwrap_or_default().to_string_lossy());
    let is_cut = |name: &str| {
        let writer = name.strip_prefix(&start);
        writer.is_some_and(|pid| !pid.is_empty() && pid.bytes().all(|byte| byte.is_ascii_digit()))
    };
    clear_cut(file.parent().unwrap_or(Path::new("/")), is_cut)
}

/// Of a jail's directory, which holds other things too.
fn is_cut_json(name: &str) -> bool {
    name.starts_with('.') && name.contains(".json.")
}

/// The same for operations that were cut off before they were written down. What is never there
/// is looked for without the guard.
pub fn clear_unwritten(state: &Path) -> Result<()> {
    let directory = state.join("pending");
    let is_cut = |name: &str| name.starts_with('.');
    let mut entries = fs::read_dir(&directory).into_iter().flatten().flatten();
    if !entries.any(|entry| entry.file_name().to_str().is_some_and(is_cut)) {
        return Ok(());
    }
    let _guard = changes::guard(state)?;
    clear_cut(&directory, is_cut)
}

fn end(state: &Path, name: &JailName) -> Result<()> {
    clear_cut(&jail_directory(state, name), is_cut_json)?;
    clear_cut(&snapshots(state, name), is_cut_json)?;
    journal::remove(&pending_path(state, name.as_str()))
}

/// Removes all labels and the base of a jail that is destroyed.
pub fn destroy(state: &Path, name: &JailName) -> Result<()> {
    end(state, name)?;
    journal::remove(&base_path(state, name))?;
    if let Ok(directory) = file::open_directory(&jail_directory(state, name)) {
        removal::remove(&directory, "snapshots".as_ref())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
