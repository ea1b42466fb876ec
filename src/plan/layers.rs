//! What starts needs its layers: they are built before, or, by the daemon, beside its passes.

use super::judge::{Judgement, runs};
use super::{Action, Options};
use crate::desired::{Desired, DesiredJail, Layer, LayerSource};
use crate::jail::JailName;
use crate::live::Live;

/// The template of a jail that has to be built before the jail can start. The layer around the
/// host's own /usr does not count: it is made within a start.
pub fn unbuilt<'d>(wanted: &'d DesiredJail, live: &Live) -> Option<&'d str> {
    let missing = |layer: &Layer| !live.layers.contains(&layer.id) && layer.source != LayerSource::Host;
    wanted.jail.template.as_deref().filter(|_| wanted.root.layers.iter().any(missing))
}

/// Whether somebody builds a layer of the jail just now.
pub fn is_being_built(wanted: &DesiredJail, live: &Live) -> bool {
    wanted.root.layers.iter().any(|layer| live.building.contains(&layer.id))
}

/// The template of a jail that could not be built, and why.
pub fn build_failure<'d>(wanted: &'d DesiredJail, live: &'d Live) -> Option<(&'d str, &'d str)> {
    let template = unbuilt(wanted, live).filter(|_| !is_being_built(wanted, live))?;
    let why = wanted.root.layers.iter().find_map(|layer| live.failed_builds.get(&layer.id))?;
    Some((template, why))
}

pub fn waits(wanted: &DesiredJail, live: &Live) -> &'static str {
    if is_being_built(wanted, live) { "is being built" } else { "waits to be built" }
}

/// Says of a jail that is to start that it needs a build before, or puts it off until that is done.
pub fn weigh(
    judgement: Judgement,
    name: &JailName,
    desired: &Desired,
    live: &Live,
    options: &Options,
) -> Judgement {
    let Some(wanted) = desired.jails.get(name) else { return judgement };
    if judgement.action.as_ref().is_some_and(|action| action.as_before) {
        return judgement;
    }
    let Some(template) = unbuilt(wanted, live) else { return judgement };
    let judgement = if options.waits_for_layers {
        judgement.hold_back(name, format!("its template `{template}` {}", waits(wanted, live)), live)
    } else {
        let is_up = live.jails.get(name).is_some_and(|seen| runs(&seen.state));
        let how = if is_being_built(wanted, live) { "is being built" } else { "is built first" };
        let say = |action| say(action, &format!("its template `{template}` {how}"), is_up);
        Judgement { action: judgement.action.map(say), ..judgement }
    };
    Judgement { unbuilt: Some(template.to_owned()), ..judgement }
}

fn say(action: Action, reason: &str, is_up: bool) -> Action {
    let until = if is_up { ", and it runs on its old layers until then" } else { "" };
    let reason = format!("{reason}{until}");
    let reason = action.reason.map_or(reason.clone(), |other| format!("{other}; {reason}"));
    Action { reason: Some(reason), ..action }
}
