//! `[build]` of templates: lines run in a jail of their own, under the full profile, whose writes
//! become a layer.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use rustix::fs::OFlags;

use super::Host;
use crate::desired::{Build, Desired, DesiredJail, DesiredRoot, EtcFile, Layer};
use crate::jail::{Jail, JailName, Settings};
use crate::journal::{ids, lock, make_directory};
use crate::keeper::build::BUILDER_NAME;
use crate::limits::{Cgroup, Needs};
use crate::live::Live;
use crate::plan::Plan;
use crate::root::layers::program::Program;
use crate::root::layers::{self, Progress, Site};
use crate::spec::{RootSpec, Spec, Writes};
use crate::sys::{file, socket};
use crate::{security, spec};

/// Digits of the layer's name in the jail's.
const DIGITS: usize = 12;

impl Host {
    /// The directories of `layers`, topmost first; what is missing is made now.
    pub fn layers(&self, layers: &[Layer], progress: Progress<'_>) -> Result<Vec<PathBuf>> {
        let run = |lines: &Build, lower: &[PathBuf], aside: &Path| run(self, lines, lower, aside, progress);
        let site = Site { state: &self.journal.paths.state, progress, run: &run };
        layers::ensure_all(site, layers)
    }
}

/// Makes one layer of the template that is named, those below it being there.
pub type BuildLayer<'b> = &'b dyn Fn(&Host, &str, &Layer) -> Result<()>;

/// Whether a start of the plan needs a layer that is not there.
pub fn needs_layers(desired: &Desired, live: &Live, plan: &Plan) -> bool {
    starts(desired, plan)
        .any(|wanted| wanted.root.layers.iter().any(|layer| !live.layers.contains(&layer.id)))
}

fn starts<'d>(desired: &'d Desired, plan: &Plan) -> impl Iterator<Item = &'d DesiredJail> {
    let starts = plan.actions.iter().filter(|action| action.starts() && !action.as_before);
    starts.filter_map(|action| desired.jails.get(&action.name))
}

/// Makes the layers that the starts of a plan need, each once, before anything is stopped for
/// them. Gives the jails that cannot have theirs, with the reason.
pub fn layers_of(
    host: &Host,
    desired: &Desired,
    plan: &Plan,
    build: BuildLayer<'_>,
) -> BTreeMap<JailName, String> {
    let mut made: BTreeMap<&str, Result<(), String>> = BTreeMap::new();
    let mut failed = BTreeMap::new();
    for wanted in starts(desired, plan) {
        let template = wanted.jail.template.as_deref().unwrap_or_default();
        for layer in wanted.root.layers.iter().rev() {
            let outcome = made.entry(&layer.id).or_insert_with(|| {
                if layers::is_built(&host.journal.paths.state, &layer.id) {
                    return Ok(());
                }
                build(host, template, layer).map_err(|error| format!("{error:#}"))
            });
            if let Err(why) = outcome {
                failed.insert(wanted.jail.name.clone(), why.clone());
                break;
            }
        }
    }
    failed
}

/// Runs the lines in a jail that writes to `aside`, and gives the first id of what it wrote.
fn run(host: &Host, lines: &Build, lower: &[PathBuf], aside: &Path, progress: Progress<'_>) -> Result<u32> {
    let slot = ids::slot(&host.journal.paths.state, host.config.ids)?;
    let first_id = ids::first(host.config.ids, slot.number);
    let wanted = wanted(lines, aside)?;
    let jail: &Jail = &wanted.jail;
    let (upper, work) = (aside.join("upper"), aside.join("work"));
    make_directory(&upper, 0o755)?;
    make_directory(&work, 0o700)?;
    std::os::unix::fs::chown(&upper, Some(first_id), Some(first_id))
        .context("chown the build's directory")?;
    let spec = Spec {
        instance: super::instance(&jail.name),
        paths: host.journal.paths.clone(),
        cgroup_base: host.hierarchies.base().to_owned(),
        cgroup_parent: host.config.cgroup.clone(),
        first_id,
        root: RootSpec::Overlay {
            own: Vec::new(),
            lower: lower.to_vec(),
            writes: Writes::Kept { upper: upper.clone(), work },
            host_usr: lines.host_usr,
        },
        etc: super::etc_files(&wanted, None)?,
        network: None,
        profile: security::profile(jail).map_err(|refusals| super::refused(&refusals))?,
        stdio: spec::Stdio::Inherit,
        jail: jail.clone(),
    };
    in_jail(host, &spec, Duration::from_millis(lines.timeout), progress)?;
    if lines.network {
        forget_name_servers(&upper)?;
    }
    Ok(first_id)
}

fn in_jail(host: &Host, spec: &Spec, limit: Duration, progress: Progress<'_>) -> Result<()> {
    let (jail, parent) = (&spec.jail, &host.config.cgroup);
    let needs = Needs::of(jail);
    let paths = &host.journal.paths;
    // By it the next pass knows what lives, and what could not be removed.
    let instance = lock::instance(paths, &jail.name)?;
    let cgroup = Cgroup::create(&host.hierarchies, parent, jail.name.as_str(), &jail.limits, &needs)?;
    let ran = start(host, spec, limit).and_then(|program| program.finish(progress));
    let removed = cgroup.kill_all().and_then(|()| cgroup.remove());
    let unlocked = removed.and_then(|()| lock::give_up(instance, paths, &jail.name));
    ran.and(unlocked)
}

/// The process beside the jail, with the lines' output as its own.
fn start(host: &Host, spec: &Spec, limit: Duration) -> Result<Program> {
    let (ours, theirs) = socket::pair()?;
    let mut command = Command::new(format!("/proc/self/fd/{}", host.program()?.as_raw_fd()));
    command.arg0(BUILDER_NAME).env_clear().current_dir("/").stdin(Stdio::from(theirs));
    let program = Program::start_talking(command, "build", Instant::now() + limit)?;
    let message = serde_json::to_vec(spec).context("write the specification")?;
    socket::send(ours.as_fd(), &message, &[])?;
    Ok(program)
}

/// The jail as if it were defined: the lines are its `exec.start`, and the last one its command.
fn wanted(lines: &Build, aside: &Path) -> Result<DesiredJail> {
    let name = jail_name(&aside.file_name().unwrap_or_default().to_string_lossy())?;
    let (last, first) = lines.run.split_last().context("a build without a line")?;
    let settings = Settings::from([
        ("template".to_owned(), "build".into()),
        ("exec.start".to_owned(), first.to_vec().into()),
        ("exec.command".to_owned(), ["/bin/sh", "-c", last.as_str()].to_vec().into()),
        ("exec.env".to_owned(), serde_json::to_value(environment(lines)).context("write the environment")?),
        ("exec.timeout".to_owned(), lines.timeout.into()),
        ("network.mode".to_owned(), if lines.network { "inherit" } else { "none" }.into()),
        ("allow.host_network".to_owned(), lines.network.into()),
    ]);
    let jail = Jail::from_settings(&name, &settings).map_err(anyhow::Error::msg)?;
    let etc = if lines.network { vec![EtcFile::ResolvConf] } else { Vec::new() };
    let root = DesiredRoot { etc, host_usr: lines.host_usr, ..DesiredRoot::default() };
    Ok(DesiredJail { file: PathBuf::new(), settings, jail: jail.into(), root })
}

/// The build jail's, by a text with the layer's id in it.
fn jail_name(text: &str) -> Result<JailName> {
    let (_, digest) = text.split_once("sha256-").context("a layer without a digest")?;
    let digits: String = digest.chars().take(DIGITS).collect();
    JailName::new(&format!("build-{digits}")).map_err(|error| anyhow!(error))
}

/// Nobody is there to answer a question.
fn environment(lines: &Build) -> BTreeMap<String, String> {
    let mut env = BTreeMap::from([("DEBIAN_FRONTEND".to_owned(), "noninteractive".to_owned())]);
    env.extend(lines.env.clone());
    env
}

/// The host's name servers were lent to the build, and are no part of the layer.
fn forget_name_servers(upper: &Path) -> Result<()> {
    let upper = file::open_directory(upper).context("open what was written")?;
    match file::open_inside(
        upper.as_fd(),
        Path::new("etc"),
        OFlags::DIRECTORY | OFlags::NOFOLLOW,
        file::INSIDE,
    ) {
        // A build that has removed it, or put something else there, has none.
        Err(_) => Ok(()),
        Ok(etc) => match rustix::fs::unlinkat(&etc, "resolv.conf", rustix::fs::AtFlags::empty()) {
            Ok(()) | Err(rustix::io::Errno::NOENT | rustix::io::Errno::ISDIR) => Ok(()),
            Err(error) => Err(error).context("remove etc/resolv.conf"),
        },
    }
}
