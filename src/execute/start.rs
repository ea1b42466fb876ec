//! One jail's start: the START table from its first phase to its last, and back again from where
//! it failed.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};

use super::{Host, hook, keeper, stop, volume};
use crate::desired::{DesiredJail, RootFile};
use crate::jail::{Jail, JailName, OnStop};
use crate::journal::{ids, lock};
use crate::keeper::{Answer, Hello, PROTOCOL, Word};
use crate::limits::{Cgroup, Needs};
use crate::live::{FileStamp, RECORD_SCHEMA, Record};
use crate::root::changes::OwnLower;
use crate::spec::{RootSpec, Spec, Stdio};
use crate::step::{Phase, START};
use crate::sys::process;
use crate::{network, root, security};

/// What the phases hand on to each other.
pub struct Start<'a> {
    host: &'a Host,
    wanted: &'a DesiredJail,
    record: Record,
    root: Option<RootSpec>,
    keeper: Option<OwnedFd>,
    /// Handed on to the keeper, see [`lock::instance`].
    instance: Option<OwnedFd>,
    has_cgroup: bool,
    /// The jail had no directory of its own before.
    fresh: bool,
}

/// Starts a jail that is down.
pub fn start(host: &Host, wanted: &DesiredJail) -> Result<()> {
    start_by(host, wanted, new_record(host, wanted))
}

/// The same, perhaps where something else was wanted and did not come up.
pub fn start_as(host: &Host, wanted: &DesiredJail, instead_of: Option<String>) -> Result<()> {
    start_by(host, wanted, Record { instead_of, ..new_record(host, wanted) })
}

fn start_by(host: &Host, wanted: &DesiredJail, record: Record) -> Result<()> {
    let name = &wanted.jail.name;
    let fresh = !host.journal.state_dir(name).exists();
    let mut start =
        Start { host, wanted, record, root: None, keeper: None, instance: None, has_cgroup: false, fresh };
    for (index, phase) in START.iter().enumerate() {
        if let Err(error) = start.begin(*phase) {
            let undone = start.undo(index);
            return Err(match undone {
                Ok(()) => error,
                Err(left) => error.context(format!("and then, undoing it: {left:#}")),
            });
        }
    }
    Ok(())
}

fn new_record(host: &Host, wanted: &DesiredJail) -> Record {
    Record {
        schema: RECORD_SCHEMA,
        boot_id: host.journal.boot_id.clone(),
        name: wanted.jail.name.clone(),
        instance: instance(&wanted.jail.name),
        file: wanted.file.clone(),
        phase: Phase::Claim,
        stopping: false,
        settings: wanted.settings.clone(),
        layers: wanted.root.layers.iter().map(|layer| layer.id.clone()).collect(),
        host_usr: wanted.root.host_usr,
        etc: wanted.root.etc.clone(),
        files: wanted.root.files.iter().map(|file| (file.target.clone(), to_write(file))).collect(),
        keeper: None,
        init: None,
        first_id: 0,
        cgroup_base: host.hierarchies.base().to_owned(),
        started_ms: crate::journal::now_ms(),
        hooks_done: std::collections::BTreeSet::new(),
        instead_of: None,
    }
}

/// A file's stamp until it is written.
fn to_write(file: &RootFile) -> FileStamp {
    FileStamp { digest: root::files::digest(file), ..FileStamp::default() }
}

/// Different for each start: the clock and this process's number.
pub fn instance(name: &JailName) -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    format!("{name}-{:x}-{:x}", now.as_micros(), std::process::id())
}

impl Start<'_> {
    fn jail(&self) -> &Jail {
        &self.wanted.jail
    }

    /// Writes down that the phase begins, then does it.
    fn begin(&mut self, phase: Phase) -> Result<()> {
        if crate::interrupt::asked() {
            bail!("start: interrupted");
        }
        crate::supervisor::progress();
        if phase == Phase::Up {
            return self.keep();
        }
        if phase.hook().is_some() {
            self.record.hooks_done.insert(phase);
            if hook::lines(self.jail(), phase).is_empty() {
                return Ok(());
            }
        }
        self.record.phase = phase;
        self.host.journal.write_record(&self.record)?;
        self.act(phase)
    }

    fn act(&mut self, phase: Phase) -> Result<()> {
        match phase {
            Phase::Claim => self.claim(),
            Phase::Root => self.build_root(),
            Phase::Bridge => self.bridge(),
            Phase::Cgroup => self.cgroup(),
            Phase::Create => self.create(),
            Phase::Start => self.go(),
            _ => self.hook(phase),
        }
    }

    fn hook(&self, phase: Phase) -> Result<()> {
        hook::run(phase, &super::facts(self.jail(), &self.record))
    }

    fn claim(&mut self) -> Result<()> {
        let journal = &self.host.journal;
        let name = &self.wanted.jail.name;
        self.instance = Some(lock::instance(&journal.paths, name)?);
        journal.write_files(name, &self.wanted.root.files)?;
        if !self.jail().security.userns {
            return crate::journal::make_directory(&journal.state_dir(name), 0o700);
        }
        let own = journal.state_dir(name);
        self.record.first_id = ids::claim(&journal.paths.state, &own, name, self.host.config.ids)?;
        Ok(())
    }

    fn build_root(&mut self) -> Result<()> {
        self.root = Some(root_spec(self.host, self.wanted, self.record.first_id)?);
        Ok(())
    }

    fn bridge(&mut self) -> Result<()> {
        match network::spec(self.jail(), &self.host.config) {
            Some(link) => self.host.ensure_bridge(&link.bridge),
            None => Ok(()),
        }
    }

    fn cgroup(&mut self) -> Result<()> {
        let jail = &self.wanted.jail;
        let parent = &self.host.config.cgroup;
        let needs = Needs::of(jail);
        let cgroup =
            Cgroup::create(&self.host.hierarchies, parent, jail.name.as_str(), &jail.limits, &needs)?;
        self.has_cgroup = true;
        if jail.exec.boot.is_some() && jail.security.userns {
            cgroup.delegate(self.record.first_id)?;
        }
        Ok(())
    }

    fn create(&mut self) -> Result<()> {
        let hello = Hello { protocol: PROTOCOL, spec: self.spec()? };
        let instance = self.instance.take().ok_or_else(|| anyhow!("the jail is not claimed"))?;
        let socket = keeper::spawn(self.host.program()?, &hello, &instance)?;
        match keeper::answer(socket.as_fd())? {
            Answer::Created { keeper, init, .. } => {
                self.record.keeper = Some(keeper);
                self.record.init = Some(init);
            }
            Answer::Failed { reason, .. } => bail!("{reason}"),
            Answer::Up => bail!("the keeper answered out of turn"),
        }
        self.keeper = Some(socket);
        self.host.journal.write_record(&self.record)?;
        self.write_files()
    }

    /// Rendered files go through the finished root, whatever it is made of.
    fn write_files(&mut self) -> Result<()> {
        if self.wanted.root.files.is_empty() {
            return Ok(());
        }
        let init = self.record.init.ok_or_else(|| anyhow!("the jail has no init"))?;
        let root = crate::probe::root_of(init)?;
        self.record.files = root::files::write(root.as_fd(), &self.wanted.root.files, self.record.first_id)?;
        Ok(())
    }

    fn go(&mut self) -> Result<()> {
        let socket = self.keeper.as_ref().ok_or_else(|| anyhow!("the jail has no keeper"))?;
        keeper::tell(socket.as_fd(), Word::Go)?;
        match keeper::answer(socket.as_fd())? {
            Answer::Up => Ok(()),
            Answer::Failed { reason, .. } => bail!("{reason}"),
            Answer::Created { .. } => bail!("the keeper answered out of turn"),
        }
    }

    fn keep(&mut self) -> Result<()> {
        let socket = self.keeper.take().ok_or_else(|| anyhow!("the jail has no keeper"))?;
        // A jail whose program has ended already is up and then down: the exit record tells.
        keeper::tell(socket.as_fd(), Word::Keep)?;
        self.record.phase = Phase::Up;
        self.host.journal.write_record(&self.record)
    }

    fn spec(&mut self) -> Result<Spec> {
        let root = self.root.take().ok_or_else(|| anyhow!("the jail has no root"))?;
        Ok(Spec {
            instance: self.record.instance.clone(),
            cgroup_base: self.record.cgroup_base.clone(),
            ..spec(self.host, self.wanted, root, self.record.first_id)?
        })
    }

    /// Walks the table back from the phase that failed.
    fn undo(&mut self, failed: usize) -> Result<()> {
        let mut result = Ok(());
        for phase in START[..=failed].iter().rev() {
            let undone = match phase {
                Phase::Create => self.undo_create(),
                // A cgroup that was refused because of what runs in it is not ours to empty.
                Phase::Cgroup if !self.has_cgroup => Ok(()),
                Phase::Cgroup => stop::remove_cgroup(self.host, &self.wanted.jail.name),
                Phase::Claim => self.undo_claim(),
                _ => self.undo_hook(*phase),
            };
            result = result.and(undone);
        }
        result
    }

    /// The keeper kills the jail when its starter's socket closes, and ends.
    fn undo_create(&mut self) -> Result<()> {
        drop(self.keeper.take());
        if let Some(init) = self.record.init.and_then(process::open) {
            // A jail that is kept already does not end with that. Gone by now is as good.
            let _ = process::signal(init.as_fd(), libc::SIGKILL);
        }
        if let Some(keeper) = self.record.keeper {
            stop::wait_keeper(keeper)?;
        }
        // Also when it has not told its name yet. Ours goes first: it would be in the way.
        drop(self.instance.take());
        self.instance = Some(lock::instance(&self.host.journal.paths, &self.wanted.jail.name)?);
        Ok(())
    }

    fn undo_hook(&mut self, phase: Phase) -> Result<()> {
        match phase.undo() {
            Some(undo) if undo.hook().is_some() && self.record.hooks_done.contains(&phase) => {
                self.record.hooks_done.insert(undo);
                // On a full disk a hook that may run twice is better than one that does not run.
                let _ = self.host.journal.write_record(&self.record);
                self.hook(undo)
            }
            _ => Ok(()),
        }
    }

    fn undo_claim(&mut self) -> Result<()> {
        let journal = &self.host.journal;
        let name = &self.wanted.jail.name;
        journal.forget(name)?;
        if self.fresh {
            super::destroy_data(journal, self.host.config.ids, name)
        } else if self.wanted.jail.root.on_stop == OnStop::Discard {
            root::discard(&journal.paths.state, name)
        } else {
            Ok(())
        }
    }
}

/// Makes all that the root is put together from.
fn root_spec(host: &Host, wanted: &DesiredJail, first_id: u32) -> Result<RootSpec> {
    let paths = &host.journal.paths;
    if let Some(path) = &wanted.jail.path {
        return Ok(RootSpec::Directory { path: path.clone(), host_usr: false });
    }
    let lower = host.layers(&wanted.root.layers, &|_| crate::supervisor::progress())?;
    if wanted.jail.root.on_stop == OnStop::Discard {
        // A stop that was cut off, or a crash of the machine, may have left the last run's.
        root::discard(&paths.state, &wanted.jail.name)?;
    }
    let mut root = volume::root(host, wanted, first_id, lower)?;
    match &mut root {
        RootSpec::Overlay { own, .. } => *own = own_lowers(&paths.state, &wanted.jail.name)?,
        RootSpec::Directory { .. } => {}
    }
    Ok(root)
}

/// One start of a jail with this root.
fn spec(host: &Host, wanted: &DesiredJail, root: RootSpec, first_id: u32) -> Result<Spec> {
    let jail: &Jail = &wanted.jail;
    let network = network::spec(jail, &host.config);
    let profile = security::profile(jail).map_err(|refusals| refused(&refusals))?;
    let console = jail.exec.console || jail.exec.boot.is_some();
    Ok(Spec {
        instance: instance(&jail.name),
        paths: host.journal.paths.clone(),
        cgroup_base: host.hierarchies.base().to_owned(),
        cgroup_parent: host.config.cgroup.clone(),
        first_id,
        root,
        etc: super::etc::files(wanted, network.as_ref())?,
        network,
        profile,
        stdio: if console { Stdio::Console } else { Stdio::Log },
        jail: jail.clone(),
    })
}

/// What a start of the jail would begin with: for those who look at its root while it is down.
/// The caller holds the jail's lock.
pub fn spec_of_stopped(host: &Host, wanted: &DesiredJail) -> Result<Spec> {
    let (journal, name) = (&host.journal, &wanted.jail.name);
    let own = journal.state_dir(name);
    let first_id = if wanted.jail.security.userns {
        ids::claim(&journal.paths.state, &own, name, host.config.ids)?
    } else {
        crate::journal::make_directory(&own, 0o700)?;
        0
    };
    spec(host, wanted, root_spec(host, wanted, first_id)?, first_id)
}

/// What a snapshot has put below the jail's own writes.
fn own_lowers(state: &Path, name: &JailName) -> Result<Vec<OwnLower>> {
    let chain = root::snapshot::base(state, name)?;
    if chain.is_empty() {
        return Ok(Vec::new());
    }
    root::changes::own_lowers(state, &chain)
}

/// Key and reason of each.
pub fn refused(refusals: &[security::Refusal]) -> anyhow::Error {
    let lines: Vec<String> = refusals.iter().map(|r| format!("{}: {}", r.key, r.message)).collect();
    anyhow!(lines.join("; "))
}

/// Reads the record again after a start, for those who go on with it.
pub fn record(host: &Host, name: &JailName) -> Result<Record> {
    host.journal.record(name)?.with_context(|| format!("{name}: it has no record"))
}
