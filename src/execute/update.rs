//! Live changes of a running jail: limits, addresses, names, rendered files.

use std::os::fd::AsFd;

use anyhow::{Context, Result, anyhow, bail};

use super::{Host, inside, stop};
use crate::desired::{DesiredJail, OnChange, RootFile};
use crate::jail::{Jail, Settings};
use crate::live::Record;
use crate::plan::Action;
use crate::sys::{namespace, process};
use crate::{network, root};

/// Carries out an `Update`; afterwards the record holds exactly the keys it names.
pub fn update(host: &Host, wanted: &DesiredJail, action: &Action, mut record: Record) -> Result<()> {
    let keys: Vec<&str> =
        action.changes.iter().chain(&action.drift).map(|change| change.key.as_str()).collect();
    let next = merged(&record.settings, &wanted.settings, &keys);
    let before = Jail::from_settings(&record.name, &record.settings).map_err(anyhow::Error::msg)?;
    let after = Jail::from_settings(&record.name, &next).map_err(anyhow::Error::msg)?;
    let has = |prefix: &str| keys.iter().any(|key| key.starts_with(prefix));
    if has("limits.") {
        limits(host, &before, &after)?;
    }
    if has("limits.disk") || has("limits.inodes") {
        super::volume::set_limits(host, &after, record.first_id)?;
    }
    if has("network.bridge") {
        rejoin(host, &before, &record)?;
    }
    if ["address", "gateway", "mac", "mtu"].iter().any(|key| has(&format!("network.{key}"))) {
        addresses(host, &after, &record)?;
    }
    if has("host.hostname") || has("host.domainname") {
        names(&after, &record)?;
    }
    if has("network.address") || has("host.hostname") || has("host.domainname") {
        etc(host, wanted, &record)?;
    }
    record.settings = next;
    let files: Vec<&RootFile> = wanted
        .root
        .files
        .iter()
        .filter(|file| keys.iter().any(|key| *key == file.target.to_string_lossy()))
        .collect();
    write_files(host, &files, &keys, &mut record)?;
    // Before the record: what was cut off, or failed, is found and done again.
    files.iter().try_for_each(|file| follow(host, &after, &record, file))?;
    host.journal.write_record(&record)
}

/// The settings in force with just these keys as they are wanted.
fn merged(current: &Settings, wanted: &Settings, keys: &[&str]) -> Settings {
    let mut next = current.clone();
    for key in keys {
        match wanted.get(*key) {
            Some(value) => drop(next.insert((*key).to_owned(), value.clone())),
            None => drop(next.remove(*key)),
        }
    }
    next
}

fn limits(host: &Host, before: &Jail, after: &Jail) -> Result<()> {
    let pending = stop::cgroup(host, &after.name)?.set(&before.limits, &after.limits)?;
    if pending.is_empty() {
        return Ok(());
    }
    let lines: Vec<String> = pending.iter().map(ToString::to_string).collect();
    bail!("{}", lines.join("; "))
}

/// The bridge may have gone with all its ports, or the link alone.
fn rejoin(host: &Host, jail: &Jail, record: &Record) -> Result<()> {
    let Some(link) = network::spec(jail, &host.config) else { return Ok(()) };
    host.ensure_bridge(&link.bridge)?;
    let init = record.init.ok_or_else(|| anyhow!("the jail has no init"))?;
    network::rejoin(&link, namespace::open(init.pid, "net")?.as_fd())
}

fn addresses(host: &Host, after: &Jail, record: &Record) -> Result<()> {
    let Some(link) = network::spec(after, &host.config) else { return Ok(()) };
    let init = record.init.ok_or_else(|| anyhow!("the jail has no init"))?;
    network::readdress(&link, namespace::open(init.pid, "net")?.as_fd())
}

/// Names and addresses stand in files too.
fn etc(host: &Host, wanted: &DesiredJail, record: &Record) -> Result<()> {
    let files = super::etc::files(wanted, network::spec(&wanted.jail, &host.config).as_ref())?;
    if files.is_empty() {
        return Ok(());
    }
    let init = record.init.ok_or_else(|| anyhow!("the jail has no init"))?;
    root::files::write(crate::probe::root_of(init)?.as_fd(), &files, record.first_id)?;
    Ok(())
}

/// In a thread of its own, which ends in the jail's UTS namespace.
fn names(after: &Jail, record: &Record) -> Result<()> {
    let pidfd = record.init.and_then(process::open).ok_or_else(|| anyhow!("the jail has ended"))?;
    let set = || -> Result<()> {
        namespace::setns(pidfd.as_fd(), libc::CLONE_NEWUTS).context("enter the jail's UTS namespace")?;
        rustix::system::sethostname(after.hostname().as_bytes()).context("set the host name")?;
        let domain = after.host.domainname.as_deref().unwrap_or("(none)");
        rustix::system::setdomainname(domain.as_bytes()).context("set the domain name")
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().spawn_scoped(scope, set).context("start a thread")?;
        thread.join().expect("setting a name does not panic")
    })
}

/// Writes what changed, and forgets files that are no longer owned.
fn write_files(host: &Host, files: &[&RootFile], keys: &[&str], record: &mut Record) -> Result<()> {
    let owned: Vec<RootFile> = files.iter().map(|file| (*file).clone()).collect();
    if !owned.is_empty() {
        let mut all = host.journal.files(&record.name)?;
        all.retain(|file| owned.iter().all(|new| new.target != file.target));
        all.extend_from_slice(&owned);
        host.journal.write_files(&record.name, &all)?;
        let init = record.init.ok_or_else(|| anyhow!("the jail has no init"))?;
        let root = crate::probe::root_of(init)?;
        record.files.extend(root::files::write(root.as_fd(), &owned, record.first_id)?);
    }
    let wanted = |path: &std::path::PathBuf| files.iter().any(|file| file.target == *path);
    record.files.retain(|path, _| wanted(path) || !keys.iter().any(|key| *key == path.to_string_lossy()));
    Ok(())
}

/// What a changed file asks for; a restart is the plan's business, not ours.
fn follow(host: &Host, jail: &Jail, record: &Record, file: &RootFile) -> Result<()> {
    match &file.on_change {
        OnChange::Reload(argv) => inside::run(host, jail, record, argv.clone())
            .with_context(|| format!("on_change of {}", file.target.display())),
        OnChange::Restart | OnChange::None => Ok(()),
    }
}
