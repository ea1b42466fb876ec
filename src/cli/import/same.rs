//! Whether two small trees of our own are the same.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};

use crate::source;

/// Everything in a small tree of our own, to compare it with another.
pub fn contents(directory: &Path) -> Result<BTreeMap<PathBuf, Vec<u8>>> {
    let mut found = BTreeMap::new();
    let mut open = vec![PathBuf::new()];
    while let Some(below) = open.pop() {
        let path = directory.join(&below);
        for entry in std::fs::read_dir(&path).with_context(|| format!("list {}", path.display()))? {
            let entry = entry?;
            let (kind, inner) = (entry.file_type()?, below.join(entry.file_name()));
            ensure!(found.len() < source::ENTRIES_MAX, "{} has too many entries", directory.display());
            let value = if kind.is_dir() {
                open.push(inner.clone());
                Vec::new()
            } else if kind.is_symlink() {
                std::fs::read_link(entry.path())?.into_os_string().into_encoded_bytes()
            } else {
                digest(&entry.path())?
            };
            found.insert(inner, value);
        }
    }
    Ok(found)
}

fn digest(path: &Path) -> Result<Vec<u8>> {
    let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    let (mut digest, mut chunk, mut at) = (Sha256::new(), vec![0; 1 << 16], 0);
    loop {
        match file.read_at(&mut chunk, at)? {
            0 => return Ok(digest.finalize().to_vec()),
            count => {
                digest.update(&chunk[..count]);
                at += count as u64;
            }
        }
    }
}
