use std::os::unix::fs::{PermissionsExt, symlink};
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::desired::{CopiedFile, CopiedKind};
use crate::root::is_root;

/// Without builds, which take a host. What is made is what its manifest says.
pub fn ensure(state: &Path, layer: &Layer, progress: Progress<'_>) -> anyhow::Result<PathBuf> {
    let none = |_: &Build, _: &[PathBuf], _: &Path| anyhow::bail!("there is no host here");
    let built = super::ensure(Site { state, progress, run: &none }, layer)?;
    assert_eq!(manifest::verify(state, &layer.id)?, manifest::Verdict::Same);
    Ok(built)
}

fn layer(digit: char, source: LayerSource) -> Layer {
    Layer { id: format!("sha256-{}", digit.to_string().repeat(64)), source }
}

fn quiet(_: &str) {}

/// A directory with one entry of every kind.
fn model(path: &Path) {
    fs::create_dir_all(path.join("a/b")).expect("a directory");
    fs::write(path.join("a/f"), "text").expect("a file");
    fs::set_permissions(path.join("a/f"), fs::Permissions::from_mode(0o4750)).expect("chmod");
    std::os::unix::fs::chown(path.join("a/f"), Some(33), Some(34)).expect("chown");
    fs::set_permissions(path.join("a/f"), fs::Permissions::from_mode(0o4750)).expect("chmod");
    fs::hard_link(path.join("a/f"), path.join("a/b/g")).expect("a hard link");
    symlink("/etc/shadow", path.join("l")).expect("a link");
    let fifo = path.join("fifo");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, FileType::Fifo, Mode::from(0o600), 0).expect("a FIFO");
    rustix::fs::setxattr(path.join("a/f"), "user.k", b"v", rustix::fs::XattrFlags::empty())
        .expect("an attribute");
    fs::set_permissions(path.join("a"), fs::Permissions::from_mode(0o1777)).expect("chmod");
}

#[test]
fn a_directory_is_copied_as_it_is() {
    if !is_root("a_directory_is_copied_as_it_is") {
        return;
    }
    let temporary = tempfile::tempdir().expect("a directory");
    let (state, source) = (temporary.path().join("state"), temporary.path().join("base"));
    model(&source);
    let root = ensure(&state, &layer('a', LayerSource::Directory(source.clone())), &quiet).expect("a layer");
    let (old, new) =
        (fs::metadata(source.join("a/f")).expect("a file"), fs::metadata(root.join("a/f")).expect("a file"));
    assert_eq!((new.mode(), new.uid(), new.gid(), new.mtime()), (old.mode(), 33, 34, old.mtime()));
    assert_eq!(fs::read_to_string(root.join("a/f")).expect("a file"), "text");
    assert_eq!(new.ino(), fs::metadata(root.join("a/b/g")).expect("a file").ino());
    assert_eq!(fs::read_link(root.join("l")).expect("a link"), Path::new("/etc/shadow"));
    assert_eq!(fs::metadata(root.join("a")).expect("a directory").mode() & 0o7777, 0o1777);
    assert!(!root.join("fifo").exists());
    let mut value = [0; 8];
    assert_eq!(rustix::fs::getxattr(root.join("a/f"), "user.k", &mut value).expect("an attribute"), 1);
    assert_eq!(fs::metadata(state.join("layers")).expect("a directory").mode() & 0o7777, 0o700);
}

#[test]
fn two_builders_of_one_layer_build_once() {
    if !is_root("two_builders_of_one_layer_build_once") {
        return;
    }
    let temporary = tempfile::tempdir().expect("a directory");
    let state = temporary.path().join("state");
    let built = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let counted = |line: &str| {
                    if line != WAITING {
                        built.fetch_add(1, Ordering::SeqCst);
                    }
                };
                let root = ensure(&state, &layer('b', LayerSource::Host), &counted).expect("a layer");
                assert!(root.join("etc/passwd").is_file());
            });
        }
    });
    assert_eq!(built.load(Ordering::SeqCst), 1);
    // The layer, and the manifest beside it.
    assert_eq!(fs::read_dir(state.join("layers")).expect("a directory").count(), 2);
}

#[test]
fn what_an_interrupted_builder_left_is_removed() {
    if !is_root("what_an_interrupted_builder_left_is_removed") {
        return;
    }
    let temporary = tempfile::tempdir().expect("a directory");
    let (state, layers) = (temporary.path().join("state"), temporary.path().join("state/layers"));
    let (own, left) = (layer('c', LayerSource::Host), layer('d', LayerSource::Host));
    for building in [&own, &left] {
        fs::create_dir_all(layers.join(format!("{BUILDING}{}/half", building.id))).expect("a directory");
        fs::write(layers.join(format!("{LOCK}{}", building.id)), "").expect("a file");
    }
    let busy = layer('e', LayerSource::Host);
    fs::create_dir_all(layers.join(format!("{BUILDING}{}/half", busy.id))).expect("a directory");
    let held = Lock::try_take(&layers, &busy.id).expect("a lock").expect("nobody else has it");
    let root = ensure(&state, &own, &quiet).expect("a layer");
    assert!(!root.join("half").exists());
    let names = file::names(file::open_directory(&layers).expect("open"), 100).expect("names");
    let mut building: Vec<_> =
        names.iter().filter_map(|name| name.to_str()?.strip_prefix(BUILDING)).collect();
    building.sort_unstable();
    assert_eq!(building, [busy.id.as_str()]);
    held.release();
}

#[test]
fn the_host_layer_holds_what_its_usr_needs() {
    if !is_root("the_host_layer_holds_what_its_usr_needs") {
        return;
    }
    let temporary = tempfile::tempdir().expect("a directory");
    let root = ensure(temporary.path(), &layer('f', LayerSource::Host), &quiet).expect("a layer");
    for (path, mode) in [("usr", 0o755), ("tmp", 0o1777), ("root", 0o700), ("var/tmp", 0o1777), ("", 0o755)] {
        assert_eq!(fs::metadata(root.join(path)).expect(path).mode() & 0o7777, mode, "{path}");
    }
    assert_eq!(fs::read_dir(root.join("usr")).expect("a directory").count(), 0);
    assert_eq!(fs::read_link(root.join("bin")).ok(), fs::read_link("/bin").ok());
    assert!(fs::read_to_string(root.join("etc/passwd")).expect("a file").starts_with("root:x:0:0:"));
    assert!(!root.join("etc/shadow").exists() && !root.join("etc/ssl/private").exists());
    assert_eq!(root.join("etc/ld.so.cache").exists(), Path::new("/etc/ld.so.cache").exists());
    assert_eq!(host_stamp(), host_stamp());
}

#[test]
fn copied_files_are_laid_for_the_jails_root() {
    if !is_root("copied_files_are_laid_for_the_jails_root") {
        return;
    }
    let temporary = tempfile::tempdir().expect("a directory");
    let source = temporary.path().join("motd");
    fs::write(&source, "hello").expect("a file");
    let copied =
        |target: &str, mode, kind| CopiedFile { source: source.clone(), target: target.into(), mode, kind };
    let files = vec![
        copied("/etc", 0o750, CopiedKind::Directory),
        copied("/etc/issue", 0, CopiedKind::Link("motd".into())),
        copied("/etc/motd", 0o640, CopiedKind::File),
    ];
    let root = ensure(temporary.path(), &layer('0', LayerSource::Files(files)), &quiet).expect("a layer");
    assert_eq!(fs::read_to_string(root.join("etc/issue")).expect("a link"), "hello");
    assert_eq!(fs::metadata(root.join("etc/motd")).expect("a file").mode() & 0o7777, 0o640);
    assert_eq!(fs::metadata(root.join("etc")).expect("a directory").mode() & 0o7777, 0o750);
    fs::remove_file(&source).expect("remove");
    rustix::fs::mknodat(rustix::fs::CWD, &source, FileType::Fifo, Mode::from(0o644), 0).expect("a FIFO");
    let files = vec![copied("/etc/motd", 0o640, CopiedKind::File)];
    let error = ensure(temporary.path(), &layer('1', LayerSource::Files(files)), &quiet).expect_err("a FIFO");
    assert!(format!("{error:#}").contains("not a regular file"), "{error:#}");
}

#[test]
fn unused_layers_are_found_and_removed() {
    if !is_root("unused_layers_are_found_and_removed") {
        return;
    }
    let temporary = tempfile::tempdir().expect("a directory");
    let state = temporary.path();
    assert_eq!(unused(state, &BTreeSet::new()).expect("nothing yet"), []);
    let (used, old) = (layer('2', LayerSource::Host), layer('3', LayerSource::Host));
    for layer in [&used, &old] {
        ensure(state, layer, &quiet).expect("a layer");
    }
    let found = unused(state, &BTreeSet::from([used.id.clone()])).expect("a list");
    assert_eq!(found.iter().map(|(id, _)| id).collect::<Vec<_>>(), [&old.id]);
    assert!(found[0].1 > 0);
    remove(state, &old.id).expect("removed");
    remove(state, &old.id).expect("it is gone already");
    assert!(!path(state, &old.id).exists() && path(state, &used.id).is_dir());
    assert_eq!(unused(state, &BTreeSet::from([used.id])).expect("a list"), []);
}

#[test]
fn the_stamp_of_a_base_follows_it() {
    let temporary = tempfile::tempdir().expect("a directory");
    let path = temporary.path().join("base.tar");
    let stamp = |sha256: Option<&str>| {
        let sha256 = sha256.map(str::to_owned);
        base_stamp(&Template {
            base: Base::Tar { path: path.clone(), sha256 },
            ..Template::host(String::new())
        })
    };
    assert!(stamp(None).is_err());
    assert_eq!(stamp(Some("00")).expect("not looked at"), "");
    fs::write(&path, "one").expect("a file");
    let first = stamp(None).expect("a stamp");
    fs::write(&path, "three").expect("a file");
    assert_ne!(stamp(None).expect("a stamp"), first);
}
