//! What is given to readers is true: every example and the host's own file are good, and the man
//! pages have every key and every verb. `STOCKADE_BLESS=1` rewrites the page's list of keys.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::CommandFactory;
use stockade::desired::Paths;
use stockade::{cli, diagnostic, keys, source};

/// Between these lines of stockade.toml(5) stands what `stockade man` prints.
const BEGIN: &str = ".\\\" keys: begin, made by `stockade man`\n";
const END: &str = ".\\\" keys: end\n";

fn top() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(top().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn entries(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).expect("the directory is part of the source");
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("readable").path()).collect();
    paths.sort();
    paths
}

/// Copies a tree with the modes it has in /etc: git keeps neither owners nor modes.
fn lay(from: &Path, to: &Path) {
    use std::os::unix::fs::PermissionsExt;
    if from.is_dir() {
        fs::create_dir(to).expect("the place is free");
        for entry in entries(from) {
            lay(&entry, &to.join(entry.file_name().expect("an entry has a name")));
        }
    } else {
        fs::copy(from, to).expect("there is room for a small file");
    }
    let mode =
        if from.is_dir() { 0o755 } else { fs::metadata(from).expect("it is there").permissions().mode() };
    fs::set_permissions(to, fs::Permissions::from_mode(mode & !0o022)).expect("the tester owns it");
}

/// The archives that a reader makes first, from the line that names them.
fn make_archives(config: &Path) {
    let templates = config.join("templates");
    for template in if templates.is_dir() { entries(&templates) } else { Vec::new() } {
        let text = fs::read_to_string(template.join("template.toml")).expect("a template has its file");
        let named = text.lines().find_map(|line| line.strip_prefix("tar = \"")?.strip_suffix('"'));
        if let Some(name) = named {
            fs::write(template.join(name), "").expect("the tester owns it");
        }
    }
}

#[test]
fn every_example_is_good() {
    let examples: Vec<PathBuf> =
        entries(&top().join("examples")).into_iter().filter(|path| path.is_dir()).collect();
    assert!(examples.len() >= 8, "only {} examples were found", examples.len());
    let index = read("examples/README.md");
    for example in &examples {
        let name = example.file_name().expect("an entry has a name").to_string_lossy();
        assert!(index.contains(&format!("| `{name}` |")), "examples/README.md does not list {name}");
        let room = tempfile::tempdir().expect("there is room for a small directory");
        let config = room.path().join("etc");
        lay(example, &config);
        make_archives(&config);
        let (desired, found) = source::load(&Paths { config, ..Paths::default() });
        assert!(found.is_empty(), "{name}:\n{}", diagnostic::render(&found, false));
        assert!(desired.complete && !desired.jails.is_empty(), "{name} has no jails");
    }
}

#[test]
fn the_hosts_file_is_good() {
    let room = tempfile::tempdir().expect("there is room for a small directory");
    let config = room.path().join("etc");
    fs::create_dir_all(config.join("jails.d")).expect("the directory is fresh");
    lay(&top().join("etc/stockade.toml"), &config.join("stockade.toml"));
    let (_, found) = source::load(&Paths { config, ..Paths::default() });
    assert!(found.is_empty(), "{}", diagnostic::render(&found, false));
}

#[test]
fn the_page_lists_the_keys_of_the_table() {
    let page = read("man/stockade.toml.5");
    let (before, rest) = page.split_once(BEGIN).expect("the page has the first mark");
    let (found, after) = rest.split_once(END).expect("the page has the second mark");
    if std::env::var_os("STOCKADE_BLESS").is_some() {
        let whole = [before, BEGIN, &keys::man(), END, after].concat();
        fs::write(top().join("man/stockade.toml.5"), whole).expect("the page can be written");
    } else {
        assert!(found == keys::man(), "man/stockade.toml.5 is out of date: run with STOCKADE_BLESS=1");
    }
}

/// Hidden verbs are for those who build stockade.
fn verbs(command: &clap::Command) -> impl Iterator<Item = &clap::Command> {
    command.get_subcommands().filter(|verb| !verb.is_hide_set())
}

#[test]
fn the_page_has_every_verb_and_option() {
    let page = read("man/stockade.8");
    let command = cli::Line::command();
    for verb in verbs(&command) {
        let name = verb.get_name();
        let item = page
            .lines()
            .any(|line| line == format!(".It Cm {name}") || line.starts_with(&format!(".It Cm {name} ")));
        assert!(item, "stockade(8) has no item for {name}");
        for inner in verb.get_subcommands() {
            let item = format!(".It Cm {name} {}", inner.get_name());
            assert!(page.contains(&item), "stockade(8) has no item for {name} {}", inner.get_name());
        }
    }
    let all = verbs(&command).chain([&command]).flat_map(clap::Command::get_arguments);
    for long in all.filter_map(clap::Arg::get_long) {
        let written = format!("Fl -{}", long.replace('-', "\\-"));
        let found = page.lines().any(|line| line.contains(&written));
        assert!(found, "stockade(8) does not have --{long}");
    }
}

#[test]
fn the_pages_are_clean_to_mandoc() {
    let must = std::env::var_os("STOCKADE_TEST_MUST_RUN").is_some();
    for page in ["man/stockade.8", "man/stockade.toml.5"] {
        let lint =
            Command::new("mandoc").args(["-T", "lint", "-W", "warning", page]).current_dir(top()).output();
        match lint {
            Ok(output) => {
                let said = String::from_utf8_lossy(&output.stdout);
                assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
            }
            Err(error) => {
                assert!(!must, "mandoc: {error}");
                eprintln!("skipped: there is no mandoc on this machine ({error})");
            }
        }
    }
}
