//! Ranges of 65,536 host ids, one a jail, never two at once and never again while files of the
//! jail exist.
//!
//! A range is a symbolic link `<state>/ids/N` to the jail's name: made by one atomic call that
//! fails when the range is taken, so that no lock and no list is needed. The search begins at a
//! hash of the name, which keeps a jail's ids the same over destroy and create where it can.

use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};

use crate::desired::IdPool;
use crate::jail::JailName;
use crate::root::changes::HOLDER;
use crate::sys::namespace::IDS;

/// The first host id of the jail's range, taking one if it has none. `state_dir` is the jail's own.
pub fn claim(state: &Path, state_dir: &Path, name: &JailName, pool: IdPool) -> Result<u32> {
    check_pool(state, pool)?;
    if let Some(number) = recorded(state_dir)? {
        return Ok(first(pool, number));
    }
    let number = take_as(state, name.as_str(), pool)?;
    let text = number.to_string();
    let recorded = crate::journal::make_directory(state_dir, 0o700)
        .and_then(|()| crate::journal::replace_synced(&state_dir.join("range"), text.as_bytes()));
    if recorded.is_err() && self::recorded(state_dir).is_ok_and(|range| range.is_none()) {
        // The first error is the one to tell.
        let _ = release(state, name, number);
    }
    recorded.map(|()| first(pool, number))
}

/// Takes a free range, or the one this name has already.
fn take_as(state: &Path, name: &str, pool: IdPool) -> Result<u32> {
    let start = hash(name) % pool.ranges;
    for step in 0..pool.ranges {
        let number = (start + step) % pool.ranges;
        let link = state.join("ids").join(number.to_string());
        match std::os::unix::fs::symlink(name, &link) {
            Ok(()) => return Ok(number),
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {
                if holder(&link)? == name {
                    return Ok(number);
                }
            }
            Err(e) => return Err(e).with_context(|| format!("take id range {}", link.display())),
        }
    }
    bail!("take an id range: all {} of the pool are in use", pool.ranges)
}

/// In the state directory: a link to the number where the pool began when its first range was given
/// out. Made by one call, as ranges are, it is never half there.
const FIRST: &str = "ids-first";
/// How the names of slots begin.
const SLOT: &str = ".run-";

/// Refuses a pool that begins elsewhere than it did when ranges were given out that have files:
/// those are of the old ids, and a jail that takes up its number again would have others.
pub fn check_pool(state: &Path, pool: IdPool) -> Result<()> {
    let path = state.join(FIRST);
    let before: Option<u32> = match std::fs::read_link(&path) {
        Ok(number) => number.to_str().and_then(|number| number.parse().ok()),
        Err(e) if e.kind() == ErrorKind::NotFound => None,
        Err(e) => return Err(e).with_context(|| format!("read {}", path.display())),
    };
    match before {
        Some(before) if before == pool.first => return Ok(()),
        Some(before) if has_files(state)? => bail!(
            "use ids from {} on: jails have files with ids from {before} on: set `ids.first` back, or destroy them before",
            pool.first
        ),
        _ => {}
    }
    crate::journal::remove(&path)?;
    match std::os::unix::fs::symlink(pool.first.to_string(), &path) {
        // Another one of this moment has the same host's file.
        Err(e) if e.kind() == ErrorKind::AlreadyExists => Ok(()),
        other => other.with_context(|| format!("make {}", path.display())),
    }
}

/// Whether a range is taken by anything but a slot, which has no files.
fn has_files(state: &Path) -> Result<bool> {
    let path = state.join("ids");
    for entry in std::fs::read_dir(&path).with_context(|| format!("list {}", path.display()))? {
        let entry = entry.with_context(|| format!("list {}", path.display()))?;
        let is_link = entry.file_type().is_ok_and(|kind| kind.is_symlink());
        if is_link && !holder(&entry.path())?.starts_with(SLOT) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Throw-away jails at the same time.
const SLOTS_MAX: u32 = 1024;

/// A range that is lent for as long as this lives, by flock(2). Slots stay when they are free:
/// making and removing a file for each `run` would cost more than the rest of its book-keeping.
pub struct Slot {
    pub number: u32,
    _lock: std::fs::File,
}

/// Borrows a range for a jail that keeps no files.
pub fn slot(state: &Path, pool: IdPool) -> Result<Slot> {
    check_pool(state, pool)?;
    for index in 0..SLOTS_MAX {
        let name = format!("{SLOT}{index}");
        let path = state.join("ids").join(&name);
        let file = std::fs::File::options().read(true).write(true).create(true).truncate(false).open(&path);
        let file = file.with_context(|| format!("open {}", path.display()))?;
        if file.try_lock().is_ok() {
            let number =
                slot_number(state, &file, &name, pool).with_context(|| format!("use {}", path.display()))?;
            return Ok(Slot { number, _lock: file });
        }
    }
    bail!("take an id range: {SLOTS_MAX} throw-away jails run already")
}

/// The slot's own range, taken when it is new. The link's target is no jail's name.
fn slot_number(state: &Path, mut file: &std::fs::File, name: &str, pool: IdPool) -> Result<u32> {
    use std::io::{Read, Write};
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    if let Ok(number) = text.trim().parse()
        && number < pool.ranges
    {
        return Ok(number);
    }
    let number = take_as(state, name, pool)?;
    file.write_all(number.to_string().as_bytes())?;
    Ok(number)
}

/// Gives the range back; only when no file of the jail is left.
pub fn release(state: &Path, name: &JailName, number: u32) -> Result<()> {
    let link = state.join("ids").join(number.to_string());
    match std::fs::read_link(&link) {
        Ok(holder) if holder.as_os_str() == name.as_str() => {
            std::fs::remove_file(&link).with_context(|| format!("release id range {number}"))
        }
        // Kept for files of the jail that others use.
        Ok(holder) if holder.as_os_str() == HOLDER => Ok(()),
        Ok(holder) => bail!("release id range {number}: it belongs to {}", holder.display()),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e).with_context(|| format!("release id range {number}")),
    }
}

/// Every range that is taken: its number, whose it is, and for how long, as far as the clock tells.
pub fn taken(state: &Path) -> Result<Vec<(u32, JailName, Duration)>> {
    let path = state.join("ids");
    let mut all = Vec::new();
    for entry in std::fs::read_dir(&path).with_context(|| format!("list {}", path.display()))? {
        let entry = entry.with_context(|| format!("list {}", path.display()))?;
        let number = entry.file_name().to_str().and_then(|name| name.parse().ok());
        let (Some(number), Ok(holder)) = (number, holder(&entry.path())) else { continue };
        let age = entry
            .metadata()
            .and_then(|found| found.modified())
            .map(|made| made.elapsed().unwrap_or_default());
        if let (Ok(name), Ok(age)) = (JailName::new(&holder), age) {
            all.push((number, name, age));
        }
    }
    Ok(all)
}

/// The range a jail's state directory is bound to.
pub fn recorded(state_dir: &Path) -> Result<Option<u32>> {
    let path = state_dir.join("range");
    match std::fs::read_to_string(&path) {
        Ok(text) => {
            let number = text.trim().parse().map_err(|_| anyhow!("read {}: not a range", path.display()))?;
            Ok(Some(number))
        }
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e).with_context(|| format!("read {}", path.display())),
    }
}

pub fn first(pool: IdPool, number: u32) -> u32 {
    pool.first + number * IDS
}

fn holder(link: &Path) -> Result<String> {
    let target = std::fs::read_link(link).with_context(|| format!("read {}", link.display()))?;
    Ok(target.to_string_lossy().into_owned())
}

/// FNV-1a: spreads names over the pool, nothing more is asked of it.
fn hash(text: &str) -> u32 {
    text.bytes().fold(0x811c_9dc5, |h, b| (h ^ u32::from(b)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use super::*;

    const POOL: IdPool = IdPool { first: 1_000_000, ranges: 3 };

    fn number(pool: IdPool, first_id: u32) -> u32 {
        (first_id - pool.first) / IDS
    }

    #[test]
    fn ranges_are_kept_apart_and_remembered() {
        let state = tempfile::tempdir().unwrap();
        std::fs::create_dir(state.path().join("ids")).unwrap();
        let name = |n: &str| JailName::new(n).unwrap();
        let own = |n: &str| state.path().join(n);
        let mut firsts: Vec<u32> =
            ["a", "b", "c"].iter().map(|n| claim(state.path(), &own(n), &name(n), POOL).unwrap()).collect();
        assert_eq!(claim(state.path(), &own("a"), &name("a"), POOL).unwrap(), firsts[0]);
        assert!(claim(state.path(), &own("d"), &name("d"), POOL).is_err(), "the pool is used up");
        release(state.path(), &name("b"), number(POOL, firsts[1])).unwrap();
        assert!(release(state.path(), &name("b"), number(POOL, firsts[0])).is_err(), "not its own");
        assert_eq!(claim(state.path(), &own("d"), &name("d"), POOL).unwrap(), firsts[1]);
        firsts.sort_unstable();
        firsts.dedup();
        assert_eq!(firsts.len(), 3);
    }

    #[test]
    fn the_pool_does_not_move_under_files() {
        let state = tempfile::tempdir().unwrap();
        std::fs::create_dir(state.path().join("ids")).unwrap();
        let moved = IdPool { first: 2_000_000, ..POOL };
        check_pool(state.path(), POOL).unwrap();
        drop(slot(state.path(), POOL).unwrap());
        drop(slot(state.path(), moved).unwrap());
        check_pool(state.path(), POOL).unwrap();
        let name = JailName::new("a").unwrap();
        let taken = number(POOL, claim(state.path(), &state.path().join("a"), &name, POOL).unwrap());
        let error = check_pool(state.path(), moved).unwrap_err().to_string();
        assert!(error.contains("ids from 1000000 on: set `ids.first` back"), "{error}");
        check_pool(state.path(), IdPool { ranges: 1, ..POOL }).unwrap();
        release(state.path(), &name, taken).unwrap();
        check_pool(state.path(), moved).unwrap();
    }

    #[test]
    fn slots_are_lent_and_come_back() {
        let state = tempfile::tempdir().unwrap();
        std::fs::create_dir(state.path().join("ids")).unwrap();
        let one = slot(state.path(), POOL).unwrap();
        let two = slot(state.path(), POOL).unwrap();
        assert_ne!(one.number, two.number);
        let number = one.number;
        drop(one);
        assert_eq!(slot(state.path(), POOL).unwrap().number, number);
    }
}
