//! What clap parses; types only.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use clap_complete::ArgValueCandidates;

use super::complete;
use crate::desired::Paths;

/// Declarative jails for Linux.
#[derive(Debug, Parser)]
#[command(name = "stockade", version, about, max_term_width = 100, disable_help_subcommand = true)]
pub struct Options {
    #[command(subcommand)]
    pub command: Command,
    /// Definitions and templates [default: /etc/stockade]
    #[arg(long, global = true, value_name = "DIR", env = "STOCKADE_CONFIG_DIR")]
    pub config_dir: Option<PathBuf>,
    /// Layers and the jails' own files [default: /var/lib/stockade]
    #[arg(long, global = true, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// What is gone after a reboot [default: /run/stockade]
    #[arg(long, global = true, value_name = "DIR")]
    pub run_dir: Option<PathBuf>,
    /// Console logs [default: /var/log/stockade]
    #[arg(long, global = true, value_name = "DIR")]
    pub log_dir: Option<PathBuf>,
    /// Print JSON
    #[arg(long, global = true)]
    pub json: bool,
}

impl Options {
    /// The directories that flags name; an empty one is left to the host's file or the default.
    pub fn paths(&self) -> Paths {
        let or_empty = |path: &Option<PathBuf>| path.as_deref().map(absolute).unwrap_or_default();
        Paths {
            config: or_empty(&self.config_dir),
            state: or_empty(&self.state_dir),
            run: or_empty(&self.run_dir),
            log: or_empty(&self.log_dir),
        }
    }
}

/// Keepers run elsewhere than the caller: a relative directory would mean another one to them.
fn absolute(path: &std::path::Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

// Deferred: the flags of the verbs that are not asked for would take a tenth of a `run` to build.
#[derive(Debug, Subcommand)]
#[command(defer = true)]
pub enum Command {
    /// Check the definitions, or these files
    Check(Check),
    /// Show what apply would do (exit status 4 if anything)
    Plan(Plan),
    /// Make the jails equal to their definitions
    Apply(Apply),
    /// Keep the jails equal to their definitions
    Daemon,
    /// What the daemon has done beside its passes
    #[command(hide = true)]
    Work(super::daemon::Work),
    /// List jails
    Ls(Ls),
    /// Show one jail: its keys, its limits as they are in force, its root
    Show(Named),
    /// Show how many jails are in which state, and what is wrong
    Status,
    /// Start jails, also ones that were stopped by hand
    Start(Many),
    /// Stop jails until they are started by hand
    Stop(Stop),
    /// Stop and start jails
    Restart(Many),
    /// Send a signal to a jail's main process
    Kill(Kill),
    /// Freeze every process of jails
    Freeze(Many),
    /// Let frozen jails go on
    Thaw(Many),
    /// Run a command in a running jail
    Exec(Exec),
    /// Open a shell in a running jail
    Shell(Shell),
    /// Attach to a jail's console (leave with ctrl-] )
    Console(Named),
    /// Show what a jail has printed
    Logs(Logs),
    /// Run a command in a throw-away jail
    Run(Run),
    /// Copy files into a jail, out of it, or between jails
    Cp(super::cp::Cp),
    /// Write an archive of a jail
    Export(super::export::Export),
    /// Make a jail from an archive
    Import(super::import::Import),
    /// Stop a jail and delete its files
    Destroy(Destroy),
    /// Keep what a jail has written at this moment, list such, remove them
    Snapshot(super::snapshot::TakeArgs),
    /// Put a jail back to a snapshot
    Rollback(super::snapshot::RollbackArgs),
    /// Make a new jail of one as it is, or as it was
    Clone(super::snapshot::CloneArgs),
    /// Show what a jail has changed against its template
    Diff(super::sandbox::DiffArgs),
    /// Make a template of what a jail has written
    Commit(super::commit::CommitArgs),
    /// Copy files out of what a jail has written
    Recover(super::sandbox::RecoverArgs),
    /// Remove what nothing uses any more
    Gc(Gc),
    /// Templates
    Template(Template),
    /// Tell what this host can and cannot do, with the remedy
    Doctor,
    /// Explain a key of the definition files
    Explain(Explain),
    /// Print the JSON schema of a jail's file
    Schema,
    /// Print the part of stockade.toml(5) that lists the keys
    #[command(hide = true)]
    Man,
    /// Print a completion script
    Completions(Completions),
}

#[derive(Debug, Args)]
pub struct Check {
    pub files: Vec<PathBuf>,
}

#[derive(Debug, Args)]
pub struct Plan {
    /// Just these jails and what they need
    #[arg(long, value_name = "NAME", add = ArgValueCandidates::new(complete::jails))]
    pub only: Vec<String>,
}

#[derive(Debug, Args)]
pub struct Apply {
    /// Just these jails and what they need
    #[arg(long, value_name = "NAME", add = ArgValueCandidates::new(complete::jails))]
    pub only: Vec<String>,
    /// Leave out what would interrupt a running jail
    #[arg(long)]
    pub no_restart: bool,
}

#[derive(Debug, Args)]
pub struct Ls {
    #[arg(add = ArgValueCandidates::new(complete::jails))]
    pub names: Vec<String>,
}

#[derive(Debug, Args)]
pub struct Named {
    #[arg(add = ArgValueCandidates::new(complete::jails))]
    pub name: String,
}

#[derive(Debug, Args)]
pub struct Many {
    #[arg(required = true, add = ArgValueCandidates::new(complete::jails))]
    pub names: Vec<String>,
}

#[derive(Debug, Args)]
pub struct Stop {
    #[arg(required_unless_present = "all", conflicts_with = "all", add = ArgValueCandidates::new(complete::jails))]
    pub names: Vec<String>,
    /// Every jail, in order
    #[arg(long)]
    pub all: bool,
    /// Until the next apply, or the daemon, starts them again: at the host's shutdown
    #[arg(long, requires = "all")]
    pub for_now: bool,
}

#[derive(Debug, Args)]
pub struct Kill {
    #[arg(add = ArgValueCandidates::new(complete::jails))]
    pub name: String,
    /// By name without SIG, or by number
    #[arg(short, long, default_value = "TERM", value_parser = signal)]
    pub signal: i32,
}

fn signal(text: &str) -> Result<i32, String> {
    crate::sys::process::signal_number(text).ok_or_else(|| format!("`{text}` is not a signal"))
}

#[derive(Debug, Args)]
pub struct Exec {
    #[arg(add = ArgValueCandidates::new(complete::jails))]
    pub name: String,
    /// Directory in the jail
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<PathBuf>,
    #[command(flatten)]
    pub program: Program,
}

/// What `exec` and `run` start, and how.
#[derive(Debug, Args)]
pub struct Program {
    /// User in the jail, by name or number
    #[arg(short, long)]
    pub user: Option<String>,
    /// Additional environment
    #[arg(short, long, value_name = "NAME=VALUE")]
    pub env: Vec<String>,
    /// Keep this command's own streams even on a terminal
    #[arg(short = 'T', long)]
    pub no_terminal: bool,
    #[arg(last = true, required = true, value_name = "CMD")]
    pub argv: Vec<String>,
}

#[derive(Debug, Args)]
pub struct Shell {
    #[arg(add = ArgValueCandidates::new(complete::jails))]
    pub name: String,
    /// User in the jail, by name or number
    #[arg(short, long)]
    pub user: Option<String>,
}

#[derive(Debug, Args)]
pub struct Logs {
    #[arg(add = ArgValueCandidates::new(complete::jails))]
    pub name: String,
    /// Go on as more comes
    #[arg(short, long)]
    pub follow: bool,
    /// Since a moment (2026-11-23T10:00:00Z) or a while ago (10m)
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
    /// The last lines only
    #[arg(short = 'n', long, value_name = "COUNT")]
    pub lines: Option<usize>,
    /// Without the time of each line
    #[arg(long)]
    pub no_time: bool,
}

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
    pub program: Program,
}

#[derive(Debug, Args)]
pub struct Destroy {
    #[arg(required = true, add = ArgValueCandidates::new(complete::jails))]
    pub names: Vec<String>,
    /// Without asking
    #[arg(long)]
    pub yes: bool,
}

#[derive(Debug, Args)]
pub struct Gc {
    /// Only say what would be done
    #[arg(short = 'n', long)]
    pub dry_run: bool,
    /// Share what is the same in several layers and thick roots instead, where the file system can
    #[arg(long)]
    pub dedup: bool,
}

#[derive(Debug, Args)]
pub struct Template {
    #[command(subcommand)]
    pub verb: TemplateVerb,
}

#[derive(Debug, Subcommand)]
pub enum TemplateVerb {
    /// List templates, their layers and who uses them
    Ls,
    /// Build a template's layers now
    Build {
        #[arg(add = ArgValueCandidates::new(complete::templates))]
        name: String,
    },
    /// Show a template's layers: what they are made from, their sizes, who uses them
    Show {
        #[arg(add = ArgValueCandidates::new(complete::templates))]
        name: String,
    },
    /// Compare layers with what they held when they were made
    Verify {
        /// Without one: every layer there is
        #[arg(add = ArgValueCandidates::new(complete::templates))]
        names: Vec<String>,
    },
    /// Remove layers that no jail uses
    Gc,
}

#[derive(Debug, Args)]
pub struct Explain {
    /// Without one: all keys, a line each
    #[arg(add = ArgValueCandidates::new(complete::keys))]
    pub key: Option<String>,
}

#[derive(Debug, Args)]
pub struct Completions {
    pub shell: clap_complete::Shell,
}
