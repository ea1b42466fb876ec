//! Imports that did not live to their end, and how they are removed: by the next one and by `gc`.

use anyhow::Result;

use crate::execute::{self, Host};
use crate::jail::JailName;
use crate::journal::{self, ids, lock};
use crate::root::{import, removal};
use crate::sys::file;

/// Removes what imports have left that did not live to their end.
pub fn sweep(host: &Host) -> Result<()> {
    for found in dead(host)? {
        found.remove(host)?;
    }
    Ok(())
}

/// One dead import.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Dead {
    Jail(JailName),
    Templates(JailName),
    /// All but its definition is in place.
    Marked(JailName),
}

pub fn dead(host: &Host) -> Result<Vec<Dead>> {
    let jails = host.journal.paths.state.join("jails");
    let mut all: Vec<Dead> = import::dead(&jails)?.into_iter().map(Dead::Jail).collect();
    all.extend(import::dead(&host.config.paths.config.join("templates"))?.into_iter().map(Dead::Templates));
    for name in host.journal.names()? {
        if import::is_marked(&host.journal.state_dir(&name)) {
            all.push(Dead::Marked(name));
        }
    }
    Ok(all)
}

impl Dead {
    pub fn name(&self) -> &JailName {
        match self {
            Self::Jail(name) | Self::Templates(name) | Self::Marked(name) => name,
        }
    }

    pub fn remove(&self, host: &Host) -> Result<()> {
        let paths = &host.journal.paths;
        match self {
            Self::Templates(name) => import::remove_dead(&host.config.paths.config.join("templates"), name),
            Self::Jail(name) => {
                let _lock = lock::jail(paths, name)?;
                let jails = paths.state.join("jails");
                import::remove_dead(&jails, name)?;
                release(host, name)
            }
            Self::Marked(name) => {
                let _lock = lock::jail(paths, name)?;
                let directory = host.journal.state_dir(name);
                if !import::is_marked(&directory) {
                    return Ok(());
                }
                if host.config.paths.config.join("jails.d").join(format!("{name}.toml")).exists() {
                    return journal::remove(&directory.join(import::MARK));
                }
                execute::destroy_data(&host.journal, host.config.ids, name)?;
                release(host, name)
            }
        }
    }
}

/// Of an import that failed at its end: the jail that has its name, and no definition yet, goes,
/// and with it the templates that came for it.
pub fn take_back(host: &Host, name: &JailName, templates: &[JailName]) -> Result<()> {
    let paths = &host.journal.paths;
    if !host.config.paths.config.join("jails.d").join(format!("{name}.toml")).exists() {
        let above = file::open_directory(&host.config.paths.config.join("templates"))?;
        templates.iter().try_for_each(|own| removal::remove(&above, own.as_str().as_ref()))?;
    }
    Dead::Jail(name.clone()).remove(host)?;
    Dead::Marked(name.clone()).remove(host)?;
    host.journal.unlock(lock::jail(paths, name)?, name)
}

/// The ranges of a name that has no files.
fn release(host: &Host, name: &JailName) -> Result<()> {
    if host.journal.state_dir(name).exists() {
        return Ok(());
    }
    let state = &host.journal.paths.state;
    let own = ids::taken(state)?.into_iter().filter(|(_, holder, _)| holder == name);
    own.into_iter().try_for_each(|(number, ..)| ids::release(state, name, number))
}
