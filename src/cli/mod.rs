//! The verbs: what a person types, and the exit status. Each verb is a thin composition of the
//! rest; the shapes of tables and JSON are made where the facts are.

mod command;
mod commit;
mod complete;
mod cp;
mod daemon;
mod dedup;
mod definition;
mod destroy;
mod doctor;
mod exec;
mod export;
mod gc;
mod import;
mod jails;
mod listing;
pub(crate) mod logs;
mod named;
mod options;
mod output;
mod plan;
mod progress;
mod reference;
mod run;
mod sandbox;
mod snapshot;
mod template;
mod volume;

use clap::{CommandFactory, Parser};

use command::Command;
pub use command::Line;
pub use options::Options;

/// Exit statuses, stockade(8).
pub const DONE: i32 = 0;
pub const FAILED: i32 = 1;
pub const USAGE: i32 = 2;
pub const INVALID: i32 = 3;
pub const CHANGES: i32 = 4;

/// Parses, dispatches, and prints the one error there may be.
pub fn main() -> i32 {
    complete::answer(Line::command);
    let Line { options, command } = Line::parse();
    match dispatch(&options, &command) {
        Ok(status) => status,
        Err(error) => {
            output::error(&options, &error);
            status_of(&error, &command)
        }
    }
}

/// `exec` and `run` reserve 125 to 127 for what is not the program's own status.
fn status_of(error: &anyhow::Error, command: &Command) -> i32 {
    match command {
        Command::Exec(_) | Command::Shell(_) | Command::Run(_) => crate::init::program::exit_status(error),
        _ if error.is::<named::Broken>() => INVALID,
        _ => FAILED,
    }
}

fn dispatch(options: &Options, command: &Command) -> anyhow::Result<i32> {
    match command {
        Command::Check(check) => plan::check(options, &check.files),
        Command::Plan(plan) => plan::plan(options, &plan.only),
        Command::Apply(apply) => plan::apply(options, &apply.only, apply.no_restart),
        Command::Daemon => daemon::daemon(options),
        Command::Work(asked) => daemon::work(options, asked),
        Command::Ls(ls) => listing::ls(options, &ls.names),
        Command::Show(named) => listing::show(options, &named.name),
        Command::Status => listing::status(options),
        Command::Start(many) => jails::start(options, &many.names),
        Command::Stop(stop) if stop.for_now => jails::all_down(options),
        Command::Stop(stop) if stop.all => jails::stop_all(options),
        Command::Stop(stop) => jails::stop(options, &stop.names),
        Command::Restart(many) => jails::restart(options, &many.names),
        Command::Kill(kill) => jails::kill(options, &kill.name, kill.signal),
        Command::Freeze(many) => jails::freeze(options, &many.names, true),
        Command::Thaw(many) => jails::freeze(options, &many.names, false),
        Command::Exec(exec) => exec::exec(options, exec),
        Command::Shell(shell) => exec::shell(options, shell),
        Command::Console(named) => exec::console(options, &named.name),
        Command::Logs(logs) => logs::logs(options, logs),
        Command::Run(run) => run::run(options, run),
        Command::Cp(asked) => cp::cp(options, asked),
        Command::Export(asked) => export::export(options, asked),
        Command::Import(asked) => import::import(options, asked),
        Command::Destroy(destroy) => destroy::destroy(options, destroy),
        Command::Snapshot(take) => snapshot::snapshot(options, take),
        Command::Rollback(rollback) => snapshot::rollback(options, rollback),
        Command::Clone(clone) => snapshot::clone(options, clone),
        Command::Commit(commit) => commit::commit(options, commit),
        Command::Diff(diff) => sandbox::diff(options, diff),
        Command::Recover(recover) => sandbox::recover(options, recover),
        Command::Gc(gc) if gc.dedup => dedup::dedup(options, gc.dry_run),
        Command::Gc(gc) => gc::gc(options, gc.dry_run),
        Command::Template(template) => template::template(options, template),
        Command::Doctor => Ok(doctor::doctor(options)),
        Command::Explain(explain) => reference::explain(options, explain.key.as_deref()),
        Command::Schema(schema) => Ok(reference::schema(schema.of)),
        Command::Man => Ok(reference::man()),
        Command::Completions(completions) => complete::script(completions.shell),
    }
}
