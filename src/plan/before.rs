//! A jail that has ended, where what is wanted of it now cannot be: it runs again as it did before,
//! by the record of its last start.

use super::judge::{Judgement, runs};
use super::{Action, Options, layers};
use crate::desired::{Desired, DesiredJail, DesiredRoot, Layer, LayerSource};
use crate::jail::{Jail, JailName, Restart};
use crate::live::{JailState, Live, LiveJail, Record};

/// The keys and layers of a start. What its rendered files hold is not in the record.
pub fn started(record: &Record) -> Result<DesiredJail, String> {
    let layer = |id: &String| Layer { id: id.clone(), source: LayerSource::Built };
    let root = DesiredRoot {
        layers: record.layers.iter().map(layer).collect(),
        host_usr: record.host_usr,
        files: Vec::new(),
        etc: record.etc.clone(),
    };
    let jail = Jail::from_settings(&record.name, &record.settings)?.into();
    Ok(DesiredJail { file: record.file.clone(), settings: record.settings.clone(), jail, root })
}

/// The restart policy in force: the file's, or where that has errors the last start's.
pub fn restart_of(name: &JailName, record: &Record, desired: &Desired) -> Option<Restart> {
    match desired.jails.get(name) {
        Some(wanted) => Some(wanted.jail.restart.clone()),
        None if desired.broken.contains_key(name) && !record.is_throw_away() => {
            started(record).ok().map(|before| before.jail.restart)
        }
        None => None,
    }
}

fn is_there(record: &Record, live: &Live) -> bool {
    record.layers.iter().all(|id| live.layers.contains(id))
}

/// The last good definition of a jail whose file has errors by now, if it is down and can run by it.
pub fn last_good(seen: &LiveJail, live: &Live) -> Option<DesiredJail> {
    let record = seen.record.as_ref().filter(|record| !record.is_throw_away())?;
    let may_start = !runs(&seen.state) && !seen.held && is_there(record, live);
    if may_start { started(record).ok() } else { None }
}

/// What was found for such a jail; `why` is what is wrong.
pub fn by_last_good(judgement: Judgement, why: &str) -> Judgement {
    let is_told = judgement.action.is_some() || judgement.note.is_some();
    Judgement {
        action: judgement.action.map(|action| again(action, format!("as it ran before: {why}"))),
        note: judgement.note.map(|note| format!("{note}; {why}")),
        refused: judgement.refused.or_else(|| (!is_told).then(|| why.to_owned())),
        ..judgement
    }
}

/// Whether a jail that has ended is to run again as it did before: for as long as what it is to lie
/// on now waits to be built, which may take long, or never come to a good end.
pub fn waits_for_layers(wanted: &DesiredJail, seen: &LiveJail, live: &Live, options: &Options) -> bool {
    let has_layers = |record: &Record| !record.layers.is_empty() && is_there(record, live);
    options.waits_for_layers
        && matches!(seen.state, JailState::Exited(_))
        && seen.record.as_ref().is_some_and(has_layers)
        && layers::unbuilt(wanted, live).is_some()
}

/// What was found for such a jail.
pub fn by_old_layers(judgement: Judgement, wanted: &DesiredJail, live: &Live) -> Judgement {
    let template = layers::unbuilt(wanted, live).unwrap_or_default();
    let reason = format!("on its old layers: its template `{template}` {}", layers::waits(wanted, live));
    let action = judgement.action.map(|action| again(action, reason));
    Judgement { action, unbuilt: Some(template.to_owned()), ..judgement }
}

fn again(action: Action, reason: String) -> Action {
    if action.starts() { Action { as_before: true, reason: Some(reason), ..action } } else { action }
}
