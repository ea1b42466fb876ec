//! What clap parses; types only.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::ArgValueCandidates;

use super::{
    Options, commit, complete, cp, daemon, destroy, exec, export, import, logs, run, sandbox, snapshot,
    template,
};

/// Declarative jails for Linux.
#[derive(Debug, Parser)]
#[command(name = "stockade", version, about, max_term_width = 100, disable_help_subcommand = true)]
pub struct Line {
    #[command(flatten)]
    pub options: Options,
    #[command(subcommand)]
    pub command: Command,
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
    Work(daemon::Work),
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
    Exec(exec::Exec),
    /// Open a shell in a running jail
    Shell(exec::Shell),
    /// Attach to a jail's console (leave with ctrl-] )
    Console(Named),
    /// Show what a jail has printed
    Logs(logs::Logs),
    /// Run a command in a throw-away jail
    Run(run::Run),
    /// Copy files into a jail, out of it, or between jails
    Cp(cp::Cp),
    /// Write an archive of a jail
    Export(export::Export),
    /// Make a jail from an archive
    Import(import::Import),
    /// Stop a jail and delete its files
    Destroy(destroy::Destroy),
    /// Keep what a jail has written at this moment, list such, remove them
    Snapshot(snapshot::TakeArgs),
    /// Put a jail back to a snapshot
    Rollback(snapshot::RollbackArgs),
    /// Make a new jail of one as it is, or as it was
    Clone(snapshot::CloneArgs),
    /// Show what a jail has changed against its template
    Diff(sandbox::DiffArgs),
    /// Make a template of what a jail has written
    Commit(commit::CommitArgs),
    /// Copy files out of what a jail has written
    Recover(sandbox::RecoverArgs),
    /// Remove what nothing uses any more
    Gc(Gc),
    /// Templates
    Template(template::Template),
    /// Tell what this host can and cannot do, with the remedy
    Doctor,
    /// Explain a key of the definition files
    Explain(Explain),
    /// Print the JSON schema of a file, for editors
    Schema(Schema),
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
    /// The jail
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
    /// The jail
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
pub struct Gc {
    /// Only say what would be done
    #[arg(short = 'n', long)]
    pub dry_run: bool,
    /// Share what is the same in several layers and thick roots instead, where the file system can
    #[arg(long)]
    pub dedup: bool,
}

#[derive(Debug, Args)]
pub struct Explain {
    /// Without one: all keys, a line each
    #[arg(add = ArgValueCandidates::new(complete::keys))]
    pub key: Option<String>,
}

#[derive(Debug, Args)]
pub struct Schema {
    /// Whose file
    #[arg(value_enum, default_value_t)]
    pub of: SchemaOf,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub enum SchemaOf {
    /// One in jails.d
    #[default]
    Jail,
    /// A template's template.toml
    Template,
    /// stockade.toml
    Host,
}

#[derive(Debug, Args)]
pub struct Completions {
    pub shell: clap_complete::Shell,
}
