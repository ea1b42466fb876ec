//! What may last goes on beside the passes, in child processes of this program: builds of layers
//! and scheduled snapshots. No pass waits for one; the loop is rung when one ends.
//!
//! There is no queue but what the passes want: each says anew which jobs there are, as many as
//! [`AT_ONCE_MAX`] are under way, and when one ends the next pass has the next begun.

use std::collections::{BTreeMap, VecDeque};
use std::io::BufReader;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::jail::JailName;
use crate::root::layers::program::next_line;
use crate::sys::process;
use crate::{log, supervisor};

/// Jobs under way at the same time.
pub const AT_ONCE_MAX: usize = 4;
/// A job that takes longer is ended.
const TIME_MAX: Duration = Duration::from_hours(6);
/// The shortest pause after one that went well.
const PAUSE_AGAIN: Duration = Duration::from_millis(500);
/// The first and the longest pause after a job that failed.
const PAUSE_FIRST: Duration = Duration::from_secs(2);
const PAUSE_MAX: Duration = Duration::from_mins(5);
/// How long jobs may take to undo what they have begun, when the daemon ends.
const END_MAX: Duration = Duration::from_secs(20);
const LOOK: Duration = Duration::from_millis(100);
/// Lines kept of what a job says.
const LINES_MAX: usize = 20;

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Job {
    /// The layers of a template; `id`, its topmost one's, tells it from what it was before.
    Build { template: String, id: String },
    /// Those of a jail's schedules that are due.
    Snapshots(JailName),
}

/// What a pass has to say about a job.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// Those that wait for it.
    pub jails: Vec<JailName>,
    /// After a good end it is not begun again before this has passed since it was begun.
    pub rest: Duration,
}

pub type Jobs = BTreeMap<Job, Wanted>;

/// Gives the command of a job.
pub type CommandOf<'c> = &'c dyn Fn(&Job) -> Command;

/// The other way to the loop's ear.
pub type Bell = Box<dyn Fn() + Send>;

struct Running {
    pidfd: OwnedFd,
    begun: Instant,
    rest: Duration,
    /// Asked to end. Once: a second time ends it at once, with all half-made.
    asked: bool,
}

struct Trouble {
    text: String,
    pause: Duration,
}

struct Ended {
    job: Job,
    /// What it has said, or why it failed.
    outcome: Result<Vec<String>, String>,
}

pub struct Work<'c> {
    command: CommandOf<'c>,
    bell: Box<dyn Fn() -> Bell + 'c>,
    running: BTreeMap<Job, Running>,
    troubles: BTreeMap<Job, Trouble>,
    /// Not before this moment.
    rests: BTreeMap<Job, Instant>,
    ended: (Sender<Ended>, Receiver<Ended>),
}

impl<'c> Work<'c> {
    pub fn new(command: CommandOf<'c>, bell: impl Fn() -> Bell + 'c) -> Self {
        Self {
            command,
            bell: Box::new(bell),
            running: BTreeMap::new(),
            troubles: BTreeMap::new(),
            rests: BTreeMap::new(),
            ended: channel(),
        }
    }

    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// Something has changed, so what failed may go well now.
    pub fn forget_troubles(&mut self) {
        for (job, trouble) in &mut self.troubles {
            trouble.pause = PAUSE_FIRST;
            self.rests.remove(job);
        }
    }

    /// Takes note of the jobs that have ended. To be called before a pass looks.
    pub fn hear(&mut self, now: Instant) {
        while let Ok(ended) = self.ended.1.try_recv() {
            self.note(ended, now);
        }
    }

    fn note(&mut self, ended: Ended, now: Instant) {
        let Some(running) = self.running.remove(&ended.job) else { return };
        match ended.outcome {
            Ok(lines) => {
                say_done(&ended.job, &lines, now.saturating_duration_since(running.begun));
                self.troubles.remove(&ended.job);
                // One that is wanted again all the same has done nothing, and is not to spin.
                let rest = (running.begun + running.rest).max(now + PAUSE_AGAIN);
                self.rests.insert(ended.job, rest);
            }
            Err(text) => {
                let pause = self.troubles.get(&ended.job).map_or(PAUSE_FIRST, |trouble| trouble.pause);
                self.rests.insert(ended.job.clone(), now + pause);
                self.troubles.insert(ended.job, Trouble { text, pause: (pause * 2).min(PAUSE_MAX) });
            }
        }
    }

    /// Begins what is wanted and may begin, and ends what is wanted otherwise by now. Gives how
    /// long the first that has to wait for its time has to.
    pub fn want(&mut self, jobs: &Jobs, now: Instant) -> Option<Duration> {
        self.troubles.retain(|job, _| jobs.contains_key(job));
        self.rests.retain(|job, until| *until > now && jobs.contains_key(job));
        self.give_up(jobs, now);
        for (job, wanted) in jobs {
            let waits = self.running.contains_key(job) || self.rests.contains_key(job);
            if !waits && self.running.len() < AT_ONCE_MAX {
                self.begin(job, wanted, now);
            }
        }
        self.rests.values().min().map(|until| until.saturating_duration_since(now))
    }

    /// A build of what a template was before is for nothing. Other jobs that nobody wants any more
    /// come to their end by themselves.
    fn give_up(&mut self, jobs: &Jobs, now: Instant) {
        for (job, running) in &mut self.running {
            let is_old = !jobs.contains_key(job) && jobs.keys().any(|other| other.replaces(job));
            if is_old || now.saturating_duration_since(running.begun) > TIME_MAX {
                running.ask();
            }
        }
    }

    fn begin(&mut self, job: &Job, wanted: &Wanted, now: Instant) {
        if let Job::Build { template, .. } = job {
            log::info(None, &format!("template {template}: building"));
        }
        match self.start(job) {
            Ok(pidfd) => {
                let running = Running { pidfd, begun: now, rest: wanted.rest, asked: false };
                self.running.insert(job.clone(), running);
            }
            Err(error) => {
                self.rests.insert(job.clone(), now + PAUSE_FIRST);
                let trouble = Trouble { text: format!("{error:#}"), pause: PAUSE_FIRST };
                self.troubles.insert(job.clone(), trouble);
            }
        }
    }

    /// It is started by the loop's own thread, for it ends when that does.
    fn start(&self, job: &Job) -> Result<OwnedFd> {
        let (said, to) = std::io::pipe().context("make a pipe")?;
        let mut command = (self.command)(job);
        command.stdin(Stdio::null()).stdout(to.try_clone().context("copy a pipe")?).stderr(to);
        let child = command.process_group(0).spawn().context("start a job")?;
        // With its ends of the pipe, which would never be seen to end.
        drop(command);
        process::be_ordinary_to_oom(child.id());
        let pidfd = rustix::process::pidfd_open(
            rustix::process::Pid::from_child(&child),
            rustix::process::PidfdFlags::empty(),
        )
        .context("open a job's process")?;
        let (sender, bell, job) = (self.ended.0.clone(), (self.bell)(), job.clone());
        std::thread::Builder::new()
            .name("job".into())
            .spawn(move || {
                let outcome = outcome(child, said);
                // The loop that is gone has no use for it.
                let _ = sender.send(Ended { job, outcome });
                bell();
            })
            .context("start a thread")?;
        Ok(pidfd)
    }

    /// The jails that have to do without a job that failed, with the reason.
    pub fn failures(&self, jobs: &Jobs) -> Vec<(JailName, String)> {
        let of = |(job, wanted): (&Job, &Wanted)| -> Vec<(JailName, String)> {
            let Some(trouble) = self.troubles.get(job) else { return Vec::new() };
            let text = match job {
                Job::Build { template, .. } => format!("build template {template}: {}", trouble.text),
                Job::Snapshots(_) => trouble.text.clone(),
            };
            wanted.jails.iter().map(|name| (name.clone(), text.clone())).collect()
        };
        jobs.iter().flat_map(of).collect()
    }

    /// Asks all to end, and sees that they do: they undo what they have begun.
    pub fn end(&mut self) {
        self.running.values_mut().for_each(Running::ask);
        let end = Instant::now() + END_MAX;
        while !self.running.is_empty() && Instant::now() < end {
            supervisor::progress();
            if let Ok(ended) = self.ended.1.recv_timeout(LOOK) {
                self.running.remove(&ended.job);
            }
        }
        for running in self.running.values() {
            running.signal(libc::SIGKILL);
        }
    }
}

impl Job {
    /// A build of the same template as it is now.
    fn replaces(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Build { template, id }, Self::Build { template: same, id: old }) => {
                template == same && id != old
            }
            _ => false,
        }
    }
}

impl Running {
    fn ask(&mut self) {
        if !self.asked {
            self.signal(libc::SIGTERM);
            self.asked = true;
        }
    }

    fn signal(&self, signal: i32) {
        // One that has ended by now needs none.
        let _ = process::signal(self.pidfd.as_fd(), signal);
    }
}

fn say_done(job: &Job, lines: &[String], took: Duration) {
    match job {
        Job::Build { template, .. } => {
            log::info(None, &format!("template {template}: built in {} s", took.as_secs()));
        }
        Job::Snapshots(name) => lines.iter().for_each(|line| log::info(Some(name), line)),
    }
}

/// Hears a job to its end.
fn outcome(mut child: Child, said: impl std::io::Read) -> Result<Vec<String>, String> {
    let mut said = BufReader::new(said);
    let mut lines = VecDeque::new();
    while let Some(line) = next_line(&mut said) {
        if lines.len() == LINES_MAX {
            lines.pop_front();
        }
        lines.push_back(line);
    }
    match child.wait() {
        Ok(status) if status.success() => Ok(lines.into()),
        Ok(status) if lines.is_empty() => Err(status.to_string()),
        Ok(_) => {
            let lines: Vec<&str> =
                lines.iter().map(|line| line.strip_prefix("stockade: ").unwrap_or(line)).collect();
            Err(lines.join("\n  "))
        }
        Err(error) => Err(format!("wait for a job: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn build(id: &str) -> Job {
        Job::Build { template: "debian".into(), id: id.into() }
    }

    fn wanted(jobs: &[&Job]) -> Jobs {
        let jails = || vec![JailName::new("web").unwrap()];
        let one = |job: &&Job| ((*job).clone(), Wanted { jails: jails(), rest: Duration::ZERO });
        jobs.iter().map(one).collect()
    }

    /// The shell's line is the job's `id`.
    fn shell(job: &Job) -> Command {
        let line = match job {
            Job::Build { id, .. } => id.clone(),
            Job::Snapshots(name) => name.to_string(),
        };
        let mut command = Command::new("sh");
        command.args(["-c", &line]);
        command
    }

    fn wait(work: &mut Work<'_>, now: Instant) {
        let begun = Instant::now();
        while work.running() > 0 {
            assert!(begun.elapsed() < Duration::from_secs(20), "a job does not end");
            std::thread::sleep(Duration::from_millis(10));
            work.hear(now);
        }
    }

    #[test]
    fn a_job_that_fails_is_told_of_and_tried_again_later() {
        let (bell, rung) = channel();
        let mut work = Work::new(&shell, move || {
            let bell = bell.clone();
            Box::new(move || bell.send(()).unwrap())
        });
        let (job, now) = (build("echo stockade: no mirror >&2; exit 1"), Instant::now());
        let jobs = wanted(&[&job]);
        for pause in [2, 4, 8] {
            assert_eq!((work.want(&jobs, now), work.running()), (None, 1));
            rung.recv().unwrap();
            wait(&mut work, now);
            assert_eq!(work.failures(&jobs)[0].1, "build template debian: no mirror");
            assert_eq!((work.want(&jobs, now), work.running()), (Some(Duration::from_secs(pause)), 0));
            // Its time has come.
            work.rests.clear();
        }
        work.forget_troubles();
        work.want(&jobs, now);
        wait(&mut work, now);
        assert_eq!(work.want(&jobs, now), Some(PAUSE_FIRST));
        work.want(&Jobs::new(), now);
        assert!(work.troubles.is_empty() && work.failures(&jobs).is_empty());
    }

    #[test]
    fn so_many_are_under_way_and_old_builds_are_given_up() {
        let mut work = Work::new(&shell, || Box::new(|| ()));
        let now = Instant::now();
        let many: Vec<Job> = (0..AT_ONCE_MAX + 2)
            .map(|n| Job::Build { template: n.to_string(), id: "exec sleep 1000".into() })
            .collect();
        work.want(&wanted(&many.iter().collect::<Vec<_>>()), now);
        assert_eq!(work.running(), AT_ONCE_MAX);
        // Not wanted any more, so it goes on; wanted otherwise, so it ends.
        let other = Job::Build { template: "0".into(), id: "exit 0".into() };
        work.want(&wanted(&[&other]), now);
        let begun = Instant::now();
        while work.running() == AT_ONCE_MAX && begun.elapsed() < Duration::from_secs(20) {
            std::thread::sleep(Duration::from_millis(10));
            work.hear(now);
        }
        assert_eq!(work.running(), AT_ONCE_MAX - 1);
        work.end();
        assert_eq!(work.running(), 0);
    }

    #[test]
    fn a_snapshot_with_nothing_to_take_rests() {
        let mut work = Work::new(&shell, || Box::new(|| ()));
        let (job, now) = (Job::Snapshots(JailName::new("true").unwrap()), Instant::now());
        let rest = Duration::from_mins(1);
        let jobs = Jobs::from([(job, Wanted { jails: Vec::new(), rest })]);
        work.want(&jobs, now);
        wait(&mut work, now);
        assert_eq!((work.want(&jobs, now), work.running()), (Some(rest), 0));
    }
}
