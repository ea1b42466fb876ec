//! A jail's root for a process of the host, as the jail itself sees it: the one it runs in, or for
//! a jail that is down the one that a start would give it.
//!
//! Whoever takes the view becomes the jail's root user and nothing more, so that what a hostile
//! jail does to its files meanwhile reaches no further than the jail itself; paths are resolved by
//! descriptor below the root all the same.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::init;
use crate::jail::Jail;
use crate::keeper;
use crate::live::Record;
use crate::spec::Spec;
use crate::sys::{confine, mount, namespace, process};

pub struct View {
    root: OwnedFd,
    /// The jail's user namespace; none for a jail without one.
    users: Option<OwnedFd>,
}

impl View {
    /// Of a jail that runs.
    pub fn running(record: &Record) -> Result<Self> {
        let Some(init) = record.init else { bail!("{}: it is not running", record.name) };
        let jail = Jail::from_settings(&record.name, &record.settings).map_err(anyhow::Error::msg)?;
        let root = crate::probe::root_of(init)?;
        let users = jail.security.userns.then(|| namespace::open(init.pid, "user")).transpose()?;
        // After the opening, so that it cannot have been another process's.
        if !process::alive(init) {
            bail!("{}: it has ended", record.name);
        }
        Ok(Self { root, users })
    }

    /// Of a jail that is down, which nobody may start meanwhile. This process gets a mount
    /// namespace of its own; with it the root is gone.
    pub fn stopped(spec: &Spec) -> Result<Self> {
        let has_users = spec.jail.security.userns;
        let users = has_users.then(|| namespace::users(0, spec.first_id)).transpose()?;
        namespace::unshare(libc::CLONE_NEWNS).context("make a mount namespace")?;
        mount::make_all_private().context("make every mount private")?;
        let place = mount::open_path(&spec.paths.state)?;
        let mut mounts = keeper::root::assemble(spec, None, users.as_ref().map(AsFd::as_fd))?.into_iter();
        let root = mounts.next().context("the jail has no root")?;
        mount::attach(root.as_fd(), place.as_fd()).context("attach the root")?;
        if let Some(usr) = mounts.next() {
            let target = mount::resolve(root.as_fd(), Path::new("usr"), true).context("open /usr")?;
            mount::attach(usr.as_fd(), target.as_fd()).context("attach /usr")?;
        }
        Ok(Self { root, users })
    }

    /// Becomes the jail's root user, for the rest of this process's life; gives the jail's root.
    pub fn enter(self) -> Result<OwnedFd> {
        confine::set_dumpable(false)?;
        let Some(users) = self.users else { return Ok(self.root) };
        namespace::setns(users.as_fd(), libc::CLONE_NEWUSER).context("join the jail's users")?;
        init::become_root()?;
        Ok(self.root)
    }
}
