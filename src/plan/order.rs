//! What waits for what. Edges follow one ranking of all jails, so that no circle of waits can
//! come out, even from definitions or records that hold one.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use super::Action;
use crate::desired::Desired;
use crate::jail::{JailName, Settings};
use crate::live::Live;

/// For each jail, those it depends on.
type Graph<'a> = BTreeMap<&'a JailName, BTreeSet<&'a JailName>>;

/// What each jail depends on: as its file says, or where that has errors as its last start did.
pub type Depends<'a> = BTreeMap<&'a JailName, Cow<'a, [JailName]>>;

pub fn depends<'a>(desired: &'a Desired, live: &Live) -> Depends<'a> {
    let recorded = |name: &JailName| Some(depends_of(&live.jails.get(name)?.record.as_ref()?.settings));
    let broken = desired.broken.keys().filter_map(|name| Some((name, Cow::Owned(recorded(name)?))));
    let wanted = desired.jails.iter().map(|(name, wanted)| (name, wanted.jail.depend.as_slice().into()));
    broken.chain(wanted).collect()
}

/// All jails, each after those it depends on.
pub fn start_order<'d>(depends: &'d Depends<'_>) -> Vec<&'d JailName> {
    sort(&graph(depends))
}

fn graph<'d>(depends: &'d Depends<'_>) -> Graph<'d> {
    depends.iter().map(|(name, below)| (*name, below.iter().collect())).collect()
}

/// Sorts by dependency, then by name. The jails of a circle, and those above it, come last.
fn sort<'a>(graph: &Graph<'a>) -> Vec<&'a JailName> {
    if graph.values().all(BTreeSet::is_empty) {
        return graph.keys().copied().collect();
    }
    let mut waits: BTreeMap<&JailName, usize> = BTreeMap::new();
    let mut dependants: Graph<'a> = Graph::new();
    for (name, below) in graph {
        let known = below.iter().filter(|other| graph.contains_key(*other));
        waits.insert(name, known.clone().count());
        known.for_each(|other| {
            dependants.entry(other).or_default().insert(name);
        });
    }
    let mut ready: BTreeSet<&'a JailName> = graph.keys().copied().filter(|name| waits[name] == 0).collect();
    let mut sorted = Vec::with_capacity(graph.len());
    while let Some(name) = ready.pop_first() {
        sorted.push(name);
        for dependant in dependants.get(name).into_iter().flatten() {
            if let Some(left) = waits.get_mut(dependant) {
                *left -= 1;
                if *left == 0 {
                    ready.insert(dependant);
                }
            }
        }
    }
    let done: BTreeSet<&JailName> = sorted.iter().copied().collect();
    sorted.extend(graph.keys().copied().filter(|name| !done.contains(name)));
    sorted
}

/// The edges of `graph` that go with its ranking: `(name, what it depends on)`.
fn edges<'a>(graph: &Graph<'a>) -> Vec<(&'a JailName, &'a JailName)> {
    let rank: BTreeMap<&JailName, usize> =
        sort(graph).into_iter().enumerate().map(|(rank, name)| (name, rank)).collect();
    let all = graph.iter().flat_map(|(name, below)| below.iter().map(|other| (*name, *other)));
    all.filter(|(name, other)| rank.get(other).is_some_and(|below| *below < rank[name])).collect()
}

/// Fills in the waits: starts by what the definitions say, stops by what the running jails were
/// started with.
pub fn connect(actions: &mut [Action], depends: &Depends<'_>, desired: &Desired, live: &Live) {
    if actions.is_empty() {
        return;
    }
    let starting: BTreeSet<JailName> = names(actions, Action::starts);
    let stopping: BTreeSet<JailName> = names(actions, Action::has_stop);
    let at: BTreeMap<JailName, usize> =
        actions.iter().enumerate().map(|(at, action)| (action.name.clone(), at)).collect();
    for (name, below) in edges(&graph(depends)) {
        if starting.contains(name) && starting.contains(below) {
            actions[at[name]].start_after.push(below.clone());
        }
    }
    let in_force: BTreeMap<JailName, Vec<JailName>> =
        stopping.iter().map(|name| (name.clone(), depends_in_force(name, desired, live))).collect();
    let graph: Graph = in_force.iter().map(|(name, below)| (name, below.iter().collect())).collect();
    for (name, below) in edges(&graph) {
        actions[at[below]].stop_after.push(name.clone());
    }
}

fn names(actions: &[Action], wanted: fn(&Action) -> bool) -> BTreeSet<JailName> {
    actions.iter().filter(|action| wanted(action)).map(|action| action.name.clone()).collect()
}

fn depends_in_force(name: &JailName, desired: &Desired, live: &Live) -> Vec<JailName> {
    let record = live.jails.get(name).and_then(|seen| seen.record.as_ref());
    match (record, desired.jails.get(name)) {
        (Some(record), _) => depends_of(&record.settings),
        (None, Some(wanted)) => wanted.jail.depend.clone(),
        (None, None) => Vec::new(),
    }
}

fn depends_of(settings: &Settings) -> Vec<JailName> {
    let names = settings.get("depend").and_then(|value| value.as_array()).into_iter().flatten();
    names.filter_map(|name| JailName::new(name.as_str()?).ok()).collect()
}
