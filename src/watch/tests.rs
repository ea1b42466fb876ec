//! The doorbell with real files, real editors and a real inotify queue.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::{Command, Stdio};
use std::sync::mpsc;

use super::*;

/// Long enough for a loaded machine; only a test that fails waits for it.
const PATIENCE: Duration = Duration::from_secs(20);

/// How many files overflow the queue: the kernel holds fs.inotify.max_queued_events, 16,384.
const FLOOD_FILES: usize = 20_000;

const OLD: &str = "enabled = true\n";
const NEW: &str = "enabled = false\n";

/// A configuration below a directory of its own, with a doorbell on it.
struct Rig {
    base: PathBuf,
    /// Each ring, with `jails.d/web.toml` as whoever hears it would read it.
    rings: mpsc::Receiver<(Ring, String)>,
    hung: Instant,
    _bell: Doorbell,
    _dir: tempfile::TempDir,
}

fn hang(prepare: impl FnOnce(&Path)) -> Rig {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().canonicalize().unwrap();
    prepare(&base);
    let places = Places { config: base.join("etc"), exits: base.join("exits") };
    let file = places.config.join("jails.d/web.toml");
    let (tell, rings) = mpsc::channel();
    let ring = move |ring| {
        // The test may be over before its last ring.
        let _ = tell.send((ring, fs::read_to_string(&file).unwrap_or_default()));
    };
    let bell = Doorbell::hang(places, ring).unwrap();
    Rig { base, rings, hung: Instant::now(), _bell: bell, _dir: dir }
}

fn usual(base: &Path) {
    for name in ["etc/jails.d", "etc/templates/web/files", "exits", "elsewhere"] {
        fs::create_dir_all(base.join(name)).unwrap();
    }
    fs::write(base.join("etc/jails.d/web.toml"), OLD).unwrap();
}

impl Rig {
    /// Waits for a ring after which the file reads `expect`, and checks that there was no ring
    /// without the quiet before it.
    fn hears(&self, expect: &str) {
        let mut count = 0;
        loop {
            let (ring, text) = self.rings.recv_timeout(PATIENCE).expect("the doorbell rings");
            assert_eq!(ring, Ring::Changed);
            count += 1;
            if text == expect {
                break;
            }
        }
        let most = self.hung.elapsed().as_millis() / QUIET.as_millis();
        assert!(count <= most, "{count} rings where {most} quiet moments fit");
    }
}

/// Runs a shell line in the base directory; false when its program is not installed.
fn run(rig: &Rig, program: &str, line: &str) -> bool {
    if !Command::new("sh")
        .args(["-c", &format!("command -v {program} >/dev/null")])
        .status()
        .unwrap()
        .success()
    {
        eprintln!("skipped: {program} is not installed");
        return false;
    }
    let mut shell = Command::new("sh");
    shell.args(["-ec", line]).current_dir(&rig.base).stdin(Stdio::null()).stdout(Stdio::null());
    shell.env("TERM", "xterm").env("HOME", &rig.base);
    assert!(shell.status().unwrap().success(), "{line}");
    true
}

#[test]
fn editors_and_tools_ring() {
    let git = "git -c init.defaultBranch=main init -q etc && cd etc && git config user.email a@b && \
        git config user.name a && git add . && git commit -qm 1 && echo 'enabled = false' > jails.d/web.toml && \
        git commit -qam 2 && git checkout -q HEAD~1";
    for (program, before, line) in [
        ("vim", "", "vim -u NONE -N -es -c 's/true/false/' -c wq etc/jails.d/web.toml"),
        (
            "vim",
            "",
            "vim -u NONE -N -es -c 'set backup writebackup backupcopy=no' -c 's/true/false/' -c wq etc/jails.d/web.toml",
        ),
        ("sed", "", "sed -i s/true/false/ etc/jails.d/web.toml"),
        (
            "rsync",
            "mkdir src && echo 'enabled = false' > src/web.toml",
            "rsync -rc --delete src/ etc/jails.d/",
        ),
        ("git", git, "cd etc && git checkout -q main"),
        ("mv", "echo 'enabled = false' > etc/jails.d/.new", "mv etc/jails.d/.new etc/jails.d/web.toml"),
        ("cp", "echo 'enabled = false' > new", "cp new etc/jails.d/web.toml"),
        ("ln", "echo 'enabled = false' > new", "ln -sfn ../../new etc/jails.d/web.toml"),
        // nano's own keys: to the end of the line, a word back and away, save, leave.
        (
            "nano",
            "",
            r"(sleep 1; printf '\005\010\010\010\010false'; printf '\017\r'; sleep 1; printf '\030'; sleep 1) | script -qec 'nano -I etc/jails.d/web.toml' /dev/null >/dev/null",
        ),
    ] {
        let rig = hang(|base| {
            usual(base);
            let status = Command::new("sh").args(["-ec", before]).current_dir(base).status().unwrap();
            assert!(status.success(), "{before}");
            assert_eq!(fs::read_to_string(base.join("etc/jails.d/web.toml")).unwrap(), OLD);
        });
        if run(&rig, program, line) {
            rig.hears(NEW);
        }
    }
}

#[test]
fn directories_may_come_go_and_be_swapped() {
    for (what, before, line) in [
        (
            "jails.d removed and made again",
            "",
            "rm -r etc/jails.d; mkdir etc/jails.d; echo 'enabled = false' > etc/jails.d/web.toml",
        ),
        (
            "the whole directory replaced by rename",
            "cp -r etc new; echo 'enabled = false' > new/jails.d/web.toml",
            "mv etc old; mv new etc",
        ),
        (
            "a link swapped to another directory",
            "mv etc v1; cp -r v1 v2; echo 'enabled = false' > v2/jails.d/web.toml; ln -s v1 etc",
            "ln -s v2 next; mv -T next etc",
        ),
        (
            "not there at the start",
            "mv etc later; echo 'enabled = false' > later/jails.d/web.toml",
            "mv later etc",
        ),
    ] {
        let rig = hang(|base| {
            usual(base);
            let status = Command::new("sh").args(["-ec", before]).current_dir(base).status().unwrap();
            assert!(status.success(), "{what}");
        });
        assert!(run(&rig, "sh", line));
        rig.hears(NEW);
        // What has taken its place is watched as well as the first was.
        fs::write(rig.base.join("etc/jails.d/web.toml"), "persist = true\n").unwrap();
        rig.hears("persist = true\n");
    }
}

#[test]
fn a_directory_that_is_away_for_long_is_heard_to_come_back() {
    let rig = hang(usual);
    fs::remove_dir_all(rig.base.join("etc")).unwrap();
    rig.hears("");
    usual(&rig.base);
    rig.hears(OLD);
}

#[test]
fn templates_ring_at_any_depth() {
    let rig = hang(|base| {
        usual(base);
        fs::create_dir(base.join("tree")).unwrap();
        symlink(base.join("tree"), base.join("etc/templates/linked")).unwrap();
    });
    for name in ["etc/templates/web/files/etc/nginx", "tree/files/etc", "etc/templates/new/files"] {
        fs::create_dir_all(rig.base.join(name)).unwrap();
        rig.hears(OLD);
        fs::write(rig.base.join(name).join("a.conf"), "x").unwrap();
        rig.hears(OLD);
    }
}

#[test]
fn reading_and_other_places_do_not_ring() {
    let rig = hang(usual);
    for _ in 0..3 {
        fs::read_to_string(rig.base.join("etc/jails.d/web.toml")).unwrap();
        fs::read_dir(rig.base.join("etc/jails.d")).unwrap().count();
        fs::write(rig.base.join("elsewhere/file"), "x").unwrap();
    }
    // Events come in their order: had one of those counted, its ring would come before this one.
    let exit = rig.base.join("exits/.web");
    fs::write(&exit, "").unwrap();
    fs::rename(&exit, rig.base.join("exits/web")).unwrap();
    assert_eq!(rig.rings.recv_timeout(PATIENCE).unwrap().0, Ring::Exited);
    fs::remove_file(rig.base.join("exits/web")).unwrap();
    assert_eq!(rig.rings.recv_timeout(QUIET * 3), Err(mpsc::RecvTimeoutError::Timeout));
}

#[test]
fn it_rings_while_it_never_gets_quiet() {
    let rig = hang(usual);
    let begun = Instant::now();
    loop {
        fs::write(rig.base.join("etc/jails.d/web.toml"), OLD).unwrap();
        if rig.rings.recv_timeout(Duration::from_millis(10)).is_ok() {
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "endless writing keeps it from ringing");
    }
}

#[test]
fn an_overflowing_queue_rings() {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().canonicalize().unwrap();
    usual(&base);
    let layout = Layout::of(&Places { config: base.join("etc"), exits: base.join("exits") });
    let (wake, woken) = sync_channel(1);
    let heard = Arc::new(Heard { bits: AtomicU8::new(0), wake });
    let mut real = handler(layout.clone(), Arc::clone(&heard));
    let (open, gate) = mpsc::channel::<()>();
    // The reader is blocked until the gate's sender is dropped.
    let (_watcher, failure) = watch(&layout, move |event| {
        let _ = gate.recv();
        real(event);
    })
    .unwrap();
    assert_eq!(failure, None);
    for number in 0..FLOOD_FILES {
        fs::write(base.join("etc/jails.d").join(format!(".{number}")), "").unwrap();
    }
    drop(open);
    // New files only change; nothing but a lost event asks for new watches.
    let mut bits = 0;
    while bits & LOST == 0 {
        woken.recv_timeout(PATIENCE).expect("the overflow is reported");
        bits |= heard.take();
    }
    assert_eq!(bits, CHANGED | EXITED | LOST);
}
