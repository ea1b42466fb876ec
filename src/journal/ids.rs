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
use crate::sys::namespace::IDS;

/// The first host id of the jail's range, taking one if it has none. `state_dir` is the jail's own.
pub fn claim(state: &Path, state_dir: &Path, name: &JailName, pool: IdPool) -> Result<u32> {
    if let Some(number) = recorded(state_dir)? {
        return Ok(first(pool, number));
    }
    let number = take(state, name, pool)?;
    crate::journal::make_directory(state_dir, 0o700)?;
    crate::journal::replace_synced(&state_dir.join("range"), number.to_string().as_bytes())?;
    Ok(first(pool, number))
}

/// Takes a free range for a jail that keeps no files (`run`).
pub fn take(state: &Path, name: &JailName, pool: IdPool) -> Result<u32> {
    let start = hash(name.as_str()) % pool.ranges;
    for step in 0..pool.ranges {
        let number = (start + step) % pool.ranges;
        let link = state.join("ids").join(number.to_string());
        match std::os::unix::fs::symlink(name.as_str(), &link) {
            Ok(()) => return Ok(number),
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {
                if holder(&link)? == name.as_str() {
                    return Ok(number);
                }
            }
            Err(e) => return Err(e).with_context(|| format!("take id range {}", link.display())),
        }
    }
    bail!("take an id range: all {} of the pool are in use", pool.ranges)
}

/// Gives the range back; only when no file of the jail is left.
pub fn release(state: &Path, name: &JailName, number: u32) -> Result<()> {
    let link = state.join("ids").join(number.to_string());
    match std::fs::read_link(&link) {
        Ok(holder) if holder.as_os_str() == name.as_str() => {
            std::fs::remove_file(&link).with_context(|| format!("release id range {number}"))
        }
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

pub fn number(pool: IdPool, first_id: u32) -> u32 {
    (first_id - pool.first) / IDS
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
}
