//! What the daemon has said already, so that a lasting trouble is one line and not one a minute.
//!
//! Pure: it gives the lines, the loop logs them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::jail::JailName;
use crate::log;

use super::PassReport;

/// A jail whose failure reads differently each time is heard of this often at most.
const FAILURE_QUIET: Duration = Duration::from_secs(10);

/// How many new diagnostics of one pass are logged; `stockade check` shows all.
const DIAGNOSTICS_MAX: usize = 100;

#[derive(Default)]
pub(super) struct Said {
    diagnostics: BTreeSet<String>,
    /// By jail; without a name, the failure of a whole pass.
    failures: BTreeMap<Option<JailName>, Failure>,
}

struct Failure {
    text: String,
    said: Instant,
    /// Different ones since then that were not logged.
    unsaid: u64,
}

/// One line for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Line {
    Info(Option<JailName>, String),
    Warn(Option<JailName>, String),
    Error(Option<JailName>, String),
}

impl Line {
    pub(super) fn log(&self) {
        match self {
            Line::Info(jail, text) => log::info(jail.as_ref(), text),
            Line::Warn(jail, text) => log::warn(jail.as_ref(), text),
            Line::Error(jail, text) => log::error(jail.as_ref(), text),
        }
    }
}

impl Said {
    /// What is new in a pass that came to its end.
    pub(super) fn report(&mut self, report: &PassReport, now: Instant) -> Vec<Line> {
        let mut lines = self.new_diagnostics(&report.diagnostics);
        for (name, text) in &report.failures {
            lines.extend(self.failure(Some(name), text, now));
        }
        lines.extend(self.recovered(report));
        lines
    }

    /// A pass that could not be made at all. What was said about jails still stands.
    pub(super) fn failed(&mut self, text: &str, now: Instant) -> Vec<Line> {
        self.failure(None, text, now).into_iter().collect()
    }

    fn new_diagnostics(&mut self, diagnostics: &[String]) -> Vec<Line> {
        let current: BTreeSet<String> = diagnostics.iter().cloned().collect();
        // In the order given, which is that of files and lines.
        let mut new: Vec<&String> =
            diagnostics.iter().filter(|text| !self.diagnostics.contains(*text)).collect();
        new.dedup();
        let mut lines: Vec<Line> =
            new.iter().take(DIAGNOSTICS_MAX).map(|text| Line::Warn(None, (*text).clone())).collect();
        if new.len() > DIAGNOSTICS_MAX {
            let more = new.len() - DIAGNOSTICS_MAX;
            lines.push(Line::Warn(None, format!("{more} more diagnostics, see `stockade check`")));
        }
        if current.is_empty() && !self.diagnostics.is_empty() {
            lines.push(Line::Info(None, "the definitions are without errors again".into()));
        }
        self.diagnostics = current;
        lines
    }

    fn failure(&mut self, jail: Option<&JailName>, text: &str, now: Instant) -> Option<Line> {
        let jail = jail.cloned();
        let mut others = String::new();
        if let Some(before) = self.failures.get_mut(&jail) {
            if before.text == text {
                return None;
            }
            if now.saturating_duration_since(before.said) < FAILURE_QUIET {
                before.unsaid += 1;
                return None;
            }
            if before.unsaid > 0 {
                others = format!(" (and {} others since the last line)", before.unsaid);
            }
        }
        self.failures.insert(jail.clone(), Failure { text: text.to_owned(), said: now, unsaid: 0 });
        Some(Line::Error(jail, format!("{text}{others}")))
    }

    /// Forgets the failures that a finished pass did not meet again.
    fn recovered(&mut self, report: &PassReport) -> Vec<Line> {
        let failing: BTreeSet<&JailName> = report.failures.iter().map(|(name, _)| name).collect();
        let gone = |jail: &Option<JailName>| jail.as_ref().is_none_or(|name| !failing.contains(name));
        let well: Vec<Option<JailName>> = self.failures.keys().filter(|jail| gone(jail)).cloned().collect();
        for jail in &well {
            self.failures.remove(jail);
        }
        well.into_iter().map(|jail| Line::Info(jail, "no failure any more".into())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> JailName {
        JailName::new(text).unwrap()
    }

    fn report(diagnostics: &[&str], failures: &[(&str, &str)]) -> PassReport {
        PassReport {
            diagnostics: diagnostics.iter().map(ToString::to_string).collect(),
            failures: failures.iter().map(|(jail, text)| (name(jail), (*text).into())).collect(),
            ..PassReport::default()
        }
    }

    #[test]
    fn each_trouble_is_said_once() {
        let (mut said, now) = (Said::default(), Instant::now());
        let warn = |text: &str| Line::Warn(None, text.into());
        let error = |jail: &str, text: &str| Line::Error(Some(name(jail)), text.into());
        for (diagnostics, failures, expect) in [
            (
                &["a:1:1: x"][..],
                &[("web", "no bridge")][..],
                vec![warn("a:1:1: x"), error("web", "no bridge")],
            ),
            (&["a:1:1: x"], &[("web", "no bridge")], vec![]),
            (&["a:1:1: x", "b:2:2: y"], &[("web", "no bridge")], vec![warn("b:2:2: y")]),
            (&["b:2:2: y"], &[], vec![Line::Info(Some(name("web")), "no failure any more".into())]),
            (&[], &[], vec![Line::Info(None, "the definitions are without errors again".into())]),
            (&["a:1:1: x"], &[("web", "no bridge")], vec![warn("a:1:1: x"), error("web", "no bridge")]),
        ] {
            assert_eq!(said.report(&report(diagnostics, failures), now), expect);
        }
    }

    #[test]
    fn a_failure_with_many_faces_is_not_a_flood() {
        let (mut said, now) = (Said::default(), Instant::now());
        let mut lines = Vec::new();
        for number in 0..25 {
            let text = format!("process {number} ended");
            lines.extend(said.report(&report(&[], &[("web", &text)]), now + Duration::from_secs(number)));
        }
        let expect = [
            "process 0 ended",
            "process 10 ended (and 9 others since the last line)",
            "process 20 ended (and 9 others since the last line)",
        ];
        assert_eq!(lines, expect.map(|text| Line::Error(Some(name("web")), text.into())));
    }

    #[test]
    fn a_failed_pass_forgets_nothing() {
        let (mut said, now) = (Said::default(), Instant::now());
        said.report(&report(&["a:1:1: x"], &[("web", "no bridge")]), now);
        assert_eq!(said.failed("read /etc: denied", now), [Line::Error(None, "read /etc: denied".into())]);
        assert_eq!(said.failed("read /etc: denied", now), []);
        let lines = said.report(&report(&["a:1:1: x"], &[("web", "no bridge")]), now);
        assert_eq!(lines, [Line::Info(None, "no failure any more".into())]);
    }

    #[test]
    fn a_thousand_diagnostics_are_cut() {
        let mut said = Said::default();
        let many: Vec<String> = (0..1_000).map(|number| format!("a:{number}:1: x")).collect();
        let report = PassReport { diagnostics: many, ..PassReport::default() };
        let lines = said.report(&report, Instant::now());
        assert_eq!(lines.len(), DIAGNOSTICS_MAX + 1);
        assert_eq!(
            lines[DIAGNOSTICS_MAX],
            Line::Warn(None, "900 more diagnostics, see `stockade check`".into())
        );
        assert_eq!(said.report(&report, Instant::now()), []);
    }
}
