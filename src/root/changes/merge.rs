//! Fewer changes below each other: those that no snapshot ends with any more are merged into the
//! ones below them.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result};

use super::{guard, origin, part, sink, upper};
use crate::root::snapshot;
use crate::root::volume::{SUBVOLUME, THICK};
use crate::sys::file;

/// Merges what can be merged of `chain`, and tells how many of it are gone. `is_still` says
/// whether nobody has these changes mounted, nor will have as long as this takes.
pub fn merge(
    state: &Path,
    chain: &[String],
    is_still: &mut dyn FnMut(&str) -> Result<bool>,
) -> Result<usize> {
    let _guard = guard(state)?;
    let mut lists = snapshot::lists(state)?;
    let mut gone = BTreeSet::new();
    let mut chain = chain.to_vec();
    // From below: what has sunk once is not moved again.
    for at in (1..chain.len()).rev() {
        let (above, below) = (chain[at - 1].clone(), chain[at].clone());
        let alone = lists.iter().any(|list| !always_follows(list, &above, &below));
        if alone || !are_alike(state, &above, &below)? || !is_still(&below)? {
            continue;
        }
        let open =
            |id: &str| file::open_directory(&upper(state, id)).with_context(|| format!("open changes {id}"));
        sink::sink(&open(&above)?, &open(&below)?)
            .with_context(|| format!("merge changes {above} into {below}"))?;
        for list in &mut lists {
            list.retain(|id| *id != above);
        }
        // The next one up is to sink into the same.
        chain[at - 1] = below;
        gone.insert(above);
    }
    if !gone.is_empty() {
        // On the disk, before anything says that the upper ones are of no use.
        rustix::fs::syncfs(file::open_directory(&super::store(state))?).context("sync the changes")?;
        snapshot::leave_out(state, &gone)?;
    }
    Ok(gone.len())
}

/// Whether `below` comes in the list only right below `above`.
fn always_follows(list: &[String], above: &str, below: &str) -> bool {
    match list.iter().position(|id| id == below) {
        None => true,
        Some(0) => false,
        Some(at) => list[at - 1] == above,
    }
}

/// Directories of the same ids, which can become one.
fn are_alike(state: &Path, above: &str, below: &str) -> Result<bool> {
    let is_plain = |id: &str| [SUBVOLUME, THICK].iter().all(|name| part(state, id, name).is_none());
    Ok(is_plain(above) && is_plain(below) && origin(state, above)?.first_id == origin(state, below)?.first_id)
}

#[cfg(test)]
mod tests {
    use super::always_follows;

    #[test]
    fn a_list_that_ends_with_changes_keeps_them_apart() {
        let list = ["d", "c", "b", "a"].map(ToOwned::to_owned);
        for (above, below, expect) in
            [("c", "b", true), ("b", "a", true), ("c", "a", false), ("e", "d", false), ("y", "x", true)]
        {
            assert_eq!(always_follows(&list, above, below), expect, "{above} above {below}");
        }
    }
}
