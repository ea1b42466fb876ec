//! `daemon`: what a pass of it is, and the jobs that it has done beside its passes.

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use rustix::process::Signal;

use super::{DONE, FAILED, Options, output, plan, template};
use crate::daemon::{self, Job, Jobs, PassReport, Wanted};
use crate::desired::Paths;
use crate::execute::{Host, scheduled};
use crate::jail::JailName;
use crate::pass::{self, PassOptions, Passed};
use crate::source::{self, Known};
use crate::sys::process;
use crate::{diagnostic, log, supervisor};

/// What service managers tell the daemon alone.
const MANAGERS: &[&str] = &["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "JOURNAL_STREAM"];

/// Stays in the foreground; service managers want that.
pub fn daemon(options: &Options) -> Result<i32> {
    let (desired, _) = source::load(&options.paths());
    let paths = desired.host.paths.clone();
    let asked = options.paths();
    drop(desired);
    let mut known = Known::default();
    let mut pass = |pass: daemon::Asked<'_>| {
        if pass.anew {
            known.doubt();
        }
        one_pass(&asked, pass.stop, &mut known)
    };
    daemon::run(&paths, daemon::Options::default(), &|job| command(&asked, job), &mut pass)?;
    Ok(DONE)
}

fn one_pass(paths: &Paths, stop: &AtomicBool, known: &mut Known) -> Result<PassReport> {
    let progress = |name: &JailName, what: &str| {
        supervisor::progress();
        log::info(Some(name), what);
    };
    let quiet = |_: &str| ();
    let unseen = |_: &crate::plan::Plan| ();
    let asked = PassOptions {
        only: Vec::new(),
        no_restart: false,
        apply: !stop.load(Ordering::Relaxed),
        progress: &progress,
        waiting: &quiet,
        planned: &unseen,
        build: None,
    };
    let passed = pass::pass_again(paths, &asked, known)?;
    let due = pass::due(&passed)?;
    let failures = plan::reasons(&passed.failures).map(|(name, reason)| (name.clone(), reason));
    Ok(PassReport {
        diagnostics: passed.diagnostics.iter().map(diagnostic::Diagnostic::summary).collect(),
        failures: failures.collect(),
        up: passed.up(),
        wake_ms: passed.plan.wake_ms.into_iter().chain(due.wake_ms).min(),
        jobs: jobs(&passed, due.jails),
        working: 0,
    })
}

/// What is to be done beside the passes. One that was not carried out, since the daemon ends, asks
/// for nothing.
fn jobs(passed: &Passed, due: BTreeMap<JailName, u64>) -> Jobs {
    let mut jobs = Jobs::new();
    if !passed.applied {
        return jobs;
    }
    for (name, rest_ms) in due {
        let wanted = Wanted { jails: vec![name.clone()], rest: Duration::from_millis(rest_ms) };
        jobs.insert(Job::Snapshots(name), wanted);
    }
    for (name, wanted) in &passed.desired.jails {
        let template = wanted.jail.template.as_ref().filter(|name| passed.plan.builds.contains(*name));
        if let (Some(template), Some(top)) = (template, wanted.root.layers.first()) {
            let job = Job::Build { template: template.clone(), id: top.id.clone() };
            jobs.entry(job).or_default().jails.push(name.clone());
        }
    }
    jobs
}

/// This program again, whatever has become of its file, with the directories that it was given.
fn command(paths: &Paths, job: &Job) -> Command {
    let mut command = Command::new("/proc/self/exe");
    for (flag, path) in [
        ("--config-dir", &paths.config),
        ("--state-dir", &paths.state),
        ("--run-dir", &paths.run),
        ("--log-dir", &paths.log),
    ] {
        if !path.as_os_str().is_empty() {
            command.arg(flag).arg(path);
        }
    }
    match job {
        Job::Build { template, .. } => command.args(["work", "--build", template]),
        Job::Snapshots(name) => command.args(["work", "--snapshots", name.as_str()]),
    };
    for name in MANAGERS {
        command.env_remove(name);
    }
    command
}

/// One job of a daemon.
#[derive(Debug, Args)]
pub struct Work {
    /// All layers of a template
    #[arg(long, value_name = "TEMPLATE", conflicts_with = "snapshots")]
    build: Option<String>,
    /// The scheduled snapshots of a jail that are due
    #[arg(long, value_name = "NAME")]
    snapshots: Option<String>,
}

/// Ends with the daemon that has begun it, and undoes what it has begun.
pub fn work(options: &Options, asked: &Work) -> Result<i32> {
    crate::interrupt::catch_from_daemon()?;
    process::set_parent_death_signal(Some(Signal::TERM))?;
    let (desired, _) = source::load(&options.paths());
    // It may have ended before the line above.
    if !daemon::is_running(&desired.host.paths.run) {
        bail!("no daemon runs: it is the daemon that has this done");
    }
    let host = Host::open(desired.host.clone())?;
    if let Some(name) = &asked.build {
        for layer in template::layers_named(options, name)?.iter().rev() {
            host.layers(std::slice::from_ref(layer), &|_| ())?;
        }
        return Ok(DONE);
    }
    let name = asked.snapshots.as_deref().and_then(|name| JailName::new(name).ok()).context("no job")?;
    let said = |_: &JailName, what: &str| output::text(what);
    let report = scheduled::take_due(&host, &desired, &[name], &said);
    for (_, reason) in &report.failures {
        eprintln!("stockade: {reason}");
    }
    Ok(if report.failures.is_empty() { DONE } else { FAILED })
}
