//! What is: looks at the journal, /proc, the cgroups, the network and the rendered files, and
//! fills in `live`. Changes nothing, decides nothing.

mod within;

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result};
use rustix::fs::{Mode, OFlags};

use crate::cores;
use crate::desired::HostConfig;
use crate::jail::{JailName, Settings};
use crate::journal::{Journal, Listing, lock};
use crate::limits::{Cgroup, Hierarchies};
use crate::live::{Exit, JailState, Live, LiveJail, Process, Record};
use crate::network::{self, Observed};
use crate::root;
use crate::step::Phase;
use crate::sys::process;

/// Times that a jail is looked at which ends meanwhile.
const LOOKS_MAX: usize = 3;
/// With no more jails than these, links are only dumped when one of them has one.
const FEW: usize = 8;
const OWN_LINK: &[u8] = network::HOST_LINK_PREFIX.as_bytes();

/// One look at everything.
pub fn probe(journal: &Journal, host: &HostConfig, hierarchies: &Hierarchies) -> Result<Live> {
    let listing = journal.listing()?;
    let now_ms = crate::journal::now_ms();
    let mut jails = jails(journal, host, hierarchies, &listing)?;
    let refused = hierarchies.refused();
    let ground = root::volume::ground(&journal.paths.state);
    if ground.project.is_ok() {
        find_counted(&mut jails, &journal.paths.state);
    }
    let root::layers::There { built: layers, building, failed: failed_builds } =
        root::layers::there(&journal.paths.state)?;
    Ok(Live { jails, layers, building, failed_builds, refused, ground, now_ms })
}

/// All jails, on all cores. The dump of links is begun beside them rather than when the first
/// jail with one is found: with many it takes as long as all the rest.
fn jails(
    journal: &Journal,
    host: &HostConfig,
    hierarchies: &Hierarchies,
    listing: &Listing,
) -> Result<BTreeMap<JailName, LiveJail>> {
    let names = &listing.names;
    if names.is_empty() {
        return Ok(BTreeMap::new());
    }
    let look = |name: &JailName| match journal.record(name) {
        Ok(record) => {
            let (mut jail, init) = look(journal, host, hierarchies, name, record)?;
            if let Some(init) = init {
                // Nothing of one that ends meanwhile: the next look tells how.
                let _ = within::look(&mut jail, init.as_fd());
            }
            if listing.counted.contains(name) {
                jail.restarts = journal.restarts(name)?;
            }
            let link = has_link(&jail).then(|| network::host_link(name));
            Ok((jail, link))
        }
        // That jail alone is set apart; the others are not to suffer from it.
        Err(error) => Ok((LiveJail { unreadable: Some(format!("{error:#}")), ..LiveJail::default() }, None)),
    };
    let (looked, links) = std::thread::scope(|scope| {
        // In threads of its own, which go into the jails' namespaces.
        let looking = || cores::map(names, look);
        let looking = std::thread::Builder::new().spawn_scoped(scope, looking).context("start a thread")?;
        let links = (names.len() > FEW).then(network::observe);
        anyhow::Ok((looking.join().expect("a panic ends the program"), links))
    })?;
    let mut looked: Vec<(LiveJail, Option<String>)> = looked.into_iter().collect::<Result<_>>()?;
    if looked.iter().any(|(_, link)| link.is_some()) {
        let links = links.unwrap_or_else(network::observe).context("look at the jails' links")?;
        for (jail, link) in &mut looked {
            if let Some(link) = link {
                observe_link(jail, links.get(link), host);
            }
        }
    }
    Ok(names.iter().cloned().zip(looked.into_iter().map(|(jail, _)| jail)).collect())
}

/// Which volumes a project quota counts.
fn find_counted(jails: &mut BTreeMap<JailName, LiveJail>, state: &Path) {
    for (name, jail) in jails {
        if let Some(volume) = &mut jail.volume {
            volume.counted = root::volume::counted(state, name);
        }
    }
}

/// One jail alone.
pub fn one(
    journal: &Journal,
    host: &HostConfig,
    hierarchies: &Hierarchies,
    name: &JailName,
) -> Result<LiveJail> {
    let (mut jail, _) = look(journal, host, hierarchies, name, journal.record(name)?)?;
    jail.restarts = journal.restarts(name)?;
    if has_link(&jail) {
        observe_link(&mut jail, network::observe()?.get(&network::host_link(name)), host);
    }
    Ok(jail)
}

/// A jail may end while it is looked at, and what was to be seen in it is gone: then again, for
/// what it amounts to now. With a pidfd of its init, if more is to be seen within.
fn look(
    journal: &Journal,
    host: &HostConfig,
    hierarchies: &Hierarchies,
    name: &JailName,
    record: Option<Record>,
) -> Result<(LiveJail, Option<OwnedFd>)> {
    let ended = || record.as_ref().and_then(|record| record.init).is_some_and(ends);
    let look = || look_once(journal, host, hierarchies, name, record.as_ref());
    let mut looked = look();
    for _ in 1..LOOKS_MAX {
        if looked.is_ok() || !ended() {
            break;
        }
        looked = look();
    }
    let (jail, init) = looked?;
    Ok((LiveJail { record, ..jail }, init))
}

fn look_once(
    journal: &Journal,
    host: &HostConfig,
    hierarchies: &Hierarchies,
    name: &JailName,
    record: Option<&Record>,
) -> Result<(LiveJail, Option<OwnedFd>)> {
    let volume = root::volume::held(&journal.paths.state, name)?;
    let mut jail =
        LiveJail { held: journal.held(name), has_data: volume.is_some(), volume, ..LiveJail::default() };
    let Some(record) = record else {
        if runs_unrecorded(journal, host, hierarchies, name)? {
            jail.state = JailState::Up;
        }
        return Ok((jail, None));
    };
    let (pidfd, found) = init_of(record);
    let parent = found.as_ref().map(|found| found.parent);
    // How it ended is written when its init has gone, and looked at after that.
    let exit = if parent.is_none() { journal.exit(record)? } else { None };
    jail.state = state(record, parent, exit.as_ref());
    jail.exit = exit.filter(|_| !record.was_asked());
    let to_be_seen = jail.state == JailState::Up && found.is_some_and(|found| !found.ends);
    if to_be_seen {
        let cgroup = Cgroup::open(&hierarchies.at(&record.cgroup_base)?, &host.cgroup, name.as_str())?;
        jail.observed = cgroup.observe(&record.settings)?;
        if cgroup.frozen()? {
            jail.state = JailState::Frozen;
        }
        jail.changed_files = changed_files(record)?;
        observe_volume(&mut jail, journal, record);
    }
    Ok((jail, pidfd.filter(|_| to_be_seen)))
}

/// What is to be told of its init, which is held if it has to be followed inside: there it cannot be
/// taken for another then.
fn init_of(record: &Record) -> (Option<OwnedFd>, Option<process::Stat>) {
    if within::is_wanted(&record.settings) {
        record.init.and_then(process::hold).unzip()
    } else {
        (None, record.init.and_then(process::look))
    }
}

/// What is seen in it may be half gone by now.
fn ends(init: Process) -> bool {
    process::look(init).is_none_or(|found| found.ends)
}

/// Limits of the volume, for those that have one.
fn observe_volume(jail: &mut LiveJail, journal: &Journal, record: &Record) {
    let limits = ["limits.disk", "limits.inodes"];
    if !limits.iter().any(|key| record.settings.contains_key(*key)) {
        return;
    }
    let root = record.init.and_then(|init| root_of(init).ok());
    let whose = (&record.name, record.first_id);
    let root = root.as_ref().map(AsFd::as_fd);
    jail.observed.extend(root::volume::observe(&journal.paths.state, whose, &record.settings, root));
}

/// Whether the jail's record was lost, with the run directory say, while it ran. One of `run` has
/// none, but its lock.
fn runs_unrecorded(
    journal: &Journal,
    host: &HostConfig,
    hierarchies: &Hierarchies,
    name: &JailName,
) -> Result<bool> {
    let cgroup = Cgroup::open(hierarchies, &host.cgroup, name.as_str())?;
    Ok(cgroup.exists() && cgroup.populated()? && !lock::is_up(&journal.paths, name)?)
}

/// Whether there is a link to look at.
fn has_link(jail: &LiveJail) -> bool {
    let running = matches!(jail.state, JailState::Up | JailState::Frozen);
    let settings = jail.record.as_ref().map(|record| &record.settings);
    running && settings.is_some_and(wants_link)
}

fn wants_link(settings: &Settings) -> bool {
    settings.get("network.mode").is_some_and(|mode| mode == "vnet")
}

/// What a record and the processes it names amount to; `parent` is its init's, if that runs.
fn state(record: &Record, parent: Option<i32>, exit: Option<&Exit>) -> JailState {
    let settled = record.phase == Phase::Up && !record.stopping;
    if record.stopping && record.phase == Phase::Release {
        return JailState::Down;
    }
    if let Some(exit) = exit {
        return if settled { JailState::Exited(exit.clone()) } else { JailState::Partial };
    }
    // The keeper is the init's parent as long as it runs: one look at the init tells of both.
    let kept = |keeper: Process| parent == Some(keeper.pid) || process::alive(keeper);
    match (settled, parent.is_some(), record.keeper.is_some_and(kept)) {
        // Or it has ended just now, and the keeper is about to write how, and rings then.
        (true, _, true) => JailState::Up,
        (true, true, false) => JailState::Orphaned,
        // Keeper and init were both killed: nobody could write how it ended.
        (true, false, false) => JailState::Exited(Exit { signal: Some(libc::SIGKILL), ..Exit::default() }),
        (false, ..) => JailState::Partial,
    }
}

/// The bridge by its name, and what keeps it from carrying anything: nothing else has that name.
fn joined(link: Option<&Observed>, host: &HostConfig) -> String {
    let Some((link, port)) = link.and_then(|link| Some((link, link.bridge.as_ref()?))) else {
        return String::new();
    };
    let wanted = host.bridges.get(&port.bridge).map(|bridge| bridge.address.as_slice());
    let missing = wanted.unwrap_or_default().iter().find(|address| !port.addresses.contains(address));
    match missing {
        _ if !link.up => format!("{} (the jail's port is down)", port.bridge),
        _ if !port.up => format!("{} (down)", port.bridge),
        Some(address) => format!("{} (without {address})", port.bridge),
        None => port.bridge.clone(),
    }
}

/// What the host end of the jail's link is: a port of which bridge, and the addresses inside,
/// written as the definition writes them.
fn observe_link(jail: &mut LiveJail, found: Option<&Observed>, host: &HostConfig) {
    let Some(record) = &jail.record else { return };
    let is_whole = found.is_some_and(|link| link.bridge.is_some() && !link.addresses.is_empty());
    if !is_whole && record.init.is_some_and(ends) {
        return;
    }
    jail.observed.insert("network.bridge".into(), joined(found, host).into());
    if !record.settings.contains_key("network.address") {
        return;
    }
    let addresses: Vec<String> =
        found.map(|link| link.addresses.iter().map(ToString::to_string).collect()).unwrap_or_default();
    // The kernel lists families apart; order is not drift.
    let wanted = record.settings["network.address"].as_array().cloned().unwrap_or_default();
    let same = wanted.len() == addresses.len()
        && wanted.iter().all(|w| w.as_str().is_some_and(|w| addresses.iter().any(|a| a == w)));
    let value = if same { record.settings["network.address"].clone() } else { addresses.into() };
    jail.observed.insert("network.address".into(), value);
}

fn changed_files(record: &Record) -> Result<BTreeSet<std::path::PathBuf>> {
    if record.files.is_empty() {
        return Ok(BTreeSet::new());
    }
    let Some(init) = record.init else { return Ok(BTreeSet::new()) };
    Ok(crate::root::files::changed(root_of(init)?.as_fd(), &record.files, record.first_id))
}

/// The root of a running jail, by its init: `/proc/PID/root`.
pub fn root_of(init: Process) -> Result<OwnedFd> {
    let path = format!("/proc/{}/root", init.pid);
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(&path, flags, Mode::empty()).with_context(|| format!("open {path}"))?;
    // Checked after the open, so that it cannot have been another process's.
    if process::alive(init) {
        return Ok(root);
    }
    anyhow::bail!("open {path}: the jail has ended")
}

/// Bridges that exist, by their sysfs directories; none when /sys is not there. The jails' own
/// links are none, and many.
pub fn bridges() -> BTreeSet<String> {
    let Ok(entries) = std::fs::read_dir("/sys/class/net") else { return BTreeSet::new() };
    entries
        .filter_map(Result::ok)
        .filter(|entry| !entry.file_name().as_encoded_bytes().starts_with(OWN_LINK))
        .filter(|entry| entry.path().join("bridge").exists())
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_and_its_processes_amount_to_a_state() {
        let me = process::identify(std::process::id().cast_signed()).unwrap();
        let gone = Process { start_time: me.start_time + 1, ..me };
        let killed = Exit { signal: Some(libc::SIGKILL), ..Exit::default() };
        let ended = Exit { code: Some(3), ..Exit::default() };
        let check = |phase: Phase, stopping: bool, init: Process, keeper: Process, exit: Option<&Exit>| {
            let record = Record {
                schema: crate::live::RECORD_SCHEMA,
                boot_id: String::new(),
                name: JailName::new("web").unwrap(),
                instance: String::new(),
                file: "web.toml".into(),
                phase,
                stopping,
                settings: Settings::new(),
                layers: Vec::new(),
                host_usr: false,
                etc: Vec::new(),
                files: BTreeMap::new(),
                keeper: Some(keeper),
                init: Some(init),
                first_id: 0,
                cgroup_base: String::new(),
                started_ms: 0,
                hooks_done: BTreeSet::new(),
                instead_of: None,
            };
            state(&record, record.init.and_then(process::look).map(|found| found.parent), exit)
        };
        for (phase, stopping, init, keeper, exit, expect) in [
            (Phase::Up, false, me, me, None, JailState::Up),
            (Phase::Up, false, me, gone, None, JailState::Orphaned),
            (Phase::Up, false, gone, me, None, JailState::Up),
            (Phase::Up, false, gone, gone, None, JailState::Exited(killed.clone())),
            (Phase::Up, false, gone, me, Some(&ended), JailState::Exited(ended.clone())),
            // Not on its own yet: whatever runs, and however it ended, it is a start that was cut.
            (Phase::Poststart, false, me, me, None, JailState::Partial),
            (Phase::Poststart, false, gone, gone, Some(&ended), JailState::Partial),
            (Phase::Create, false, gone, gone, None, JailState::Partial),
            (Phase::Terminate, true, me, me, None, JailState::Partial),
            (Phase::Poststop, true, gone, gone, Some(&ended), JailState::Partial),
            (Phase::Release, true, gone, gone, Some(&ended), JailState::Down),
        ] {
            assert_eq!(check(phase, stopping, init, keeper, exit), expect, "{phase} {stopping}");
        }
    }
}
