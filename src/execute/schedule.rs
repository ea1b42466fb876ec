//! Work on many jails side by side, each when those it waits for have ended well.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Condvar, Mutex, PoisonError};

use anyhow::Result;

use crate::jail::JailName;

/// One piece of work and what must have ended well before it begins.
pub struct Task {
    pub name: JailName,
    pub after: Vec<JailName>,
}

/// What became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Done,
    Failed(String),
    /// By the name of the one it waited for.
    Skipped(JailName),
}

/// More threads than cores: most of a start is spent waiting for the kernel.
const THREADS_PER_CORE: usize = 8;

struct State {
    waiting: VecDeque<Task>,
    running: usize,
    ended: BTreeMap<JailName, Outcome>,
}

/// Does `work` for every task and tells how each ended. Names waited for that are no task count
/// as done.
pub fn run(tasks: Vec<Task>, work: &(dyn Fn(&JailName) -> Result<()> + Sync)) -> BTreeMap<JailName, Outcome> {
    let threads = threads().min(tasks.len());
    let names: std::collections::BTreeSet<JailName> = tasks.iter().map(|task| task.name.clone()).collect();
    let mut waiting: VecDeque<Task> = tasks.into();
    for task in &mut waiting {
        task.after.retain(|name| names.contains(name));
    }
    let state = Mutex::new(State { waiting, running: 0, ended: BTreeMap::new() });
    let changed = Condvar::new();
    std::thread::scope(|scope| {
        for _ in 1..threads {
            // Where the system has no more threads to give, fewer do the same work.
            let thread = std::thread::Builder::new();
            if thread.spawn_scoped(scope, || worker(&state, &changed, work)).is_err() {
                break;
            }
        }
        worker(&state, &changed, work);
    });
    state.into_inner().unwrap_or_else(PoisonError::into_inner).ended
}

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get) * THREADS_PER_CORE
}

fn worker(state: &Mutex<State>, changed: &Condvar, work: &(dyn Fn(&JailName) -> Result<()> + Sync)) {
    let mut guard = state.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        match next(&mut guard) {
            Next::Run(name) => {
                guard.running += 1;
                drop(guard);
                let outcome = match work(&name) {
                    Ok(()) => Outcome::Done,
                    Err(error) => Outcome::Failed(format!("{error:#}")),
                };
                guard = state.lock().unwrap_or_else(PoisonError::into_inner);
                guard.running -= 1;
                guard.ended.insert(name, outcome);
                changed.notify_all();
            }
            Next::Wait => guard = changed.wait(guard).unwrap_or_else(PoisonError::into_inner),
            Next::End => return,
        }
    }
}

enum Next {
    Run(JailName),
    Wait,
    End,
}

/// The first task that may begin; those whose turn can never come are skipped on the way.
fn next(state: &mut State) -> Next {
    let mut index = 0;
    while index < state.waiting.len() {
        let task = &state.waiting[index];
        let failed =
            task.after.iter().find(|name| state.ended.get(*name).is_some_and(|o| *o != Outcome::Done));
        if let Some(failed) = failed.cloned() {
            let task = state.waiting.remove(index).expect("the index was just looked at");
            state.ended.insert(task.name, Outcome::Skipped(failed));
            index = 0;
        } else if task.after.iter().all(|name| state.ended.contains_key(name)) {
            let task = state.waiting.remove(index).expect("the index was just looked at");
            return Next::Run(task.name);
        } else {
            index += 1;
        }
    }
    // Nothing may begin and nothing runs: either all is done, or the rest waits in a circle, which
    // the plan excludes.
    if state.waiting.is_empty() || state.running == 0 { Next::End } else { Next::Wait }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> JailName {
        JailName::new(text).unwrap()
    }

    fn task(text: &str, after: &[&str]) -> Task {
        Task { name: name(text), after: after.iter().map(|n| name(n)).collect() }
    }

    #[test]
    fn order_is_kept_and_a_failure_takes_its_dependants_only() {
        let order = Mutex::new(Vec::new());
        let tasks = vec![
            task("app", &["db", "elsewhere"]),
            task("db", &[]),
            task("web", &["bad"]),
            task("bad", &[]),
            task("top", &["web"]),
        ];
        let ended = run(tasks, &|name| {
            order.lock().unwrap().push(name.to_string());
            if name.as_str() == "bad" {
                anyhow::bail!("no")
            }
            Ok(())
        });
        let order = order.into_inner().unwrap();
        let at = |n: &str| order.iter().position(|o| o == n);
        assert!(at("db") < at("app"));
        assert_eq!(at("web"), None);
        assert_eq!(ended[&name("bad")], Outcome::Failed("no".into()));
        assert_eq!(ended[&name("web")], Outcome::Skipped(name("bad")));
        assert_eq!(ended[&name("top")], Outcome::Skipped(name("web")));
        assert_eq!(ended[&name("app")], Outcome::Done);
    }

    #[test]
    fn nothing_to_do_ends_at_once() {
        assert!(run(Vec::new(), &|_| Ok(())).is_empty());
    }
}
