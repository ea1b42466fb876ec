//! Limits changed on a running jail. A memory cut below use is staged: it is pressed out first,
//! and stays pending when it cannot be; it never becomes a kill.

use std::fmt;
use std::io;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::cgroup::Cgroup;
use super::hierarchies::join;
use super::mounts::Controller;
use super::parents::{inherit_cpuset, make_two, read, write};
use super::setting::{LIMIT_ONE, SUM_ONE, Setting, settings};
use super::value::{bytes, same, same_bytes};
use crate::jail::Limits;
use crate::sys::cgroup::{Tree, page_bytes};

/// Attempts at pressing a jail below its new memory limit; the pauses double from
/// [`PRESS_PAUSE_MIN`] and add up to 155 ms.
const PRESS_TRIES: u32 = 6;
const PRESS_PAUSE_MIN: Duration = Duration::from_millis(5);
/// Rounds of moving a jail's processes, which may fork meanwhile.
const MOVE_TRIES: u32 = 20;

/// A limit that could not be set yet. The one before stays in force; another `set` tries again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pending {
    pub key: &'static str,
    /// Bytes.
    pub wanted: u64,
    /// Bytes in use after all that could be reclaimed was.
    pub used: u64,
}

impl fmt::Display for Pending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, wanted, used } = self;
        write!(f, "{key}: {used} bytes are in use and cannot be reclaimed; {wanted} has to wait")
    }
}

impl Cgroup {
    /// Sets what `new` says, where the kernel says something else, on a cgroup that may be in use.
    /// A key `old` has and `new` has not goes back to what it is without the key; one that neither
    /// has is not touched. Gives the cuts that have to wait.
    pub fn set(&self, old: &Limits, new: &Limits) -> Result<Vec<Pending>> {
        if let Some(reason) = self.host.conflicts(new).into_values().next() {
            bail!(reason);
        }
        let offer = self.host.offer();
        let (before, after) = (settings(offer, old), settings(offer, new));
        let owned = |row: &Setting| {
            let swap_by_memory = row.key == "limits.swap" && new.memory.is_some() && row.needed();
            swap_by_memory || present(new, row.key)
        };
        let touched: Vec<Setting> = before
            .iter()
            .zip(after)
            .filter(|(b, a)| b.value != a.value || owned(a))
            .map(|(_, a)| a)
            .collect();
        let (memory, rest): (Vec<_>, Vec<_>) =
            touched.into_iter().partition(|s| s.controller == Controller::Memory);
        for setting in &rest {
            self.set_one(setting)?;
        }
        if offer.two { self.set_memory_two(&memory) } else { self.set_memory_one(&memory) }
    }

    fn set_one(&self, setting: &Setting) -> Result<()> {
        if setting.controller == Controller::Cpuset {
            return self.set_cpuset(setting);
        }
        let tree = self.host.tree(setting.controller).context(setting.key)?;
        if self.differs(tree, setting)? { self.write_checked(tree, setting) } else { Ok(()) }
    }

    fn differs(&self, tree: &Tree, setting: &Setting) -> Result<bool> {
        let found = read(tree, &join(&self.path, setting.file)).context(setting.key)?;
        Ok(!same(setting.kind, page_bytes(), &setting.value, &found))
    }

    /// A jail without `limits.cpuset` is in no cpuset of its own; one that gets the key is moved.
    fn set_cpuset(&self, setting: &Setting) -> Result<()> {
        let tree = self.host.tree(Controller::Cpuset).context(setting.key)?;
        if self.host.two() {
            return self.set_cpuset_two(tree, setting);
        }
        let there = tree.exists(&self.path);
        if setting.value.is_empty() {
            return if there { inherit_cpuset(tree, &self.path).context(setting.key) } else { Ok(()) };
        }
        if !there {
            self.make_in(tree, &[Controller::Cpuset])?;
        }
        self.write_checked(tree, setting)?;
        self.move_into(tree).context(setting.key)
    }

    /// Many kernels refuse to empty the list of a cgroup with processes (ENOSPC), so a key that
    /// went is followed by the list of the cgroup above.
    fn set_cpuset_two(&self, tree: &Tree, setting: &Setting) -> Result<()> {
        make_two(&self.host, tree, self.parent(), &[Controller::Cpuset])?;
        if !self.differs(tree, setting)? {
            return Ok(());
        }
        let mut setting = setting.clone();
        if setting.value.is_empty() && self.populated()? {
            let above = join(&join(self.host.base(), self.parent()), "cpuset.cpus.effective");
            setting.value = read(tree, &above).context(setting.key)?;
        }
        self.write_checked(tree, &setting)
    }

    /// Moves every process of the jail into its cgroup of another v1 hierarchy, until a look finds
    /// none outside.
    fn move_into(&self, tree: &Tree) -> Result<()> {
        let procs = join(&self.path, "cgroup.procs");
        for _ in 0..MOVE_TRIES {
            let inside = read_pids(tree, &procs)?;
            let outside: Vec<i32> =
                self.processes()?.into_iter().filter(|pid| !inside.contains(pid)).collect();
            if outside.is_empty() {
                return Ok(());
            }
            for pid in outside {
                match tree.write(&procs, &pid.to_string()) {
                    Err(error) if error.raw_os_error() != Some(libc::ESRCH) => {
                        return Err(error).with_context(|| format!("move process {pid} to {}", self.path));
                    }
                    _ => {}
                }
            }
        }
        bail!("move the processes of {}: new ones keep appearing outside", self.path)
    }

    /// v2: `memory.max` below use kills, so a cut goes through [`Cgroup::press`].
    fn set_memory_two(&self, rows: &[Setting]) -> Result<Vec<Pending>> {
        let mut pending = Vec::new();
        for row in rows {
            let tree = self.host.tree(Controller::Memory).context(row.key)?;
            if !self.differs(tree, row)? {
                continue;
            }
            let wanted = bytes(&row.value).flatten().filter(|_| row.file == "memory.max");
            let found = bytes(&read(tree, &join(&self.path, row.file))?).flatten();
            let cut = wanted.filter(|wanted| found.is_none_or(|found| *wanted < found));
            match cut.map(|wanted| self.press(tree, wanted)).transpose()?.flatten() {
                Some(used) => pending.push(Pending { key: row.key, wanted: wanted.unwrap_or(0), used }),
                None => self.write_checked(tree, row)?,
            }
        }
        Ok(pending)
    }

    /// Brings use down to `wanted` with `memory.high` as a brake on growth, which slows and never
    /// kills; gives the use that is left if it is more. The jail's own `memory.high` is back after.
    fn press(&self, tree: &Tree, wanted: u64) -> Result<Option<u64>> {
        let high = join(&self.path, "memory.high");
        let own = read(tree, &high)?;
        let lower = bytes(&own).flatten().is_none_or(|own| own > wanted);
        if lower {
            write(tree, &high, &wanted.to_string())?;
        }
        let used = self.reclaim(tree, wanted);
        if lower {
            write(tree, &high, own.trim())?;
        }
        used
    }

    fn reclaim(&self, tree: &Tree, wanted: u64) -> Result<Option<u64>> {
        let file = join(&self.path, "memory.reclaim");
        let mut pause = PRESS_PAUSE_MIN;
        for attempt in 1.. {
            let used: u64 = read(tree, &join(&self.path, "memory.current"))?.trim().parse()?;
            if used <= wanted {
                return Ok(None);
            }
            if attempt == PRESS_TRIES {
                return Ok(Some(used));
            }
            match tree.write(&file, &(used - wanted).to_string()) {
                // EAGAIN: less was reclaimed than asked for. Kernels before 5.19 have no such
                // file; there the write of memory.high has reclaimed already.
                Ok(()) => {}
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::NotFound) => {
                }
                Err(error) => {
                    return Err(error).with_context(|| format!("write {}", tree.full(&file).display()));
                }
            }
            sleep(pause);
            pause *= 2;
        }
        unreachable!("the last attempt returns")
    }

    /// v1: the limit may never be above the sum, at no moment, so the order depends on both.
    fn set_memory_one(&self, rows: &[Setting]) -> Result<Vec<Pending>> {
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let tree = self.host.tree(Controller::Memory).context("limits.memory")?;
        let limit = rows.iter().find(|row| row.file == LIMIT_ONE);
        let sum = rows.iter().find(|row| row.file == SUM_ONE && self.host.offer().swap);
        let sum_now =
            if sum.is_some() { bytes(&read(tree, &join(&self.path, SUM_ONE))?).flatten() } else { None };
        let fits = limit.is_none_or(|row| at_most(bytes(&row.value).flatten(), sum_now));
        let order = if fits { [limit, sum] } else { [sum, limit] };
        for row in order.into_iter().flatten() {
            if let Some(pending) = self.set_bytes_one(tree, row)? {
                return Ok(vec![pending]);
            }
        }
        Ok(Vec::new())
    }

    /// v1 reclaims in the write itself, and says EBUSY when use stays above; it does not kill.
    fn set_bytes_one(&self, tree: &Tree, row: &Setting) -> Result<Option<Pending>> {
        let (path, wanted) = (join(&self.path, row.file), bytes(&row.value).flatten());
        let mut pause = PRESS_PAUSE_MIN;
        for _ in 0..PRESS_TRIES {
            let found = bytes(&read(tree, &path)?).flatten();
            if same_bytes(page_bytes(), wanted, found) {
                return Ok(None);
            }
            match tree.write(&path, &row.value) {
                Ok(()) => return self.write_checked(tree, row).map(|()| None),
                Err(error) if busy(&error) => sleep(pause),
                Err(error) => {
                    return Err(error)
                        .with_context(|| format!("write {} to {}", row.value, tree.full(&path).display()));
                }
            }
            pause *= 2;
        }
        let usage = if row.file == SUM_ONE { "memory.memsw.usage_in_bytes" } else { "memory.usage_in_bytes" };
        let used = read(tree, &join(&self.path, usage))?.trim().parse()?;
        Ok(Some(Pending { key: row.key, wanted: wanted.unwrap_or(0), used }))
    }
}

/// EINTR is a signal to us in the middle of the kernel's reclaim.
fn busy(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ResourceBusy | io::ErrorKind::Interrupted)
}

/// Whether one limit is no looser than another; `None` is none at all.
fn at_most(one: Option<u64>, other: Option<u64>) -> bool {
    one.unwrap_or(u64::MAX) <= other.unwrap_or(u64::MAX)
}

fn read_pids(tree: &Tree, path: &str) -> Result<Vec<i32>> {
    let text = tree.read_long(path).with_context(|| format!("read {}", tree.full(path).display()))?;
    Ok(text.lines().filter_map(|line| line.parse().ok()).collect())
}

fn present(limits: &Limits, key: &str) -> bool {
    match key {
        "limits.memory" => limits.memory.is_some(),
        "limits.memory_high" => limits.memory_high.is_some(),
        "limits.swap" => limits.swap.is_some(),
        "limits.cpu" => limits.cpu.is_some(),
        "limits.cpu_weight" => limits.cpu_weight.is_some(),
        "limits.cpuset" => limits.cpuset.is_some(),
        "limits.processes" => limits.processes.is_some(),
        _ => false,
    }
}
