//! `check`, `plan`, `apply`: the whole host at once.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Result, anyhow, bail};
use serde_json::json;

use super::{CHANGES, DONE, FAILED, INVALID, Options, named, output, progress};
use crate::desired::Layer;
use crate::execute::{self, Host, Outcome};
use crate::jail::JailName;
use crate::pass::{self, PassOptions, Passed};
use crate::{diagnostic, source};

pub fn check(options: &Options, files: &[PathBuf]) -> Result<i32> {
    let files: Vec<PathBuf> = files.iter().map(std::path::absolute).collect::<Result<_, _>>()?;
    let (desired, found) = source::load_with(&options.paths(), &files);
    output::diagnostics(options, &found);
    if diagnostic::has_errors(&found) {
        return Ok(INVALID);
    }
    if !options.json {
        let count = desired.jails.len();
        output::text(&format!("{count} {}, no errors", if count == 1 { "jail" } else { "jails" }));
    } else if found.is_empty() {
        output::json_text(&output::envelope("diagnostics", json!([])));
    }
    Ok(DONE)
}

pub fn plan(options: &Options, only: &[String]) -> Result<i32> {
    let passed = run(options, only, false, false)?;
    output::diagnostics(options, &passed.diagnostics);
    if options.json {
        output::json_text(&passed.plan.json());
    } else {
        output::text(&passed.plan.text(output::colour(&std::io::stdout())));
    }
    let status = match () {
        () if diagnostic::has_errors(&passed.diagnostics) => INVALID,
        () if passed.plan.is_empty() => DONE,
        () => CHANGES,
    };
    // The program ends here: to take a thousand jails apart before that would be for nothing.
    std::mem::forget(passed);
    Ok(status)
}

pub fn apply(options: &Options, only: &[String], no_restart: bool) -> Result<i32> {
    crate::interrupt::catch()?;
    let passed = run(options, only, no_restart, true)?;
    output::diagnostics(options, &passed.diagnostics);
    if options.json {
        output::json_text(&with_failures(&passed));
    }
    for (name, reason) in reasons(&passed.failures) {
        eprintln!("stockade: {name}: {reason}");
    }
    let snapshots = take_due(options, only, &passed)?;
    for (name, reason) in &snapshots.failures {
        eprintln!("stockade: {name}: {reason}");
    }
    // Those with errors in their files have had their diagnostics.
    for (name, reason) in
        passed.plan.refused.iter().filter(|(name, _)| !passed.desired.broken.contains_key(name))
    {
        eprintln!("stockade: {name}: {reason}");
    }
    if diagnostic::has_errors(&passed.diagnostics) {
        return Ok(INVALID);
    }
    // Refused without a diagnostic: the host cannot enforce what the definition asks for.
    let done = passed.failures.is_empty() && passed.plan.refused.is_empty() && snapshots.failures.is_empty();
    Ok(if done { DONE } else { FAILED })
}

fn take_due(options: &Options, only: &[String], passed: &Passed) -> Result<execute::scheduled::Report> {
    let only: Vec<JailName> = only.iter().filter_map(|name| JailName::new(name).ok()).collect();
    let progress = |name: &JailName, what: &str| {
        if !options.json {
            eprintln!("{name}: {what}");
        }
    };
    pass::take_due(passed, &only, &progress)
}

fn with_failures(passed: &Passed) -> serde_json::Value {
    let mut value = passed.plan.json();
    let failures: BTreeMap<String, String> =
        reasons(&passed.failures).map(|(name, reason)| (name.to_string(), reason)).collect();
    value["failures"] = json!(failures);
    value
}

pub fn reasons(failures: &BTreeMap<JailName, Outcome>) -> impl Iterator<Item = (&JailName, String)> {
    failures.iter().filter_map(|(name, outcome)| match outcome {
        Outcome::Done => None,
        Outcome::Failed(reason) => Some((name, reason.clone())),
        Outcome::Skipped(after) => Some((name, format!("skipped, for {after} did not end well"))),
    })
}

fn run(options: &Options, only: &[String], no_restart: bool, apply: bool) -> Result<Passed> {
    let only = only.iter().map(|n| JailName::new(n).map_err(|e| anyhow!(e))).collect::<Result<Vec<_>>>()?;
    let quiet = options.json;
    let progress = |name: &JailName, what: &str| {
        if !quiet {
            eprintln!("{name}: {what}");
        }
    };
    let waiting = |holder: &str| eprintln!("stockade: waiting for another apply ({holder})");
    let planned = |plan: &crate::plan::Plan| {
        if !quiet {
            output::text(&plan.text(output::colour(&std::io::stdout())));
        }
    };
    let build =
        |host: &Host, template: &str, layer: &Layer| progress::build(options, false, host, template, layer);
    let asked = PassOptions {
        only,
        no_restart,
        apply,
        progress: &progress,
        waiting: &waiting,
        planned: &planned,
        build: Some(&build),
    };
    let passed = pass::pass(&options.paths(), &asked)?;
    unknown_names(&asked.only, &passed)?;
    Ok(passed)
}

/// A name that is neither defined nor known is a slip of the pen.
fn unknown_names(only: &[JailName], passed: &Passed) -> Result<()> {
    for name in only {
        let known = passed.desired.jails.contains_key(name)
            || passed.desired.broken.contains_key(name)
            || passed.live.jails.contains_key(name);
        if !known {
            let names = passed.desired.jails.keys().map(JailName::as_str);
            bail!("{}", named::no_jail(name.as_str(), names));
        }
    }
    Ok(())
}
