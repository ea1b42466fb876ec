//! Every case below `tests/diagnostics` is a config directory and the exact text that is printed
//! for it: the diagnostics, then what becomes of each jail. `STOCKADE_BLESS=1` rewrites the texts.
//!
//! A case is one file: `=== PATH` begins a file of the config directory, `=== expect` the text.
//! The directory is made afresh, since git keeps neither owners nor modes.

use std::fs;
use std::path::{Path, PathBuf};

use stockade::desired::{Desired, Paths};
use stockade::diagnostic;
use stockade::source;

const MARK: &str = "=== ";
const EXPECT: &str = "expect";

fn cases() -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/diagnostics");
    let entries = fs::read_dir(directory).expect("the cases are beside this file");
    let mut cases: Vec<PathBuf> = entries.map(|entry| entry.expect("a case is readable").path()).collect();
    cases.sort();
    cases
}

/// The files of a case, by path, and `expect` among them.
fn split(text: &str) -> Vec<(String, String)> {
    let mut files: Vec<(String, String)> = Vec::new();
    for line in text.split_inclusive('\n') {
        if let Some(name) = line.strip_prefix(MARK) {
            files.push((name.trim().to_owned(), String::new()));
        } else {
            let file = files.last_mut().expect("a case begins with the mark of a file");
            file.1.push_str(line);
        }
    }
    files
}

fn make(directory: &Path, files: &[(String, String)]) {
    fs::create_dir(directory.join("jails.d")).expect("the directory is fresh");
    for (name, text) in files.iter().filter(|(name, _)| name != EXPECT) {
        let path = directory.join(name);
        fs::create_dir_all(path.parent().expect("a file is in a directory")).expect("the directory is fresh");
        fs::write(path, text).expect("the directory is fresh");
    }
    secure(directory);
}

/// Modes as they are in /etc, whatever the umask of the tester is.
fn secure(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    let is_directory = path.is_dir();
    let mode = if is_directory { 0o755 } else { 0o644 };
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("the tester owns it");
    if is_directory {
        for entry in fs::read_dir(path).expect("the tester owns it") {
            secure(&entry.expect("the tester owns it").path());
        }
    }
}

fn outcome(config: &Path) -> String {
    let paths = Paths { config: config.to_owned(), ..Paths::default() };
    let (desired, found) = source::load(&paths);
    let text = format!("{}{}", diagnostic::render(&found, false), summary(&desired, found.is_empty()));
    text.replace(&format!("{}/", config.display()), "")
}

fn summary(desired: &Desired, first: bool) -> String {
    let fine = desired.jails.keys().map(|name| format!("{name}: fine"));
    let broken = desired.broken.iter().map(|(name, why)| format!("{name}: broken by {why}"));
    let incomplete = (!desired.complete).then(|| "incomplete".to_owned());
    let lines: Vec<String> = fine.chain(broken).chain(incomplete).collect();
    format!("{}{}\n", if first { "" } else { "\n" }, lines.join("\n"))
}

#[test]
fn every_case_prints_what_it_should() {
    let bless = std::env::var_os("STOCKADE_BLESS").is_some();
    let cases = cases();
    assert!(cases.len() >= 30, "only {} cases were found", cases.len());
    let mut wrong = Vec::new();
    for case in &cases {
        let text = fs::read_to_string(case).expect("a case is text");
        let files = split(&text);
        let directory = tempfile::tempdir().expect("there is room for a small directory");
        make(directory.path(), &files);
        let got = outcome(directory.path());
        let expect = files.iter().find(|(name, _)| name == EXPECT).map(|(_, text)| text.as_str());
        if expect == Some(got.as_str()) {
            continue;
        }
        if bless {
            let kept = text.split_once("=== expect\n").map_or(text.as_str(), |(kept, _)| kept);
            fs::write(case, format!("{kept}=== expect\n{got}")).expect("the cases can be written");
        }
        wrong.push(format!("{}:\n{got}", case.display()));
    }
    assert!(bless || wrong.is_empty(), "{} cases differ:\n\n{}", wrong.len(), wrong.join("\n"));
}

/// The commented example says what is true: without its comment signs it is a good file that sets
/// every key of the host.
#[test]
fn the_hosts_example_is_a_good_file() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("etc/stockade.toml");
    let text = fs::read_to_string(&file).expect("the example is part of the source");
    let key = |line: &str| {
        line.starts_with("#[")
            || line.starts_with('#') && line[1..].starts_with(char::is_lowercase) && line.contains(" = ")
    };
    let lines: Vec<&str> = text.lines().map(|line| if key(line) { &line[1..] } else { line }).collect();
    let (host, found) = stockade::definition::parse_host(&file, &lines.join("\n"));
    assert!(found.is_empty(), "{}", diagnostic::render(&found, false));
    assert!(host.bridges.contains_key("backend") && host.defaults.len() == 5 && host.enforce.len() == 3);
    for row in stockade::keys::HOST_KEYS {
        let leaf = row.leaf();
        let said = lines
            .iter()
            .any(|line| line.starts_with(&format!("{leaf} = ")) || line.starts_with(&format!("[{leaf}")));
        assert!(said, "etc/stockade.toml does not show {}", row.name);
    }
    let as_it_is = stockade::definition::parse_host(&file, &text);
    assert!(as_it_is.1.is_empty() && as_it_is.0.ids == host.ids, "the shown ids are the default");
}
