//! What fuzzers call: everything that reads texts or bytes of others, each by one function that
//! panics when a promise is broken. `fuzz/` searches for such inputs; the tests here take what it
//! has found before, and variations of it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::definition;
use crate::desired::{Desired, Layer, LayerSource};
use crate::diagnostic::{self, Diagnostic};
use crate::jail::JailName;
use crate::journal::exits::ExitRecord;
use crate::keeper::{Answer, Hello, Word};
use crate::live::{JailState, Live, LiveJail, Record, Restarts};
use crate::plan::{self, Options};
use crate::resolve::{self, Input};
use crate::root::layers;
use crate::template::{self, EntryKind, Template, TemplateEntry};
use crate::{cli, expression, init, limits, security, spec, sys};

pub type Target = fn(&[u8]);

pub const TARGETS: &[(&str, Target)] = &[
    ("plan", plan),
    ("template", template),
    ("expression", expression),
    ("archive", archive),
    ("kernel", kernel),
    ("state", state),
    ("protocol", protocol),
    ("since", since),
];

/// Between the files that one input stands for.
const NEXT_FILE: char = '\u{1}';
const NAMES: [&str; 3] = ["web", "db", "mail"];
/// Of a moment and of a clock that do not matter.
const NOW_MS: u64 = 1_700_000_000_000;

fn parts(data: &[u8]) -> impl Iterator<Item = &str> {
    std::str::from_utf8(data).unwrap_or_default().split(NEXT_FILE)
}

/// stockade.toml, three definitions as they were, and three as they are.
fn plan(data: &[u8]) {
    let mut files = parts(data);
    let host = files.next().unwrap_or_default();
    let mut texts = [""; 2 * NAMES.len()];
    texts.iter_mut().zip(files).for_each(|(text, file)| *text = file);
    let (before, after) = texts.split_at(NAMES.len());
    let live = carry_out(&desired(host, before, None), &Live { now_ms: NOW_MS, ..Live::default() });
    carry_out(&desired(host, after, None), &live);
}

fn desired(host: &str, texts: &[&str], template: Option<Template>) -> Desired {
    let (host, diagnostics) = definition::parse_host(Path::new("stockade.toml"), host);
    let mut input = Input { host, diagnostics, complete: true, ..Input::default() };
    input.templates.insert(template::HOST.to_owned(), Template::host(String::new()));
    input.templates.extend(template.map(|template| ("page".to_owned(), template)));
    for (name, text) in NAMES.iter().zip(texts).filter(|(_, text)| !text.is_empty()) {
        let file = format!("{name}.toml");
        let (definition, found) = definition::parse(Path::new(&file), text);
        input.definitions.extend(definition);
        input.diagnostics.extend(found);
    }
    let (desired, found) = resolve::resolve(input);
    shown(&found);
    assert!(desired.broken.is_empty() || diagnostic::has_errors(&found), "broken without an error");
    desired
}

fn shown(found: &[Diagnostic]) {
    diagnostic::render(found, false);
    for one in found {
        assert!(!one.summary().is_empty() && !one.to_json().is_null());
    }
}

/// Makes the plan, and shows that nothing is left to plan when it is carried out.
fn carry_out(desired: &Desired, live: &Live) -> Live {
    let made = plan::plan(desired, live, &Options::default());
    assert!(!made.text(false).is_empty() && made.json().is_object());
    let after = plan::simulate(&made, live, desired);
    let again = plan::plan(desired, &after, &Options::default());
    assert!(again.is_empty(), "{}", again.text(false));
    after
}

/// template.toml and two texts that it renders, in a jail.
fn template(data: &[u8]) {
    let mut files = parts(data);
    let text = files.next().unwrap_or_default();
    let entry = |path: &str, text: Option<&str>| TemplateEntry {
        path: path.into(),
        kind: EntryKind::File,
        mode: 0o644,
        text: text.map(str::to_owned),
        ..TemplateEntry::default()
    };
    let entries = [
        entry("page.tera", files.next()),
        entry("files/etc/page.tera", files.next()),
        entry("files/plain", None),
    ];
    let (template, found) = template::parse(Path::new("templates/page/template.toml"), text, &entries);
    shown(&found);
    assert!(template.is_some() || diagnostic::has_errors(&found), "refused without an error");
    let jail = "template = \"page\"\n[exec]\ncommand = [\"true\"]\n[vars]\nword = \"x\"\nlist = [1, 2]\n";
    carry_out(&desired("", &[jail], template), &Live::default());
}

fn expression(data: &[u8]) {
    let text = std::str::from_utf8(data).unwrap_or_default();
    let variables = json!({ "name": "web", "vars": { "workers": 2, "list": ["a", "b"], "flag": true } });
    match expression::render_at(text, &variables) {
        Ok(rendered) if !expression::has_expression(text) => assert_eq!(rendered, text),
        Ok(_) | Err(_) => {}
    }
}

/// An archive of any format, as a template's base. Whatever is in it stays below the layer.
fn archive(data: &[u8]) {
    let place = Scratch::new();
    let path = place.0.join("base");
    std::fs::write(&path, data).expect("an archive");
    let state = place.0.join("state");
    std::fs::create_dir_all(state.join("layers")).expect("a directory");
    let layer = Layer {
        id: format!("sha256-{:064}", 0),
        source: LayerSource::Tar { path, sha256: None, kept: crate::desired::Kept::default() },
    };
    // That it is refused is the usual end.
    let run: layers::Runner<'_> = &|_, _, _| anyhow::bail!("there are no lines to run");
    let _ = layers::ensure(layers::Site { state: &state, progress: &|_| (), run }, &layer);
    let names = std::fs::read_dir(&place.0).expect("a directory").count();
    assert_eq!(names, 2, "something was written beside the layer");
}

/// A directory of one input's own.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("stockade-fuzzing-{}", std::process::id()));
        std::fs::create_dir(&path).expect("a directory of this process alone");
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // A layer's directories can be such that nobody but root may enter them.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Texts of /proc and of cgroups, and the passwd(5) and group(5) of a jail.
fn kernel(data: &[u8]) {
    let mut files = parts(data);
    let (first, second) = (files.next().unwrap_or_default(), files.next().unwrap_or_default());
    // Refused or not, it comes back.
    let _ = limits::mounts::parse(first, second);
    let _ = sys::process::parse_stat(first.as_bytes());
    let _ = limits::value::bytes(first);
    let _ = limits::value::field(first, second);
    let _ = security::passwd::identity(second, first, first);
    if let Some(cpus) = limits::value::cpus(first) {
        let list: Vec<String> = cpus.iter().map(ToString::to_string).collect();
        assert_eq!(limits::value::cpus(&list.join(",")), Some(cpus));
    }
}

/// Records, ends and counts of restarts, and the plan that is made upon them.
fn state(data: &[u8]) {
    let mut files = parts(data);
    let record: Option<Record> = files.next().and_then(|text| serde_json::from_str(text).ok());
    let exit: Option<ExitRecord> = files.next().and_then(|text| serde_json::from_str(text).ok());
    let restarts: Option<Restarts> = files.next().and_then(|text| serde_json::from_str(text).ok());
    let Some(record) = record else { return };
    let text = serde_json::to_vec(&record).expect("a record");
    assert_eq!(serde_json::from_slice::<Record>(&text).expect("its own text"), record);
    let name = JailName::new(NAMES[0]).expect("a name");
    let state = exit.map_or(JailState::Up, |exit| JailState::Exited(exit.exit));
    let jail = LiveJail {
        state,
        record: Some(record),
        restarts: restarts.unwrap_or_default(),
        ..LiveJail::default()
    };
    let live = Live { jails: BTreeMap::from([(name, jail)]), now_ms: NOW_MS, ..Live::default() };
    carry_out(&desired("", &["template = \"host\"\nexec.command = [\"true\"]\n"], None), &live);
    carry_out(&desired("", &[], None), &live);
}

/// What starter, keeper and init tell each other: what is understood is said again in the same way.
fn protocol(data: &[u8]) {
    again::<Hello>(data);
    again::<Word>(data);
    again::<Answer>(data);
    again::<init::Order>(data);
    again::<init::Report>(data);
    again::<spec::Spec>(data);
}

fn again<T: serde::Serialize + serde::de::DeserializeOwned>(data: &[u8]) {
    if let Ok(message) = serde_json::from_slice::<T>(data) {
        let once = serde_json::to_value(&message).expect("a message");
        let read: T = serde_json::from_value(once.clone()).expect("its own text");
        assert_eq!(serde_json::to_value(&read).expect("a message"), once);
    }
}

fn since(data: &[u8]) {
    let text = std::str::from_utf8(data).unwrap_or_default();
    let now = jiff::Timestamp::from_millisecond(NOW_MS.cast_signed()).expect("a moment");
    if let Ok(stamp) = cli::logs::moment(text, now) {
        assert!(stamp.ends_with('Z'), "{stamp}");
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    /// Of each input in the corpus.
    const VARIATIONS: u64 = 40;

    /// xorshift64*: the same variations each time.
    struct Dice(u64);

    impl Dice {
        fn below(&mut self, limit: usize) -> usize {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            let high = self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33;
            usize::try_from(high).expect("31 bits") % limit.max(1)
        }
    }

    /// A byte changed, a piece doubled, the rest cut off.
    fn vary(input: &[u8], dice: &mut Dice) -> Vec<u8> {
        let mut varied = input.to_vec();
        for _ in 0..=dice.below(3) {
            let at = dice.below(varied.len());
            match dice.below(4) {
                0 => varied.truncate(at),
                1 => {
                    let piece = varied[at..(at + dice.below(16)).min(varied.len())].to_vec();
                    varied.splice(at..at, piece);
                }
                _ if at < varied.len() => varied[at] ^= 1 << dice.below(8),
                _ => {}
            }
        }
        varied
    }

    #[test]
    fn what_fuzzing_has_found_before_is_no_surprise() {
        for (name, target) in TARGETS {
            let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
            let entries = std::fs::read_dir(&corpus).expect("a corpus for each target");
            let mut files: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
            files.sort();
            assert!(!files.is_empty(), "{name} has no corpus");
            for (number, file) in (1..).zip(&files) {
                let input = std::fs::read(file).expect("an input");
                target(&input);
                let mut dice = Dice(number);
                (0..VARIATIONS).for_each(|_| target(&vary(&input, &mut dice)));
            }
        }
    }

    #[test]
    fn every_corpus_has_a_target() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
        for entry in std::fs::read_dir(corpus).expect("corpora") {
            let name = entry.expect("an entry").file_name();
            assert!(TARGETS.iter().any(|(known, _)| name == *known), "{}", name.display());
        }
    }

    #[test]
    fn the_separator_is_no_text() {
        let value: Value = Value::from(NEXT_FILE.to_string());
        assert!(definition::parse(Path::new("web.toml"), &format!("a = {value}{NEXT_FILE}")).1.len() == 1);
    }
}
