//! What a layer held when it was made: a line for each entry, beside the layer, so that it can be
//! said later what has changed in it.

mod walk;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::tree::Digests;
use crate::sys::file;
use crate::template::content_name;

const PREFIX: &str = ".manifest-";
/// The largest, once it is decompressed.
const BYTES_MAX: u64 = 1 << 30;
/// What the words of a line are, after the path.
const WORDS: &[&str] = &["kind", "mode", "owner", "group", "size", "time", "contents", "attributes"];

pub use walk::lines;
use walk::lines_with;

/// By the path as it is written: every byte that could be taken for another is escaped.
pub type Lines = BTreeMap<String, String>;

/// What became of a layer.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    Same,
    /// The first entry that is not as it was, and how.
    Differs(String),
    /// It was made before layers had manifests.
    Unknown,
}

fn path(state: &Path, id: &str) -> PathBuf {
    state.join("layers").join(format!("{PREFIX}{id}"))
}

/// Writes down what is in the layer `root`; it has no name yet.
pub fn write(state: &Path, id: &str, root: &OwnedFd, known: &Digests) -> Result<()> {
    put(state, id, &lines_with(root, known)?)
}

/// The same of lines that are known.
pub fn put(state: &Path, id: &str, lines: &Lines) -> Result<()> {
    let mut text = String::new();
    for (path, line) in lines {
        text.extend([path, "\t", line, "\n"]);
    }
    let packed = zstd::encode_all(text.as_bytes(), 1).context("compress the manifest")?;
    let (done, new) = (path(state, id), path(state, &format!("{id}.new")));
    let write = || -> io::Result<()> {
        let mut file = File::create(&new)?;
        file.write_all(&packed)?;
        file.sync_all()?;
        fs::rename(&new, &done)
    };
    write().with_context(|| format!("write {}", done.display()))
}

/// Forgets a layer that is gone.
pub fn remove(state: &Path, id: &str) -> Result<()> {
    match fs::remove_file(path(state, id)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).context("remove the manifest"),
        _ => Ok(()),
    }
}

/// Compares a layer with what it held when it was made.
pub fn verify(state: &Path, id: &str) -> Result<Verdict> {
    let root = file::open_directory(&super::path(state, id)).with_context(|| format!("open layer {id}"))?;
    judge(state, id, || lines(&root))
}

fn judge(state: &Path, id: &str, found: impl FnOnce() -> Result<Lines>) -> Result<Verdict> {
    Ok(match recorded(state, id) {
        Ok(None) => Verdict::Unknown,
        Ok(Some(wanted)) => compare(&wanted, &found()?).map_or(Verdict::Same, Verdict::Differs),
        Err(_) => Verdict::Differs("its manifest cannot be read".to_owned()),
    })
}

/// What was in a layer when it was made, if anybody wrote that down.
pub fn recorded(state: &Path, id: &str) -> Result<Option<Lines>> {
    let packed = match File::open(path(state, id)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.with_context(|| format!("open the manifest of {id}"))?,
    };
    let mut text = String::new();
    zstd::Decoder::new(packed)
        .and_then(|decoder| decoder.take(BYTES_MAX).read_to_string(&mut text))
        .with_context(|| format!("read the manifest of {id}"))?;
    let split = |line: &str| line.split_once('\t').map(|(path, rest)| (path.to_owned(), rest.to_owned()));
    Ok(Some(text.lines().filter_map(split).collect()))
}

/// What is in a layer, wherever it is.
#[derive(Debug, PartialEq, Eq)]
pub struct Contents {
    /// See [`content_name`].
    pub name: String,
    pub entries: u64,
    pub bytes: u64,
    /// There are device nodes among them.
    pub devices: bool,
}

impl Contents {
    /// Of a layer, which has to be as it was made.
    pub fn verified(state: &Path, id: &str, root: &OwnedFd) -> Result<Self> {
        let found = lines(root)?;
        let contents = Self::new(&found);
        match judge(state, id, || Ok(found))? {
            Verdict::Differs(what) => bail!("it is not as it was made: {what}"),
            Verdict::Same | Verdict::Unknown => Ok(contents),
        }
    }

    /// Sockets do not go along with a layer, so they do not count.
    pub fn new(lines: &Lines) -> Self {
        let nothing = Self { name: String::new(), entries: 0, bytes: 0, devices: false };
        let (mut text, mut contents) = (String::new(), nothing);
        for (path, line) in lines {
            let words: Vec<&str> = line.split('\t').collect();
            let [kind, _, _, _, size, _, number, _] = words[..] else { continue };
            if kind == "socket" {
                continue;
            }
            let is_whiteout = kind == "characterdevice" && number == "0";
            contents.devices |= !is_whiteout && ["characterdevice", "blockdevice"].contains(&kind);
            text.push_str(&format!("{path}\t{line}\n"));
            contents.entries += 1;
            contents.bytes += if kind == "regularfile" { size.parse().unwrap_or(0) } else { 0 };
        }
        Self { name: content_name(&text), ..contents }
    }
}

fn compare(wanted: &Lines, found: &Lines) -> Option<String> {
    let all = wanted.keys().chain(found.keys());
    let first = all.filter(|path| wanted.get(*path) != found.get(*path)).min()?;
    let shown = if first.is_empty() { "/" } else { first };
    Some(match (wanted.get(first), found.get(first)) {
        (Some(_), None) => format!("{shown}: it is missing"),
        (None, _) => format!("{shown}: it was not there"),
        (Some(was), Some(is)) => {
            let mut words = WORDS.iter().zip(was.split('\t').zip(is.split('\t')));
            let what = words.find(|(_, (was, is))| was != is);
            what.map_or(format!("{shown}: it differs"), |(what, (was, is))| {
                format!("{shown}: {what} {is}, was {was}")
            })
        }
    })
}

/// What a layer is made to hold of attributes. Of overlayfs's own marks those that hide what is
/// below: the others speak of where something was written, or lead elsewhere.
pub fn is_kept(name: &str) -> bool {
    name.starts_with("user.")
        || name.starts_with("system.posix_acl_")
        || name == "security.capability"
        || name == "trusted.overlay.opaque"
        || name == "trusted.overlay.whiteout"
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn what_has_changed_is_named() {
        let temporary = tempfile::tempdir().expect("a directory");
        let (state, layer) = (temporary.path(), temporary.path().join("layers/sha256-x"));
        fs::create_dir_all(layer.join("etc")).expect("directories");
        fs::write(layer.join("etc/a"), "one").expect("a file");
        fs::write(layer.join("etc/b\n\t"), "two").expect("a file");
        std::os::unix::fs::symlink("a", layer.join("etc/link")).expect("a link");
        let verdict = || verify(state, "sha256-x").expect("verified");
        assert_eq!(verdict(), Verdict::Unknown);
        let root = file::open_directory(&layer).expect("it is there");
        write(state, "sha256-x", &root, &Digests::new()).expect("written");
        assert_eq!(verdict(), Verdict::Same);
        let check = |expect: &str| match verdict() {
            Verdict::Differs(what) => assert!(what.starts_with(expect), "{what}"),
            other => panic!("{other:?} for {expect}"),
        };
        let times = |path: &Path| fs::metadata(path).and_then(|found| found.modified()).expect("a time");
        let (file, then) = (layer.join("etc/a"), times(&layer.join("etc/a")));
        fs::write(&file, "two").expect("a file");
        check("/etc/a: time ");
        fs::File::options().write(true).open(&file).and_then(|f| f.set_modified(then)).expect("a time");
        check("/etc/a: contents ");
        fs::write(&file, "one").expect("a file");
        fs::File::options().write(true).open(&file).and_then(|f| f.set_modified(then)).expect("a time");
        assert_eq!(verdict(), Verdict::Same);
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("a mode");
        check("/etc/a: mode 0600, was 0644");
        fs::remove_file(layer.join("etc/link")).expect("a link");
        check("/etc: time ");
        fs::write(layer.join("bad"), "").expect("a file");
        check("/: time ");
        fs::write(path(state, "sha256-x"), "rubbish").expect("a file");
        check("its manifest cannot be read");
    }

    #[test]
    fn the_first_difference_is_that_of_the_first_path() {
        let lines = |list: &[(&str, &str)]| -> Lines {
            list.iter().map(|(path, line)| ((*path).to_owned(), (*line).to_owned())).collect()
        };
        let one = lines(&[("/a", "file\t0644"), ("/b", "file\t0644"), ("/c", "file\t0644")]);
        let two = lines(&[("/b", "file\t0600"), ("/c", "link\t0644"), ("/d", "file\t0644")]);
        assert_eq!(compare(&one, &two).as_deref(), Some("/a: it is missing"));
        assert_eq!(compare(&two, &one).as_deref(), Some("/a: it was not there"));
        let three = lines(&[("/a", "file\t0644"), ("/b", "file\t0600"), ("/c", "file\t0644")]);
        assert_eq!(compare(&one, &three).as_deref(), Some("/b: mode 0600, was 0644"));
        assert_eq!(compare(&one, &one), None);
    }
}
