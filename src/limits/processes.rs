//! The processes of a jail's cgroup: who they are, holding them still, ending them.

use std::collections::BTreeSet;
use std::io;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::cgroup::Cgroup;
use super::hierarchies::join;
use super::mounts::Controller;
use super::parents::{read, write};
use super::value::field;
use crate::sys::cgroup::{Pinned, Tree, VALUE_BYTES_MAX};

/// How long all processes may take to come to a stand; one in an uninterruptible call holds it up.
const FREEZE_TIMEOUT: Duration = Duration::from_secs(5);
/// Looks at a state nobody announces: the pause doubles from the one to the other.
const LOOK_PAUSE_MIN: Duration = Duration::from_micros(100);
const LOOK_PAUSE_MAX: Duration = Duration::from_millis(10);
/// Rounds of killing where the kernel does not kill a whole cgroup by itself.
const KILL_ROUNDS: u32 = 100;
/// Processes pinned at once while they are killed; each takes a descriptor.
const PINNED_MAX: usize = 64;

impl Cgroup {
    /// The processes in the cgroup and below it, as the host numbers them; none when it is gone.
    pub fn processes(&self) -> Result<Vec<i32>> {
        let mut found = BTreeSet::new();
        if let Some(tree) = self.host.unified() {
            collect(tree, &self.path, &mut found)?;
        }
        if !self.host.two() {
            list(self.host.tree(Controller::Pids)?, &self.path, &mut found)?;
        }
        Ok(found.into_iter().collect())
    }

    /// Whether any process is in the cgroup or below it.
    pub fn populated(&self) -> Result<bool> {
        if self.host.two() {
            return Ok(self.event("populated")?.unwrap_or(false));
        }
        Ok(!self.processes()?.is_empty())
    }

    /// A word of `cgroup.events`; `None` when the cgroup is gone or v2 is not mounted.
    fn event(&self, word: &str) -> Result<Option<bool>> {
        let Some(tree) = self.host.unified() else { return Ok(None) };
        let (path, mut buffer) = (join(&self.path, "cgroup.events"), [0; VALUE_BYTES_MAX]);
        match tree.read(&path, &mut buffer) {
            Ok(text) => Ok(field(text, word).map(|n| n == 1)),
            Err(error) if gone(&error) => Ok(None),
            Err(error) => Err(error).with_context(|| format!("read {}", tree.full(&path).display())),
        }
    }

    /// Waits until `word` of `cgroup.events` is `wanted`; false when time is up. One that is gone
    /// counts as reached.
    fn wait_event(&self, tree: &Tree, word: &str, wanted: bool, until: Instant) -> Result<bool> {
        let path = join(&self.path, "cgroup.events");
        let full = || format!("watch {}", tree.full(&path).display());
        let events = match tree.events(&path) {
            Err(error) if gone(&error) => return Ok(true),
            other => other.with_context(full)?,
        };
        let mut buffer = [0; VALUE_BYTES_MAX];
        loop {
            match events.read(&mut buffer) {
                Ok(text) if field(text, word) == Some(wanted.into()) => return Ok(true),
                Err(error) if gone(&error) => return Ok(true),
                other => other.map(drop).with_context(full)?,
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            events.wait(left).with_context(full)?;
        }
    }

    /// Waits until no process is left, `timeout` at most; false when some still is.
    pub fn wait_empty(&self, timeout: Duration) -> Result<bool> {
        let until = Instant::now() + timeout;
        if let Some(tree) = self.host.unified()
            && !self.wait_event(tree, "populated", false, until)?
        {
            return Ok(false);
        }
        // On v1 a process may be in the limits' hierarchies only.
        let mut pause = LOOK_PAUSE_MIN;
        while self.populated()? {
            if Instant::now() >= until {
                return Ok(false);
            }
            sleep(pause);
            pause = LOOK_PAUSE_MAX.min(pause * 2);
        }
        Ok(true)
    }

    /// Stops every process where it is, and returns when all stand still; on an error they run on.
    pub fn freeze(&self) -> Result<()> {
        let still = match self.host.unified() {
            Some(tree) => {
                write(tree, &join(&self.path, "cgroup.freeze"), "1")?;
                self.wait_event(tree, "frozen", true, Instant::now() + FREEZE_TIMEOUT)
            }
            None => self.freeze_one(),
        };
        if matches!(still, Ok(true)) {
            return Ok(());
        }
        self.thaw()?;
        still?;
        bail!("freeze {}: some process did not stop within {FREEZE_TIMEOUT:?}", self.path)
    }

    fn freeze_one(&self) -> Result<bool> {
        let (tree, file) = (self.host.tree(Controller::Freezer)?, join(&self.path, "freezer.state"));
        let (until, mut pause) = (Instant::now() + FREEZE_TIMEOUT, LOOK_PAUSE_MIN);
        while Instant::now() < until {
            // Written again each time: a task that joined meanwhile would keep it at FREEZING.
            write(tree, &file, "FROZEN")?;
            if read(tree, &file)? == "FROZEN" {
                return Ok(true);
            }
            sleep(pause);
            pause = LOOK_PAUSE_MAX.min(pause * 2);
        }
        Ok(false)
    }

    /// Lets every process run on.
    pub fn thaw(&self) -> Result<()> {
        match self.host.unified() {
            Some(tree) => write(tree, &join(&self.path, "cgroup.freeze"), "0"),
            None => write(self.host.tree(Controller::Freezer)?, &join(&self.path, "freezer.state"), "THAWED"),
        }
    }

    /// Whether every process stands still by [`Cgroup::freeze`].
    pub fn frozen(&self) -> Result<bool> {
        if self.host.unified().is_some() {
            return Ok(self.event("frozen")?.unwrap_or(false));
        }
        let (tree, file) = (self.host.tree(Controller::Freezer)?, join(&self.path, "freezer.state"));
        Ok(tree.exists(&file) && read(tree, &file)? == "FROZEN")
    }

    /// Kills everything inside, frozen or not, also what forks meanwhile; does not wait for the
    /// end, which [`Cgroup::wait_empty`] does. Nothing to do when the cgroup is gone.
    pub fn kill_all(&self) -> Result<()> {
        let Some(tree) = self.host.unified() else { return self.kill_still() };
        let path = join(&self.path, "cgroup.kill");
        match tree.write(&path, "1") {
            Ok(()) => self.kill_strays(tree),
            // Linux before 5.14 has no cgroup.kill, and a cgroup that is gone has none either.
            Err(error) if gone(&error) => self.kill_still(),
            Err(error) => Err(error).with_context(|| format!("write 1 to {}", tree.full(&path).display())),
        }
    }

    /// On v1, kills those that are in the limits' hierarchies but not in the v2 one.
    fn kill_strays(&self, tree: &Tree) -> Result<()> {
        if self.host.two() {
            return Ok(());
        }
        for _ in 0..KILL_ROUNDS {
            let (mut inside, mut dying) = (BTreeSet::new(), BTreeSet::new());
            list(self.host.tree(Controller::Pids)?, &self.path, &mut inside)?;
            collect(tree, &self.path, &mut dying)?;
            let strays: Vec<i32> = inside.difference(&dying).copied().collect();
            if strays.is_empty() {
                return Ok(());
            }
            self.stop_forks()?;
            self.kill_these(&strays)?;
            sleep(LOOK_PAUSE_MIN);
        }
        bail!("kill {}: processes are left", self.path)
    }

    /// Freezes, kills each, and thaws in any case: only a running process can die of it on v1.
    fn kill_still(&self) -> Result<()> {
        if !self.exists() {
            return Ok(());
        }
        self.stop_forks()?;
        let frozen = self.freeze();
        let killed = self.processes().and_then(|pids| self.kill_these(&pids));
        if frozen.is_ok() {
            self.thaw()?;
        }
        killed
    }

    /// A jail about to die starts nothing more.
    fn stop_forks(&self) -> Result<()> {
        let tree = self.host.tree(Controller::Pids)?;
        let path = join(&self.path, "pids.max");
        match tree.write(&path, "0") {
            Err(error) if !gone(&error) => {
                Err(error).with_context(|| format!("write 0 to {}", tree.full(&path).display()))
            }
            _ => Ok(()),
        }
    }

    /// Kills by descriptor, and only what is seen in the jail after it was pinned: a number read
    /// before may have gone to a stranger since.
    fn kill_these(&self, pids: &[i32]) -> Result<()> {
        for some in pids.chunks(PINNED_MAX) {
            let pinned: Vec<Pinned> = some.iter().filter_map(|pid| Pinned::open(*pid)).collect();
            let inside: BTreeSet<i32> = self.processes()?.into_iter().collect();
            for process in pinned.iter().filter(|process| inside.contains(&process.pid())) {
                process.kill().with_context(|| format!("kill process {}", process.pid()))?;
            }
        }
        Ok(())
    }
}

/// Removed before the open (ENOENT) or after it (ENODEV).
fn gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV)
}

/// Adds the processes of `path` and of every cgroup below it.
fn collect(tree: &Tree, path: &str, found: &mut BTreeSet<i32>) -> Result<()> {
    list(tree, path, found)?;
    let below = match tree.subtree(path).and_then(|below| below.children("").map(|names| (below, names))) {
        Err(error) if gone(&error) => return Ok(()),
        other => other.with_context(|| format!("list cgroups below {}", tree.full(path).display()))?,
    };
    below.1.iter().try_for_each(|name| collect(&below.0, name, found))
}

fn list(tree: &Tree, path: &str, found: &mut BTreeSet<i32>) -> Result<()> {
    let file = join(path, "cgroup.procs");
    match tree.read_long(&file) {
        Ok(text) => {
            found.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()).filter(|pid| *pid > 0));
        }
        // A threaded cgroup of the jail's own making (ENOTSUP) shows its processes further up.
        Err(error) if gone(&error) || error.raw_os_error() == Some(libc::EOPNOTSUPP) => {}
        Err(error) => return Err(error).with_context(|| format!("read {}", tree.full(&file).display())),
    }
    Ok(())
}
