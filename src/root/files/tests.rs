use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};

use tempfile::TempDir;

use super::*;
use crate::desired::OnChange;
use crate::root::is_root;

const FIRST_ID: u32 = 1_000_000;

fn file(target: &str, contents: &str) -> RootFile {
    RootFile {
        target: target.into(),
        contents: contents.into(),
        mode: 0o640,
        uid: 33,
        gid: 34,
        on_change: OnChange::Restart,
    }
}

/// A root, and beside it a directory that nothing may be written to.
struct Place {
    directory: TempDir,
    root: PathBuf,
    opened: OwnedFd,
}

impl Place {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let root = directory.path().join("root");
        fs::create_dir(&root).expect("a directory");
        fs::create_dir(directory.path().join("outside")).expect("a directory");
        fs::write(directory.path().join("outside/canary"), "alive").expect("a file");
        let opened = file::open_directory(&root).expect("open");
        Self { directory, root, opened }
    }

    fn write(&self, target: &str, contents: &str) -> anyhow::Result<BTreeMap<PathBuf, FileStamp>> {
        write(self.opened.as_fd(), &[file(target, contents)], FIRST_ID)
    }

    fn is_untouched(&self) -> bool {
        let outside = self.directory.path().join("outside");
        fs::read_dir(&outside).expect("it is there").count() == 1
            && fs::read(outside.join("canary")).is_ok_and(|bytes| bytes == b"alive")
    }

    fn changed(&self, stamps: &BTreeMap<PathBuf, FileStamp>) -> usize {
        changed(self.opened.as_fd(), stamps, FIRST_ID).len()
    }
}

#[test]
fn a_file_is_written_whole_with_owner_and_mode() {
    if !is_root("a_file_is_written_whole_with_owner_and_mode") {
        return;
    }
    let place = Place::new();
    let stamps = place.write("/etc/app/x.conf", "one").expect("written");
    let path = place.root.join("etc/app/x.conf");
    let metadata = fs::metadata(&path).expect("a file");
    assert_eq!((metadata.mode(), metadata.uid(), metadata.gid()), (0o100_640, FIRST_ID + 33, FIRST_ID + 34));
    let parent = fs::metadata(place.root.join("etc/app")).expect("a directory");
    assert_eq!((parent.mode(), parent.uid()), (0o40_755, FIRST_ID));
    assert_eq!(fs::read_dir(path.parent().expect("a parent")).expect("a directory").count(), 1);
    let stamp = &stamps[Path::new("/etc/app/x.conf")];
    assert_eq!((stamp.inode, stamp.size), (metadata.ino(), 3));
    assert_eq!(place.changed(&stamps), 0);
    place.write("/etc/app/x.conf", "two").expect("written again");
    assert_eq!(fs::read(&path).expect("a file"), b"two");
    assert_eq!(place.changed(&stamps), 1);
}

#[test]
fn links_do_not_lead_outside() {
    if !is_root("links_do_not_lead_outside") {
        return;
    }
    let place = Place::new();
    let outside = place.directory.path().join("outside");
    symlink(&outside, place.root.join("absolute")).expect("a link");
    symlink("../outside", place.root.join("relative")).expect("a link");
    symlink("/proc/self/root", place.root.join("magic")).expect("a link");
    symlink(outside.join("canary"), place.root.join("final")).expect("a link");
    symlink("/inner", place.root.join("inside")).expect("a link");
    fs::create_dir(place.root.join("inner")).expect("a directory");
    for target in ["/absolute/canary", "/relative/canary", "/magic/x"] {
        place.write(target, "x").expect_err(target);
        assert!(place.is_untouched(), "{target}");
    }
    place.write("/final", "x").expect("the link is replaced");
    assert!(
        fs::symlink_metadata(place.root.join("final")).expect("a file").is_file() && place.is_untouched()
    );
    let stamps = place.write("/inside/x", "x").expect("it stays inside");
    assert_eq!(fs::read(place.root.join("inner/x")).expect("a file"), b"x");
    assert_eq!(place.changed(&stamps), 0);
}

#[test]
fn what_is_in_the_way_is_replaced_or_named() {
    if !is_root("what_is_in_the_way_is_replaced_or_named") {
        return;
    }
    let place = Place::new();
    let fifo = place.root.join("fifo");
    let make =
        || rustix::fs::mknodat(rustix::fs::CWD, &fifo, FileType::Fifo, Mode::from(0o666), 0).expect("a FIFO");
    make();
    let stamps = place.write("/fifo", "x").expect("replaced");
    assert!(fs::symlink_metadata(&fifo).expect("a file").is_file());
    fs::remove_file(&fifo).expect("remove");
    make();
    assert_eq!(place.changed(&stamps), 1);
    fs::create_dir(place.root.join("directory")).expect("a directory");
    let error = format!("{:#}", place.write("/directory", "x").expect_err("a directory"));
    assert!(error.starts_with("write /directory: rename into place"), "{error}");
    fs::write(place.root.join("plain"), "").expect("a file");
    let error = format!("{:#}", place.write("/plain/x", "x").expect_err("no directory"));
    assert!(error.starts_with("write /plain/x: open /plain"), "{error}");
    let names: Vec<_> =
        fs::read_dir(&place.root).expect("a directory").map(|e| e.expect("an entry").file_name()).collect();
    assert_eq!(names.len(), 3, "{names:?}");
    let wrong = RootFile { uid: IDS, ..file("/x", "x") };
    write(place.opened.as_fd(), &[wrong], FIRST_ID).expect_err("an id of the host");
}

/// Before 6.13 the kernel stamps files with the time of its last tick, 10 ms apart at most: what is
/// changed within the tick of its writing looks unchanged.
const TICK: std::time::Duration = std::time::Duration::from_millis(20);

#[test]
fn every_kind_of_change_is_seen() {
    if !is_root("every_kind_of_change_is_seen") {
        return;
    }
    let place = Place::new();
    let path = place.root.join("f");
    let open = || fs::OpenOptions::new().write(true).open(&path).expect("a file");
    let chmod = |mode| fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(mode));
    let changes: [(&str, &dyn Fn(), usize); 6] = [
        ("nothing", &|| (), 0),
        ("touched", &|| open().set_modified(std::time::UNIX_EPOCH).expect("touched"), 0),
        ("contents", &|| fs::write(&path, "b").expect("written"), 1),
        ("mode", &|| chmod(0o666).expect("chmod"), 1),
        ("owner", &|| std::os::unix::fs::chown(&path, Some(FIRST_ID), None).expect("chown"), 1),
        ("removed", &|| fs::remove_file(&path).expect("removed"), 1),
    ];
    for (name, change, expect) in changes {
        let stamps = place.write("/f", "a").expect("written");
        std::thread::sleep(TICK);
        change();
        assert_eq!(place.changed(&stamps), expect, "{name}");
    }
}

#[test]
fn the_digest_covers_mode_and_owner() {
    let plain = file("/f", "a");
    let others = [
        RootFile { mode: 0o600, ..plain.clone() },
        RootFile { uid: 0, ..plain.clone() },
        RootFile { gid: 0, ..plain.clone() },
        file("/f", "b"),
    ];
    for other in others {
        assert_ne!(digest(&other), digest(&plain));
    }
    assert_eq!(digest(&file("/g", "a")), digest(&plain));
}

/// The overlay of the tests, mounted nowhere: it ends with its descriptor.
fn overlay(layer: &Path, upper: &Path, work: &Path) -> OwnedFd {
    use rustix::mount as m;
    let context = m::fsopen("overlay", m::FsOpenFlags::FSOPEN_CLOEXEC).expect("fsopen");
    for (key, path) in [("lowerdir", layer), ("upperdir", upper), ("workdir", work)] {
        m::fsconfig_set_string(context.as_fd(), key, path).expect(key);
    }
    m::fsconfig_create(context.as_fd()).expect("an overlay");
    let attributes = m::MountAttrFlags::empty();
    m::fsmount(context.as_fd(), m::FsMountFlags::FSMOUNT_CLOEXEC, attributes).expect("fsmount")
}

#[test]
fn a_merged_root_shows_what_was_written_to_it() {
    if !is_root("a_merged_root_shows_what_was_written_to_it") {
        return;
    }
    let place = Place::new();
    let (layer, work) = (place.directory.path().join("layer"), place.directory.path().join("work"));
    fs::create_dir_all(layer.join("etc/app")).expect("a directory");
    fs::write(layer.join("etc/app/other"), "of the layer").expect("a file");
    fs::write(layer.join("etc/app/x"), "of the layer").expect("a file");
    symlink("etc/app", layer.join("app")).expect("a link");
    fs::create_dir(&work).expect("a directory");
    let (first, second) = (file("/app/x", "one"), file("/app/y", "two"));
    let merged = overlay(&layer, &place.root, &work);
    let mut stamps = write(merged.as_fd(), &[first], FIRST_ID).expect("written");
    assert_eq!(changed(merged.as_fd(), &stamps, FIRST_ID), BTreeSet::new());
    stamps.extend(write(merged.as_fd(), &[second], FIRST_ID).expect("written"));
    assert_eq!(changed(merged.as_fd(), &stamps, FIRST_ID), BTreeSet::new());
    let read = |path: &str| {
        let mut text = String::new();
        let opened = file::open_inside(merged.as_fd(), Path::new(path), OFlags::RDONLY, file::INSIDE_ONE);
        File::from(opened.expect(path)).read_to_string(&mut text).expect("text");
        text
    };
    assert_eq!([read("/etc/app/x"), read("/etc/app/y"), read("/app/other")], ["one", "two", "of the layer"]);
    write(merged.as_fd(), &[file("/app/x", "three")], FIRST_ID).expect("written");
    assert_eq!(changed(merged.as_fd(), &stamps, FIRST_ID), BTreeSet::from([PathBuf::from("/app/x")]));
}
