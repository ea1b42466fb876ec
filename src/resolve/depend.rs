//! The graph of `depend`: names that are not there, circles, and what stands on a broken jail.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::diagnostic::{Diagnostic, did_you_mean};
use crate::jail::JailName;

use super::Draft;

type Graph = Vec<Vec<(usize, usize)>>;

/// Checks every `depend` of every jail; `refused` are jails whose file could not be taken.
pub fn check(drafts: &mut [Draft], refused: &BTreeMap<JailName, String>, found: &mut Vec<Diagnostic>) {
    let graph = graph(drafts, refused, found);
    for circle in circles(&graph) {
        report_circle(drafts, &graph, &circle, found);
    }
    spread(drafts, &graph, found);
}

fn names(draft: &Draft) -> Vec<String> {
    let list = draft.settings.get("depend").and_then(Value::as_array);
    list.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

/// For each jail the jails it depends on, with the item of its list.
fn graph(drafts: &mut [Draft], refused: &BTreeMap<JailName, String>, found: &mut Vec<Diagnostic>) -> Graph {
    let index: BTreeMap<String, usize> =
        drafts.iter().enumerate().map(|(index, draft)| (draft.name.to_string(), index)).collect();
    let is_refused = |name: &str| refused.keys().any(|refused| refused.as_str() == name);
    let mut graph = Vec::with_capacity(drafts.len());
    for draft in drafts.iter_mut() {
        let mut edges = Vec::new();
        for (item, name) in names(draft).into_iter().enumerate() {
            if let Some(target) = index.get(&name) {
                edges.push((*target, item));
            } else if is_refused(&name) {
                let message = format!("depends on `{name}`, whose file cannot be used");
                draft.fault(draft.error_in("depend", item, message), found);
            } else {
                let mut error = draft.error_in("depend", item, format!("there is no jail `{name}`"));
                let own = draft.name.to_string();
                error.help = did_you_mean(&name, index.keys().map(String::as_str).filter(|n| *n != own));
                draft.fault(error, found);
            }
        }
        graph.push(edges);
    }
    graph
}

/// Each circle once, as the jails along it. Walks with a stack of its own: a chain of thousands of
/// jails must not exhaust the thread's.
fn circles(graph: &Graph) -> Vec<Vec<usize>> {
    let mut circles = Vec::new();
    let mut done = vec![false; graph.len()];
    let mut depth: Vec<Option<usize>> = vec![None; graph.len()];
    for start in 0..graph.len() {
        if done[start] {
            continue;
        }
        let mut path = vec![(start, 0)];
        depth[start] = Some(0);
        while let Some((node, next)) = path.last_mut() {
            let node = *node;
            let Some(&(target, _)) = graph[node].get(*next) else {
                done[node] = true;
                depth[node] = None;
                path.pop();
                continue;
            };
            *next += 1;
            if let Some(from) = depth[target] {
                circles.push(path[from..].iter().map(|(node, _)| *node).collect());
            } else if !done[target] {
                depth[target] = Some(path.len());
                path.push((target, 0));
            }
        }
    }
    circles
}

/// One error, at the circle's first jail by name; the others are in error by the same sentence.
fn report_circle(drafts: &mut [Draft], graph: &Graph, circle: &[usize], found: &mut Vec<Diagnostic>) {
    let first = (0..circle.len()).min_by_key(|at| circle[*at]).unwrap_or(0);
    let around: Vec<usize> = circle[first..].iter().chain(&circle[..first]).copied().collect();
    let mut names: Vec<&str> = around.iter().map(|node| drafts[*node].name.as_str()).collect();
    names.push(names[0]);
    let message = format!("these jails depend on one another: {}", names.join(" -> "));
    let next = around.get(1).unwrap_or(&around[0]);
    let item = graph[around[0]].iter().find(|(target, _)| target == next).map_or(0, |(_, item)| *item);
    let error = drafts[around[0]].error_in("depend", item, message);
    for node in &around {
        drafts[*node].broken.get_or_insert_with(|| error.summary());
    }
    found.push(error);
}

/// What depends on a broken jail is in error too, and so on.
fn spread(drafts: &mut [Draft], graph: &Graph, found: &mut Vec<Diagnostic>) {
    let mut dependants: Vec<Vec<(usize, usize)>> = vec![Vec::new(); graph.len()];
    for (node, edges) in graph.iter().enumerate() {
        for (target, item) in edges {
            dependants[*target].push((node, *item));
        }
    }
    let mut open: Vec<usize> = (0..drafts.len()).filter(|node| drafts[*node].broken.is_some()).collect();
    while let Some(node) = open.pop() {
        for (dependant, item) in dependants[node].clone() {
            if drafts[dependant].broken.is_some() {
                continue;
            }
            let message = format!("depends on `{}`, which has errors", drafts[node].name);
            let error = drafts[dependant].error_in("depend", item, message);
            drafts[dependant].fault(error, found);
            open.push(dependant);
        }
    }
}
