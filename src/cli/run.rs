//! `run`: a throw-away jail for one command, with this process as its keeper. Its writes go to a
//! tmpfs that dies with it; nothing is left on disk.

use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::Args;
use clap_complete::ArgValueCandidates;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::Signal;

use super::{Options, complete, exec, progress};
use crate::desired::{DesiredJail, Layer};
use crate::execute::{self, Host};
use crate::init::{Order, Report};
use crate::jail::{Jail, JailName};
use crate::journal::{ids, lock};
use crate::keeper::create::{self, Created};
use crate::limits::{Cgroup, Needs};
use crate::spec::{RootSpec, Spec, Stdio};
use crate::sys::process::{self, Cloned};
use crate::{network, root, security, source, terminal};

#[derive(Debug, Args)]
pub struct Run {
    #[arg(add = ArgValueCandidates::new(complete::templates))]
    pub template: String,
    /// A name instead of one made up
    #[arg(long)]
    pub name: Option<String>,
    /// A key of the definition, `limits.memory="64M"`
    #[arg(short, long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    #[command(flatten)]
    pub program: exec::Program,
}

pub fn run(options: &Options, asked: &Run) -> Result<i32> {
    let name = match &asked.name {
        Some(name) => JailName::new(name).map_err(|e| anyhow!(e))?,
        None => JailName::new(&format!("run-{}", std::process::id())).map_err(|e| anyhow!(e))?,
    };
    let (config, wanted) = wanted(options, asked, &name)?;
    let host = Host::open(config)?;
    if host.journal.record(&name)?.is_some() {
        bail!("a jail named {name} exists");
    }
    let lower = layers(options, &host, &wanted)?;
    // From here on something is to be cleared away: ctrl-C ends the command, not this process.
    terminal::hold_signals()?;
    let paths = &host.journal.paths;
    let slot = ids::slot(&paths.state, host.config.ids)?;
    let first_id = ids::first(host.config.ids, slot.number);
    let lock = lock::alone(paths, &name)?.ok_or_else(|| anyhow!("a jail named {name} runs already"))?;
    let status = in_jail(&host, &wanted, (first_id, lower), asked);
    // What could not be removed is left to the next pass, which knows it by the lock.
    if status.is_ok() || !execute::cgroup(&host, &name)?.exists() {
        lock::give_up(lock, paths, &name)?;
    }
    status
}

/// The directories of the template's layers, topmost first. What is missing is built, which ctrl-C
/// undoes.
fn layers(options: &Options, host: &Host, wanted: &DesiredJail) -> Result<Vec<PathBuf>> {
    let is_built = |layer: &&Layer| root::layers::is_built(&host.journal.paths.state, &layer.id);
    let missing: Vec<&Layer> = wanted.root.layers.iter().rev().filter(|layer| !is_built(layer)).collect();
    if !missing.is_empty() {
        build(options, host, wanted, &missing)?;
    }
    host.layers(&wanted.root.layers, &|_| ())
}

/// In a process of its own, for it takes threads, and who makes a jail must have had none. It ends
/// with this one, and is asked to when this one is.
fn build(options: &Options, host: &Host, wanted: &DesiredJail, missing: &[&Layer]) -> Result<()> {
    let template = wanted.jail.template.as_deref().unwrap_or_default();
    let (told, tell) = std::io::pipe().context("make a pipe")?;
    crate::interrupt::catch()?;
    match process::fork().context("fork")? {
        Cloned::Child => {
            drop(told);
            let layer = |layer: &&Layer| progress::build(options, false, host, template, layer);
            let built = process::set_parent_death_signal(Some(Signal::TERM))
                .and_then(|()| missing.iter().try_for_each(layer));
            if let Err(error) = built {
                // Nobody is left to tell it to where the other end is gone.
                let _ = write!(&tell, "{error:#}");
            }
            process::exit_now(0)
        }
        Cloned::Parent { pidfd, .. } => {
            drop(tell);
            wait_asking(told.as_fd(), pidfd.as_fd())?;
            let why = std::io::read_to_string(told).context("wait for the build")?;
            let ended = process::reap(pidfd.as_fd()).context("wait for the build")?;
            ensure!(!crate::interrupt::asked(), "interrupted");
            ensure!(why.is_empty(), "{why}");
            ensure!(ended.status() == 0, "template {template}: its build ended with {}", ended.status());
            Ok(())
        }
    }
}

/// Until something is `told`. A signal may be for this process alone, and is passed on.
fn wait_asking(told: BorrowedFd<'_>, child: BorrowedFd<'_>) -> Result<()> {
    const TICK: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
    let mut passed_on = false;
    loop {
        match poll(&mut [PollFd::new(&told, PollFlags::IN)], Some(&TICK)) {
            Ok(0) | Err(Errno::INTR) => {}
            Ok(_) => return Ok(()),
            Err(e) => return Err(e).context("wait for the build"),
        }
        if crate::interrupt::asked() && !passed_on {
            passed_on = true;
            // One that has ended needs no signal.
            let _ = process::signal(child, libc::SIGTERM);
        }
    }
}

/// The jail as if it were defined in a file, with `--set` on top.
fn wanted(
    options: &Options,
    asked: &Run,
    name: &JailName,
) -> Result<(crate::desired::HostConfig, DesiredJail)> {
    let mut text = format!("template = {}\n", toml_string(&asked.template));
    for pair in &asked.set {
        let (key, value) = pair.split_once('=').ok_or_else(|| anyhow!("--set {pair}: not KEY=VALUE"))?;
        text.push_str(&format!("{key} = {}\n", as_toml(value)));
    }
    text.push_str("exec.command = [\"true\"]\n");
    let (desired, found) = source::load_text(&options.paths(), name, &text);
    match desired.jails.into_iter().find(|(own, _)| own == name) {
        Some((_, mut jail)) => {
            // Set afterwards: what stands on a command line is no Tera expression.
            jail.jail.exec.command.clone_from(&asked.program.argv);
            jail.jail.exec.user = asked.program.user.clone().or(jail.jail.exec.user);
            jail.jail.exec.env.extend(exec::environment(&asked.program.env)?);
            Ok((desired.host, jail))
        }
        None => {
            super::output::diagnostics(options, &found);
            bail!("the jail is not valid")
        }
    }
}

fn toml_string(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// A value as in a file, or a bare word as a string.
pub fn as_toml(value: &str) -> String {
    let text = format!("v = {value}");
    if toml::from_str::<toml::Table>(&text).is_ok() { value.to_owned() } else { toml_string(value) }
}

fn in_jail(
    host: &Host,
    wanted: &DesiredJail,
    (first_id, lower): (u32, Vec<PathBuf>),
    asked: &Run,
) -> Result<i32> {
    let jail: &Jail = &wanted.jail;
    let needs = Needs::of(jail);
    let parent = &host.config.cgroup;
    let link = network::spec(jail, &host.config);
    if let Some(link) = &link {
        network::ensure_bridge(
            &link.bridge,
            &host.config.bridges.get(&link.bridge).cloned().unwrap_or_default(),
        )?;
    }
    let on_terminal = exec::on_terminal() && !asked.program.no_terminal;
    let spec = Spec {
        instance: execute::instance(&jail.name),
        paths: host.journal.paths.clone(),
        cgroup_base: host.hierarchies.base().to_owned(),
        cgroup_parent: parent.clone(),
        first_id,
        root: RootSpec::Overlay {
            own: Vec::new(),
            lower,
            writes: execute::in_memory(&jail.limits)?,
            host_usr: wanted.root.host_usr,
        },
        etc: execute::etc_files(wanted, link.as_ref())?,
        network: link,
        profile: security::profile(jail).map_err(|r| execute::refused(&r))?,
        stdio: if on_terminal { Stdio::Relay } else { Stdio::Inherit },
        jail: jail.clone(),
    };
    let cgroup = Cgroup::create(&host.hierarchies, parent, jail.name.as_str(), &jail.limits, &needs)?;
    let result = keep(&spec, &cgroup, wanted);
    let removed = clear(&cgroup, result.is_ok());
    result.and_then(|status| removed.map(|()| status))
}

/// Removes the cgroup. With the init everything has `ended` that was in its pid namespace, so that
/// there is nobody to look for; who was moved into the cgroup from outside is killed like the rest.
fn clear(cgroup: &Cgroup, ended: bool) -> Result<()> {
    if ended && cgroup.remove().is_ok() {
        return Ok(());
    }
    cgroup.kill_all().and_then(|()| cgroup.remove())
}

/// This process is the keeper: it creates, starts, relays and reaps.
fn keep(spec: &Spec, cgroup: &Cgroup, wanted: &DesiredJail) -> Result<i32> {
    let streams = if spec.stdio == Stdio::Inherit { Some(exec::own_streams()?) } else { None };
    // Without files to write and a terminal to measure there is nothing to wait for in between.
    let at_once = wanted.root.files.is_empty() && spec.stdio != Stdio::Relay;
    let created = create::create(spec, cgroup, streams, at_once)?;
    let status = serve(spec, &created, wanted, at_once);
    if status.is_err() {
        create::end(&created);
    }
    status
}

fn serve(spec: &Spec, created: &Created, wanted: &DesiredJail, at_once: bool) -> Result<i32> {
    let master = created.master.as_ref().map(AsFd::as_fd);
    master.inspect(|master| terminal::copy_size(*master));
    if !at_once {
        let init = process::identify(created.pid)?;
        root::files::write(crate::probe::root_of(init)?.as_fd(), &wanted.root.files, spec.first_id)?;
        create::order(created.channel.as_fd(), &Order::Go, &[])?;
    }
    match create::hear(created.channel.as_fd())? {
        Some((Report::Started, _)) => {}
        Some((Report::Failed { reason, status }, _)) => {
            return Err(crate::init::program::failed(status, reason));
        }
        _ => bail!("the init died while it started the command"),
    }
    terminal::relay(master, created.pidfd.as_fd(), &|number| {
        // A command that has ended needs no signal.
        let _ = process::signal(created.pidfd.as_fd(), number);
    })?;
    let ended = process::reap(created.pidfd.as_fd()).context("wait for the jail")?;
    match create::hear(created.channel.as_fd()) {
        Ok(Some((Report::Ended { code, signal }, _))) => Ok(process::Ended { code, signal }.status()),
        // It could not watch over the command any more.
        Ok(Some((Report::Failed { reason, status }, _))) => Err(crate::init::program::failed(status, reason)),
        _ => Ok(ended.status()),
    }
}
