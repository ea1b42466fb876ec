//! Completion: the script for a shell asks this program, which knows the jails and templates.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use clap_complete::CompletionCandidate;
use clap_complete::env::{CompleteEnv, Shells};

use super::{DONE, output};
use crate::{keys, resolve};

/// How the script asks.
const ASKED: &str = "STOCKADE_COMPLETE";
const PROGRAM: &str = "stockade";

/// Answers a shell's script and ends, if that is what called.
pub fn answer(line: fn() -> clap::Command) {
    CompleteEnv::with_factory(line).var(ASKED).bin(PROGRAM).complete();
}

pub fn script(shell: clap_complete::Shell) -> Result<i32> {
    let shells = Shells::builtins();
    let name = shell.to_string();
    let writer = shells.completer(&name).ok_or_else(|| anyhow!("there is no completion for {name}"))?;
    let mut script = Vec::new();
    writer
        .write_registration(ASKED, PROGRAM, PROGRAM, PROGRAM, &mut script)
        .context("write the completion script")?;
    output::text(&String::from_utf8_lossy(&script));
    Ok(DONE)
}

/// Jails that have a definition.
pub fn jails() -> Vec<CompletionCandidate> {
    let stem = |path: &Path| match path.extension() {
        Some(extension) if extension == "toml" => path.file_stem().map(OsStr::to_owned),
        _ => None,
    };
    entries("jails.d").iter().filter_map(|path| stem(path)).map(CompletionCandidate::new).collect()
}

pub fn templates() -> Vec<CompletionCandidate> {
    let own = entries("templates");
    let names = own.iter().filter_map(|path| path.file_name()).map(CompletionCandidate::new);
    names.chain([CompletionCandidate::new(crate::template::HOST)]).collect()
}

pub fn keys() -> Vec<CompletionCandidate> {
    let candidate = |key: &keys::Key| CompletionCandidate::new(key.name).help(Some(key.doc.into()));
    super::reference::all().map(candidate).collect()
}

/// What lies in a directory of the configuration; nothing where it cannot be read. The line that
/// is completed is not looked at for `--config-dir`.
fn entries(directory: &str) -> Vec<PathBuf> {
    let config = std::env::var_os("STOCKADE_CONFIG_DIR").map_or(resolve::CONFIG_DIR.into(), PathBuf::from);
    let found = std::fs::read_dir(config.join(directory)).into_iter().flatten().flatten();
    let hidden = |path: &PathBuf| path.file_name().is_some_and(|n| n.as_encoded_bytes().starts_with(b"."));
    let mut paths: Vec<PathBuf> = found.map(|entry| entry.path()).filter(|path| !hidden(path)).collect();
    paths.sort();
    paths
}
