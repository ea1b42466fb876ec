//! A jail by the name that somebody typed: which there are, and what is said where there is none.

use std::collections::BTreeSet;
use std::fmt;

use anyhow::{Result, anyhow};

use super::{Options, output};
use crate::desired::{Desired, DesiredJail, HostConfig};
use crate::diagnostic::{self, Diagnostic};
use crate::execute::Host;
use crate::jail::JailName;
use crate::journal::Journal;
use crate::source;

/// The host's own keys; the jails' definitions are not needed here, nor are their errors.
pub fn host(options: &Options) -> HostConfig {
    source::host(&options.paths())
}

pub fn load(options: &Options) -> Desired {
    let (desired, found) = source::load(&options.paths());
    tell_incomplete(options, &desired, &found);
    desired
}

/// A file that is wrong is told of with its jail; why not all could be read has no such place, and
/// who looks for a jail that is missing has to know.
pub fn tell_incomplete(options: &Options, desired: &Desired, found: &[Diagnostic]) {
    // Of a host's file that is wrong the verb itself makes an error.
    if !desired.complete && desired.host.broken.is_none() {
        output::diagnostics(options, found);
    }
}

/// What is wanted, and the machine.
pub fn open(options: &Options) -> Result<(Desired, Host)> {
    let desired = load(options);
    let host = Host::open(desired.host.clone())?;
    Ok((desired, host))
}

pub fn jail<'d>(desired: &'d Desired, name: &str) -> Result<&'d DesiredJail> {
    let name = JailName::new(name).map_err(|e| anyhow!(e))?;
    if let Some(reason) = desired.broken.get(&name) {
        return Err(broken(&name, reason));
    }
    desired
        .jails
        .get(&name)
        .ok_or_else(|| anyhow!(no_jail(name.as_str(), desired.jails.keys().map(JailName::as_str))))
}

/// A jail's file has errors: exit status 3, whichever verb asks.
#[derive(Debug)]
pub struct Broken(String);

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Broken {}

/// `reason` is the first error.
pub fn broken(name: &JailName, reason: &str) -> anyhow::Error {
    Broken(format!("{name}: its file has errors: {reason} (`stockade check` shows all)")).into()
}

pub fn no_jail<'k>(name: &str, known: impl IntoIterator<Item = &'k str>) -> String {
    let hint = diagnostic::did_you_mean(name, known).map(|hint| format!(" ({hint})")).unwrap_or_default();
    format!("no jail is named `{name}`{hint}")
}

/// Every jail that is defined, or of which there is something on the machine.
pub fn known(desired: &Desired, journal: &Journal) -> Result<BTreeSet<JailName>> {
    let mut known: BTreeSet<JailName> = journal.names()?.into_iter().collect();
    known.extend(desired.jails.keys().chain(desired.broken.keys()).cloned());
    Ok(known)
}

/// Why nothing can be done inside: the jail is down, or there is none of that name.
pub fn not_running(options: &Options, name: &JailName) -> anyhow::Error {
    let desired = load(options);
    let known = Journal::open(&desired.host.paths).and_then(|journal| known(&desired, &journal));
    match known {
        Ok(known) if !known.contains(name) => {
            anyhow!(no_jail(name.as_str(), known.iter().map(JailName::as_str)))
        }
        _ => anyhow!("{name}: it is not running"),
    }
}
