use std::fs;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{CWD, FileType, Mode, XattrFlags};

use super::*;
use crate::root::copy::{Copied, ahead, tree_after};
use crate::root::is_root;
use crate::root::shown::view;
use crate::sys::{file, mount};

const SEEDS: u64 = 8;
const SNAPSHOTS: usize = 6;
/// What is done between two of them.
const DEEDS: usize = 25;
/// Long enough for the time of a file to be believed.
const SETTLED: Duration = Duration::from_millis(60);

/// Few, so that they meet. The layer below has the first ones.
const NAMES: &[&str] = &["a", "b", "c", ".links-0", "d"];
const BELOW: usize = 2;

/// Numbers that are the same for the same seed.
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: usize) -> usize {
        // Knuth's multiplier; the low bits are poor.
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % limit
    }

    fn path(&mut self, top: &Path, names: &[&str]) -> PathBuf {
        let depth = 1 + self.below(3);
        (0..depth).fold(top.to_owned(), |path, _| path.join(names[self.below(names.len())]))
    }

    /// Something that a program in a jail may do; that it cannot be done just now is as good.
    fn deed(&mut self, top: &Path, names: &[&str], number: usize) {
        let (path, other) = (self.path(top, names), self.path(top, names));
        let word = format!("{number}");
        let _ = match self.below(14) {
            0..=2 => fs::write(&path, word),
            3 | 4 => fs::create_dir_all(&path),
            5 => fs::remove_dir_all(&path),
            6 => fs::remove_file(&path),
            7 => fs::rename(&path, &other),
            8 => fs::hard_link(&path, &other),
            9 => std::os::unix::fs::symlink(word, &path),
            10 => std::os::unix::fs::chown(&path, Some(u32::try_from(number).unwrap()), None),
            // Another directory, or none, in the place of one that is still there.
            11 => fs::rename(&path, &other).and_then(|()| fs::create_dir(&path)),
            12 => fs::rename(&path, &other).and_then(|()| fs::write(path.join("a"), word)),
            _ => rustix::fs::lsetxattr(&path, "trusted.word", word.as_bytes(), XattrFlags::empty())
                .map_err(Into::into),
        };
    }
}

fn make(top: &Path, name: &str) -> PathBuf {
    let path = top.join(name);
    fs::create_dir(&path).unwrap();
    path
}

/// Takes what has changed since the index, and gives the next one.
fn take(top: &Path, name: &str, upper: &Path, earlier: Option<&Index>) -> (PathBuf, Index, Copied) {
    let (to, early) = (make(top, name), make(top, &format!("{name}-ahead")));
    let open = |path: &Path| file::open_directory(path).unwrap();
    let quiet = |_: &Copied| Ok(());
    let ready = ahead(open(upper).as_fd(), open(&early).as_fd(), earlier, &quiet).unwrap();
    let before = ready.copied;
    let (mut copied, index) =
        tree_after(open(upper).as_fd(), open(&to).as_fd(), ready, earlier, &quiet).unwrap();
    copied.bytes += before.bytes;
    (to, Index::from_bytes(&index.unwrap().to_bytes().unwrap()).unwrap(), copied)
}

/// Whatever a jail does between them, its snapshots above each other show what it has.
#[test]
fn what_has_changed_over_what_was_copied_is_all_of_it() {
    if !is_root("what_has_changed_over_what_was_copied_is_all_of_it") {
        return;
    }
    for seed in 0..SEEDS {
        let temporary = tempfile::tempdir().unwrap();
        let top = temporary.path();
        let [bottom, upper, work] = ["bottom", "upper", "work"].map(|name| make(top, name));
        let mut chance = Chance(seed);
        (0..DEEDS).for_each(|number| chance.deed(&bottom, &NAMES[..BELOW], number));
        let options = [("lowerdir", &bottom), ("upperdir", &upper), ("workdir", &work)];
        let options = options.map(|(key, path)| (key, path.to_str().unwrap()));
        let merged = mount::create("overlay", &options, 0).unwrap();
        let inside = PathBuf::from(format!("/proc/self/fd/{}", merged.as_raw_fd()));
        let mut chain: Vec<PathBuf> = vec![bottom.clone()];
        let mut index = None;
        for snapshot in 0..SNAPSHOTS {
            (0..DEEDS).for_each(|deed| chance.deed(&inside, NAMES, DEEDS * (snapshot + 1) + deed));
            if chance.below(2) == 0 {
                std::thread::sleep(SETTLED);
            }
            let (above, next, _) = take(top, &format!("{snapshot}"), &upper, index.as_ref());
            chain.insert(0, above);
            index = Some(next);
            let layers: Vec<&Path> = chain.iter().map(PathBuf::as_path).collect();
            assert_eq!(view(&layers), view(&[&upper, &bottom]), "seed {seed}, snapshot {snapshot}");
        }
    }
}

#[test]
fn only_what_has_changed_is_taken() {
    if !is_root("only_what_has_changed_is_taken") {
        return;
    }
    let temporary = tempfile::tempdir().unwrap();
    let top = temporary.path();
    let upper = make(top, "upper");
    fs::create_dir_all(upper.join("a/b")).unwrap();
    for name in ["a/b/same", "a/b/other", "gone", "mapped"] {
        fs::write(upper.join(name), "as it was").unwrap();
    }
    rustix::fs::mknodat(CWD, upper.join("whiteout"), FileType::CharacterDevice, Mode::empty(), 0).unwrap();
    std::thread::sleep(SETTLED);
    let (_, index, _) = take(top, "first", &upper, None);
    let (second, index, copied) = take(top, "second", &upper, Some(&index));
    assert_eq!((fs::read_dir(&second).unwrap().count(), copied.bytes), (0, 0), "nothing has changed");
    // Its size and its time are what they were, but not the time of its last change.
    let times = fs::metadata(upper.join("a/b/other")).unwrap().modified().unwrap();
    fs::write(upper.join("a/b/other"), "otherwise").unwrap();
    let written = fs::File::options().write(true).open(upper.join("a/b/other")).unwrap();
    written.set_modified(times).unwrap();
    fs::remove_file(upper.join("gone")).unwrap();
    let (third, _, copied) = take(top, "third", &upper, Some(&index));
    assert_eq!(fs::read_to_string(third.join("a/b/other")).unwrap(), "otherwise");
    assert_eq!(copied.bytes, 9, "one file");
    let stat = rustix::fs::stat(third.join("gone")).unwrap();
    assert_eq!((FileType::from_raw_mode(stat.st_mode), stat.st_rdev), (FileType::CharacterDevice, 0));
    for name in ["a/b/same", "whiteout", "mapped"] {
        assert!(third.join(name).symlink_metadata().is_err(), "{name} is what it was");
    }
    // A directory of the same name is not the same.
    let other = make(top, "other");
    let [upper, other] = [&upper, &other].map(|path| file::open_directory(path).unwrap());
    assert!(index.is_of(upper.as_fd()).unwrap() && !index.is_of(other.as_fd()).unwrap());
    assert!(Before::of_top(Some(&index), other.as_fd()).is_err(), "nothing is known of another");
}

#[test]
fn what_has_changed_is_taken_also_where_there_is_too_much_to_remember() {
    if !is_root("what_has_changed_is_taken_also_where_there_is_too_much_to_remember") {
        return;
    }
    let temporary = tempfile::tempdir().unwrap();
    let top = temporary.path();
    let [upper, late, all] = ["upper", "late", "all"].map(|name| make(top, name));
    let directories: Vec<PathBuf> = (0..40).map(|number| make(&upper, &format!("d{number}"))).collect();
    for directory in &directories {
        for name in ["gone", "kept"] {
            fs::write(directory.join(name), "").unwrap();
        }
    }
    std::thread::sleep(SETTLED);
    let (first, index, _) = take(top, "first", &upper, None);
    for directory in &directories {
        fs::remove_file(directory.join("gone")).unwrap();
    }
    (0..ENTRIES_MAX).for_each(|number| fs::write(upper.join(format!("f{number}")), "").unwrap());
    let open = |path: &Path| file::open_directory(path).unwrap();
    let quiet = |_: &Copied| Ok(());
    let ready = ahead(open(&upper).as_fd(), open(&late).as_fd(), Some(&index), &quiet).unwrap();
    let taken = tree_after(open(&upper).as_fd(), open(&all).as_fd(), ready, Some(&index), &quiet);
    assert!(taken.unwrap().1.is_none(), "it is too much");
    assert_eq!(view(&[&all, &first]), view(&[&upper, &make(top, "nothing")]));
}
