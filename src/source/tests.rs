use super::*;
use std::os::unix::fs::{PermissionsExt, symlink};

const GOOD: &str = "template = \"host\"\nexec.command = [\"/bin/true\"]\n";

/// A config directory with one good jail in it.
fn config() -> (tempfile::TempDir, Paths) {
    let directory = tempfile::tempdir().expect("there is room for a small directory");
    let jails = directory.path().join("jails.d");
    fs::create_dir(&jails).expect("the directory is fresh");
    write(&jails.join("good.toml"), GOOD.as_bytes());
    mode(&jails, 0o755);
    let paths = Paths { config: directory.path().to_owned(), ..Paths::default() };
    (directory, paths)
}

fn write(path: &Path, bytes: &[u8]) {
    fs::write(path, bytes).expect("the directory is ours");
    mode(path, 0o644);
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("the file is ours");
}

/// Puts something in the place of jails.d/web.toml and checks that it is refused with `why`.
fn check_refused(make: impl Fn(&Path), why: &str) {
    let (directory, paths) = config();
    let file = directory.path().join("jails.d/web.toml");
    make(&file);
    let (desired, found) = load(&paths);
    let expect = format!("{}: {why}", file.display());
    assert!(found.iter().any(|found| found.summary() == expect), "{expect}\n{found:?}");
    let broken: Vec<&str> = desired.broken.keys().map(JailName::as_str).collect();
    assert_eq!(broken, ["web"], "{why}");
    assert!(desired.complete && desired.jails.len() == 1, "{why}");
}

#[test]
fn what_root_alone_did_not_write_is_refused_by_name() {
    check_refused(
        |file| {
            write(file, b"");
            mode(file, 0o664);
        },
        "others than root can write it (mode 0664)",
    );
    check_refused(
        |file| {
            write(file, b"");
            mode(file, 0o646);
        },
        "others than root can write it (mode 0646)",
    );
    check_refused(|file| symlink("good.toml", file).expect("the directory is ours"), "it is a symbolic link");
    check_refused(|file| fs::create_dir(file).expect("the directory is ours"), "it is a directory");
    check_refused(|file| write(file, b"a = 1\n\xff"), "it is not UTF-8 from line 2 on");
    check_refused(|file| write(file, &vec![b'#'; 1_048_577]), "it is larger than 1048576 bytes");
    check_refused(
        |file| nix::unistd::mkfifo(file, nix::sys::stat::Mode::S_IRUSR).expect("the directory is ours"),
        "it is a FIFO",
    );
    check_refused(
        |file| drop(std::os::unix::net::UnixListener::bind(file).expect("a free path")),
        "it is a socket",
    );
    if nix::unistd::geteuid().is_root() {
        let give = |file: &Path| {
            write(file, GOOD.as_bytes());
            std::os::unix::fs::chown(file, Some(1234), None).expect("root may give files away");
        };
        check_refused(give, "it belongs to user 1234, not to root");
    }
}

#[test]
fn what_cannot_be_listed_is_incomplete() {
    let absent = Paths { config: "/no/such/directory".into(), ..Paths::default() };
    let (desired, found) = load(&absent);
    assert!(!desired.complete && diagnostic_count(&found) == 1);
    let (directory, paths) = config();
    mode(&directory.path().join("jails.d"), 0o777);
    let (desired, found) = load(&paths);
    assert!(!desired.complete && desired.jails.is_empty() && diagnostic_count(&found) == 1, "{found:?}");
    let (directory, paths) = config();
    fs::remove_dir_all(directory.path().join("jails.d")).expect("the directory is ours");
    assert!(!load(&paths).0.complete);
}

fn diagnostic_count(found: &[Diagnostic]) -> usize {
    found.iter().filter(|found| found.is_error()).count()
}

#[test]
fn a_refused_host_file_breaks_every_jail() {
    let (directory, paths) = config();
    symlink("x", directory.path().join("stockade.toml")).expect("the directory is ours");
    let (desired, found) = load(&paths);
    assert!(desired.jails.is_empty() && desired.broken.len() == 1 && !desired.complete, "{found:?}");
}

#[test]
fn jails_d_may_be_a_link_to_a_directory() {
    let (directory, paths) = config();
    let jails = directory.path().join("jails.d");
    fs::rename(&jails, directory.path().join("v1")).expect("the directory is ours");
    symlink("v1", &jails).expect("the directory is ours");
    let (desired, found) = load(&paths);
    assert!(desired.complete && desired.jails.len() == 1, "{found:?}");
}

#[test]
fn a_templates_tree_is_read_and_guarded() {
    let (directory, paths) = config();
    let top = directory.path().join("templates/web");
    fs::create_dir_all(top.join("files/etc")).expect("the directory is fresh");
    for made in ["templates", "templates/web", "templates/web/files", "templates/web/files/etc"] {
        mode(&directory.path().join(made), 0o755);
    }
    write(&top.join("template.toml"), b"base = { host = true }\n");
    write(&top.join("files/etc/a.tera"), b"{{ name }}");
    write(&top.join("files/etc/b"), b"plain");
    symlink("b", top.join("files/etc/c")).expect("the directory is ours");
    let texts = read(&paths);
    let shown: Vec<(String, bool)> = texts.templates[0]
        .entries
        .iter()
        .map(|entry| (entry.path.display().to_string(), entry.text.is_some()))
        .collect();
    let expect = [
        ("files", false),
        ("files/etc", false),
        ("files/etc/a.tera", true),
        ("files/etc/b", false),
        ("files/etc/c", false),
    ];
    assert_eq!(shown, expect.map(|(path, text)| (path.to_owned(), text)));
    mode(&top.join("files/etc/b"), 0o666);
    let texts = read(&paths);
    assert!(texts.templates.is_empty() && texts.broken_templates["web"].contains("files/etc/b"));
}

#[test]
fn a_file_to_check_takes_the_place_of_its_namesake() {
    let (directory, paths) = config();
    let other = directory.path().join("good.toml");
    write(&other, b"template = 3\n");
    mode(&other, 0o666);
    let (desired, found) = load_with(&paths, std::slice::from_ref(&other));
    assert_eq!(desired.broken.len(), 1);
    assert!(found.iter().all(|found| found.file == other) && !found.is_empty());
}
