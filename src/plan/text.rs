//! The plan as people and programs read it. Wording only.

use serde_json::{Value, json};

use super::{Action, ActionKind, Change, Plan, Postponed};
use crate::jail::JailName;
use crate::keys::Cost;

/// A longer value is cut here; `--json` has the whole.
const VALUE_CHARS_MAX: usize = 120;

const GREEN: &str = "\x1b[32m";
const YELLOW: &str = "\x1b[33m";
const RED: &str = "\x1b[31m";
const RESET: &str = "\x1b[0m";

impl Plan {
    /// The plan for a person, ending with a new line. `colour` adds colour to the signs; they
    /// mean the same without.
    pub fn text(&self, colour: bool) -> String {
        let mut blocks = vec![self.actions_text(colour), self.drift_text(colour)];
        blocks.push(block("Waiting for a restart:", self.postponed.iter().map(postponed_text)));
        blocks.push(block("Not started:", pairs(&self.notes)));
        blocks.push(block("Refused, and left as they are:", pairs(&self.refused)));
        blocks.push(self.count_text());
        blocks.retain(|block| !block.is_empty());
        blocks.join("\n")
    }

    fn actions_text(&self, colour: bool) -> String {
        let shown = self.actions.iter().filter(|action| !only_drift(action));
        shown.map(|action| entry(&head(action, colour), &lines(action))).collect()
    }

    fn drift_text(&self, colour: bool) -> String {
        let drifted = self.actions.iter().filter(|action| !action.drift.is_empty());
        block(
            "Changed outside stockade:",
            drifted.map(|action| entry(&head(action, colour), &change_lines(&action.drift))),
        )
    }

    fn count_text(&self) -> String {
        if self.is_empty() {
            return "No changes.\n".to_owned();
        }
        let count =
            |kinds: &[ActionKind]| self.actions.iter().filter(|action| kinds.contains(&action.kind)).count();
        let stops = match count(&[ActionKind::Stop]) {
            0 => String::new(),
            stops => format!(", {stops} to stop"),
        };
        format!(
            "Plan: {} to create, {} to change, {} to restart, {} to remove{stops}.\n",
            count(&[ActionKind::Create]),
            count(&[ActionKind::Update]),
            count(&[ActionKind::Restart, ActionKind::Rebuild]),
            count(&[ActionKind::Remove]),
        )
    }

    /// The plan for a program: one item a jail, `action` being what is done or `refused`,
    /// `postponed` or `wait` for jails left as they are. A jail may have several items.
    pub fn json(&self) -> Value {
        let actions = self.actions.iter().map(action_json);
        let postponed = self.postponed.iter().map(|late| {
            json!({ "name": late.name, "action": "postponed", "reason": late.reason,
                "changes": changes_json(&late.changes), "drift": changes_json(&late.drift) })
        });
        let notes = self
            .notes
            .iter()
            .map(|(name, reason)| json!({ "name": name, "action": "wait", "reason": reason }));
        let refused = self
            .refused
            .iter()
            .map(|(name, reason)| json!({ "name": name, "action": "refused", "reason": reason }));
        let items: Vec<Value> = actions.chain(postponed).chain(notes).chain(refused).collect();
        json!({ "schema": 1, "kind": "plan", "items": items })
    }
}

fn action_json(action: &Action) -> Value {
    json!({ "name": action.name, "action": kind_word(action.kind), "reason": action.reason,
        "changes": changes_json(&action.changes), "drift": changes_json(&action.drift),
        "start_after": action.start_after, "stop_after": action.stop_after })
}

fn changes_json(changes: &[Change]) -> Value {
    let one = |c: &Change| json!({ "key": c.key, "from": c.from, "to": c.to, "cost": c.cost, });
    changes.iter().map(one).collect()
}

fn kind_word(kind: ActionKind) -> &'static str {
    match kind {
        ActionKind::Create => "create",
        ActionKind::Update => "update",
        ActionKind::Restart => "restart",
        ActionKind::Rebuild => "rebuild",
        ActionKind::Stop => "stop",
        ActionKind::Remove => "remove",
    }
}

/// Such an action has its line in the drift's block alone.
fn only_drift(action: &Action) -> bool {
    let repairs = matches!(action.kind, ActionKind::Update | ActionKind::Restart);
    repairs && !action.drift.is_empty() && action.changes.is_empty() && action.reason.is_none()
}

fn head(action: &Action, colour: bool) -> (String, usize) {
    let (sign, paint) = match action.kind {
        ActionKind::Create => ("+", GREEN),
        ActionKind::Update => ("~", YELLOW),
        ActionKind::Restart | ActionKind::Rebuild => ("-/+", RED),
        ActionKind::Stop | ActionKind::Remove => ("-", RED),
    };
    let width = sign.len() + 1 + action.name.as_str().len();
    let name = &action.name;
    let text = if colour { format!("{paint}{sign}{RESET} {name}") } else { format!("{sign} {name}") };
    (text, width)
}

fn lines(action: &Action) -> Vec<String> {
    let reason = action.reason.as_deref();
    match action.kind {
        ActionKind::Remove => vec!["(stopped, data kept)".to_owned()],
        ActionKind::Stop => vec![format!("(stopped: {})", reason.unwrap_or("to be started later"))],
        _ => {
            let mut lines = change_lines(&action.changes);
            lines.extend(reason.map(clean));
            lines
        }
    }
}

/// The changes of one jail, their costs below each other.
fn change_lines(changes: &[Change]) -> Vec<String> {
    let left: Vec<String> = changes.iter().map(change_text).collect();
    let width = left.iter().map(|text| text.chars().count()).max().unwrap_or(0);
    let both = left.iter().zip(changes);
    both.map(|(text, change)| format!("{text:width$}  {}", cost_word(change))).collect()
}

fn change_text(change: &Change) -> String {
    let nothing = if change.key.starts_with('/') { "(absent)" } else { "(unset)" };
    let side = |side: &Option<String>| side.as_deref().map_or_else(|| nothing.to_owned(), value);
    format!("{} {} -> {}", clean(&change.key), side(&change.from), side(&change.to))
}

/// A value may come out of a jail: nothing in it must reach the terminal as a command.
fn clean(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    for letter in text.chars() {
        if letter.is_control() {
            clean.extend(letter.escape_default());
        } else {
            clean.push(letter);
        }
    }
    clean
}

fn value(text: &str) -> String {
    let mut clean = clean(text);
    if let Some((at, _)) = clean.char_indices().nth(VALUE_CHARS_MAX) {
        clean.truncate(at);
        clean.push('…');
    }
    clean
}

/// What a change costs, and for what touches nothing running, when it counts.
fn cost_word(change: &Change) -> &'static str {
    match change.cost {
        Cost::Live => "live",
        Cost::Reload => "reload",
        Cost::Restart => "restart",
        Cost::Rebuild => "rebuild",
        Cost::None => when(&change.key),
    }
}

fn when(key: &str) -> &'static str {
    const STOP_KEYS: &[&str] = &["prestop", "stop", "poststop", "release", "stop_timeout", "stop_signal"];
    let table = key.split('.').next().unwrap_or(key);
    match key.strip_prefix("exec.") {
        _ if key.starts_with('/') => "written only",
        // The jail as a whole; it comes down, or is down and is cleared away.
        None if matches!(key, "state" | "keeper" | "record") => "stop",
        _ if matches!(table, "depend" | "enabled" | "restart") => "at once",
        Some(part) if STOP_KEYS.contains(&part) => "next stop",
        None if key == "root.on_stop" => "next stop",
        _ => "next start",
    }
}

fn postponed_text(late: &Postponed) -> String {
    let mut lines = change_lines(&late.changes);
    lines.extend(change_lines(&late.drift));
    lines.push(format!("({})", late.reason));
    entry(&(late.name.to_string(), late.name.as_str().len()), &lines)
}

fn pairs(pairs: &[(JailName, String)]) -> impl Iterator<Item = String> {
    pairs.iter().map(|(name, reason)| entry(&(name.to_string(), name.as_str().len()), &[clean(reason)]))
}

/// A heading with its entries below, each line indented; nothing without entries.
fn block(heading: &str, entries: impl Iterator<Item = String>) -> String {
    let mut text = String::new();
    for line in entries.collect::<String>().lines() {
        if text.is_empty() {
            text = format!("{heading}\n");
        }
        text.extend(["  ", line, "\n"]);
    }
    text
}

/// One jail: its head, and its lines below each other. The head comes with its width.
fn entry((head, width): &(String, usize), lines: &[String]) -> String {
    let mut text = head.clone();
    for (at, line) in lines.iter().enumerate() {
        if at > 0 {
            text += "\n";
            text += &" ".repeat(*width);
        }
        text += "  ";
        text += line;
    }
    text + "\n"
}
