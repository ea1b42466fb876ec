//! Everything that can happen, and what the model makes of it.

use proptest::prelude::*;
use proptest::sample::select;
use proptest_state_machine::ReferenceStateMachine;

use crate::editors::{STYLES, SWAPS, Style, Swap};
use crate::model::{BASE, Definition, File, Model, NAMES};

/// More ends in a row would make the next start wait for seconds.
const KILLS_MAX: u32 = 3;

#[derive(Clone, Debug)]
pub enum Step {
    Write(usize, Definition, Style),
    Break(usize, &'static str, Style),
    Remove(usize),
    /// As a backup, which is no definition any more.
    SetAside(usize),
    Rename(usize, usize),
    /// All of it at once.
    Swap(Vec<(usize, Option<Definition>)>, Swap),
    /// One after the other, without a pause.
    Batch(Vec<(usize, Definition)>, Style),
    Page(u8, Style),
    BreakTemplate(Style),
    Defaults(Option<u32>, Style),
    BreakHost(Style),
    Stop(usize),
    Start(usize),
    Restart(usize),
    Apply,
    Reload,
    KillInit(usize),
    /// And the clock is set back before its next start.
    KillInitInTheFuture(usize),
    KillKeeper(usize),
    KillDaemon,
    /// An edit, and the daemon killed so many milliseconds later, and started.
    KillAmid(usize, Definition, u64),
    EndDaemon,
    StartDaemon,
    /// More events than inotify keeps, and the edit among those that are lost.
    Flood(usize, Definition),
    DriftLimit(usize),
    DriftFile(usize),
    /// By so many hours, as it looks to all times that were written down before.
    SetClock(i64),
    FillDisk,
    FreeDisk,
}

impl Step {
    fn style(&self) -> Option<Style> {
        match self {
            Self::Write(_, _, style)
            | Self::Break(_, _, style)
            | Self::Batch(_, style)
            | Self::Page(_, style)
            | Self::BreakTemplate(style)
            | Self::Defaults(_, style)
            | Self::BreakHost(style) => Some(*style),
            _ => None,
        }
    }
}

pub const FAULTS: [&str; 5] = [
    "[limits\n",
    "template = \"host\"\n",
    "template = \"host\"\nexec.command = [\"true\"]\nnonsense = 1\n",
    "template = \"nowhere\"\nexec.command = [\"true\"]\n",
    "template = \"host\"\nexec.command = [\"true\"]\nlimits.memory = 5\n",
];

pub fn definition(at: usize) -> impl Strategy<Value = Definition> {
    let rare = |weight| prop::bool::weighted(weight);
    (
        prop::option::of(select(vec![16_u32, 24, 32])),
        0_u8..3,
        0_u8..3,
        prop::option::of(0_u8..4),
        rare(0.9),
        rare(0.4),
        rare(0.3),
    )
        .prop_map(move |(memory, hostname, argument, word, enabled, depends, once)| Definition {
            memory,
            hostname,
            argument,
            word,
            enabled,
            depends: depends && at != BASE,
            // Whether a dependant of one that ended may start is a rule of its own.
            once: once && at != BASE,
        })
}

fn jail_and_definition() -> impl Strategy<Value = (usize, Definition)> {
    (0..NAMES.len()).prop_flat_map(|at| (Just(at), definition(at)))
}

fn style() -> impl Strategy<Value = Style> {
    select(STYLES.to_vec())
}

fn any_step() -> BoxedStrategy<Step> {
    let at = || 0..NAMES.len();
    let edits = prop::collection::vec(jail_and_definition(), 1..4).prop_map(once_each);
    let some = |((at, definition), keep): ((usize, Definition), bool)| (at, keep.then_some(definition));
    let kept = (jail_and_definition(), prop::bool::weighted(0.7)).prop_map(some);
    let swaps = prop::collection::vec(kept, 0..4).prop_map(once_each);
    prop_oneof![
        12 => (jail_and_definition(), style()).prop_map(|((at, new), style)| Step::Write(at, new, style)),
        3 => (at(), select(FAULTS.to_vec()), style()).prop_map(|(at, text, style)| Step::Break(at, text, style)),
        2 => at().prop_map(Step::Remove),
        1 => at().prop_map(Step::SetAside),
        1 => (at(), at()).prop_map(|(from, to)| Step::Rename(from, to)),
        3 => (swaps, select(SWAPS.to_vec())).prop_map(|(edits, how)| Step::Swap(edits, how)),
        3 => (edits, style()).prop_map(|(edits, style)| Step::Batch(edits, style)),
        3 => (0_u8..5, style()).prop_map(|(page, style)| Step::Page(page, style)),
        1 => style().prop_map(Step::BreakTemplate),
        1 => (prop::option::of(select(vec![50_u32, 60])), style()).prop_map(|(n, style)| Step::Defaults(n, style)),
        1 => style().prop_map(Step::BreakHost),
        2 => at().prop_map(Step::Stop),
        3 => at().prop_map(Step::Start),
        1 => at().prop_map(Step::Restart),
        1 => Just(Step::Apply),
        2 => Just(Step::Reload),
        3 => at().prop_map(Step::KillInit),
        1 => at().prop_map(Step::KillInitInTheFuture),
        2 => at().prop_map(Step::KillKeeper),
        2 => Just(Step::KillDaemon),
        3 => (jail_and_definition(), 0_u64..260).prop_map(|((at, new), ms)| Step::KillAmid(at, new, ms)),
        1 => Just(Step::EndDaemon),
        1 => jail_and_definition().prop_map(|(at, new)| Step::Flood(at, new)),
        2 => at().prop_map(Step::DriftLimit),
        2 => at().prop_map(Step::DriftFile),
        2 => select(vec![-25, -1, 1, 1_000]).prop_map(Step::SetClock),
        1 => Just(Step::FillDisk),
    ]
    .boxed()
}

/// What two passes might see of two edits of one jail is not for the model to say.
fn once_each<T>(mut edits: Vec<(usize, T)>) -> Vec<(usize, T)> {
    edits.sort_by_key(|(at, _)| *at);
    edits.dedup_by_key(|(at, _)| *at);
    edits
}

pub struct Rules;

impl ReferenceStateMachine for Rules {
    type State = Model;
    type Transition = Step;

    fn init_state() -> BoxedStrategy<Model> {
        Just(Model::new()).boxed()
    }

    /// What keeps everything else from happening is put right soon.
    fn transitions(model: &Model) -> BoxedStrategy<Step> {
        if !model.daemon {
            return prop_oneof![1 => Just(Step::StartDaemon), 1 => any_step()].boxed();
        }
        if model.full {
            return prop_oneof![1 => Just(Step::FreeDisk), 2 => any_step()].boxed();
        }
        if model.host_broken {
            let mend = style().prop_map(|style| Step::Defaults(None, style));
            return prop_oneof![1 => mend, 1 => any_step()].boxed();
        }
        any_step()
    }

    fn preconditions(model: &Model, step: &Step) -> bool {
        let jail = |at: usize| &model.jails[at];
        let runs = |at: usize| jail(at).running.is_some() && !model.full;
        // Half a text is another text, and brings up a jail that has ended and was to stay so.
        let has_ended = model.jails.iter().any(|jail| jail.ended.is_some());
        if has_ended && step.style().is_some_and(Style::shows_halves) {
            return false;
        }
        match step {
            Step::SetAside(at) => jail(*at).file != File::Absent,
            Step::Rename(from, to) => {
                *to != BASE && jail(*from).file != File::Absent && jail(*to).file == File::Absent
            }
            Step::Stop(at) => {
                model.daemon && !model.full && !model.host_broken && jail(*at).file != File::Absent
            }
            Step::Start(at) => model.daemon && model.startable(*at),
            Step::Restart(at) => model.daemon && model.startable(*at) && runs(*at),
            Step::Reload | Step::KillDaemon | Step::EndDaemon => model.daemon,
            Step::KillAmid(..) | Step::Flood(..) => model.daemon && !model.full,
            Step::KillInit(at) | Step::KillInitInTheFuture(at) => runs(*at) && jail(*at).kills < KILLS_MAX,
            Step::KillKeeper(at) => runs(*at) && jail(*at).running.as_ref().is_some_and(|r| !r.orphan),
            Step::StartDaemon => !model.daemon,
            Step::DriftLimit(at) => {
                runs(*at)
                    && model.daemon
                    && !model.broken(*at)
                    && jail(*at).running.as_ref().is_some_and(|r| r.given.definition.memory.is_some())
            }
            Step::DriftFile(at) => {
                runs(*at)
                    && model.daemon
                    && !model.broken(*at)
                    && jail(*at).running.as_ref().is_some_and(|r| r.given.page.is_some())
            }
            Step::Apply | Step::FillDisk => !model.full,
            Step::FreeDisk => model.full && model.daemon,
            _ => true,
        }
    }

    fn apply(mut model: Model, step: &Step) -> Model {
        model.begin();
        happens(&mut model, step);
        model.settle();
        model
    }
}

fn happens(model: &mut Model, step: &Step) {
    match step {
        Step::Write(at, new, _) | Step::KillAmid(at, new, _) | Step::Flood(at, new) => {
            model.jails[*at].file = File::Good(new.clone());
        }
        Step::Break(at, ..) => model.jails[*at].file = File::Broken,
        Step::Remove(at) | Step::SetAside(at) => model.jails[*at].file = File::Absent,
        Step::Rename(from, to) => {
            model.jails[*to].file = std::mem::replace(&mut model.jails[*from].file, File::Absent);
        }
        Step::Swap(edits, _) => {
            for (at, new) in edits {
                model.jails[*at].file = new.clone().map_or(File::Absent, File::Good);
            }
        }
        Step::Batch(edits, _) => {
            for (at, new) in edits {
                model.jails[*at].file = File::Good(new.clone());
            }
        }
        Step::Page(page, _) => (model.page, model.template_broken) = (*page, false),
        Step::BreakTemplate(_) => model.template_broken = true,
        Step::Defaults(processes, _) => (model.processes, model.host_broken) = (*processes, false),
        Step::BreakHost(_) => model.host_broken = true,
        Step::Stop(at) => model.jails[*at].held = true,
        Step::Start(at) => model.start(*at),
        Step::Restart(at) => {
            // Down with all that depends on it, and up again.
            model.jails[*at].held = true;
            pass_by_hand(model);
            model.start(*at);
        }
        Step::Apply => pass_by_hand(model),
        Step::Reload | Step::DriftLimit(_) | Step::DriftFile(_) | Step::SetClock(_) => {}
        Step::KillInit(at) | Step::KillInitInTheFuture(at) => model.end(*at),
        Step::KillKeeper(at) => {
            if let Some(running) = &mut model.jails[*at].running {
                running.orphan = true;
            }
        }
        Step::KillDaemon | Step::EndDaemon => model.daemon = false,
        Step::StartDaemon => model.daemon = true,
        Step::FillDisk => model.full = true,
        Step::FreeDisk => model.full = false,
    }
}

/// A pass that some verb makes, whether or not there is a daemon.
fn pass_by_hand(model: &mut Model) {
    let daemon = std::mem::replace(&mut model.daemon, true);
    model.settle();
    model.daemon = daemon;
}
