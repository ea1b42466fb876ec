use std::cell::Cell;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use rustix::fs::XattrFlags;
use rustix::mount::UnmountFlags;

use super::*;
use crate::root::is_root;

/// Deeper than a path can be long, and than a process has descriptors.
const DEPTH: usize = 5_000;

fn copy(from: &Path, to: &Path, owners: Owners) -> anyhow::Result<Copied> {
    fs::create_dir(to).expect("a directory");
    let (from, to) = (file::open_directory(from).expect("open"), file::open_directory(to).expect("open"));
    tree(from.as_fd(), to.as_fd(), owners, &|_| Ok(()))
}

fn set(path: &Path, name: &str, value: &[u8]) {
    rustix::fs::lsetxattr(path, name, value, XattrFlags::empty()).expect(name);
}

/// All that a jail can leave in an upper, and what the host's root can.
fn every_kind(top: &Path) {
    let node = |name: &str, kind, device| {
        rustix::fs::mknodat(rustix::fs::CWD, top.join(name), kind, Mode::RUSR, device).expect(name);
    };
    fs::create_dir_all(top.join("a/b")).expect("directories");
    fs::write(top.join("a/b/file"), "text").expect("a file");
    fs::write(top.join("a/empty"), "").expect("a file");
    fs::hard_link(top.join("a/b/file"), top.join("a/second")).expect("a link");
    fs::hard_link(top.join("a/b/file"), top.join("third")).expect("a link");
    fs::hard_link(top.join("a/empty"), top.join("../outside-the-tree")).expect("a link");
    symlink("/etc/passwd", top.join("link")).expect("a link");
    node("whiteout", FileType::CharacterDevice, 0);
    node("null", FileType::CharacterDevice, rustix::fs::makedev(1, 3));
    node("fifo", FileType::Fifo, 0);
    node("socket", FileType::Socket, 0);
    set(&top.join("a"), "trusted.overlay.opaque", b"y");
    set(&top.join("a/b/file"), "user.note", b"kept");
    set(&top.join("a/b/file"), "user.empty", b"");
    set(&top.join("link"), "trusted.overlay.origin", b"\0\xfb");
    let acl = acl(1_000_007);
    set(&top.join("a/b"), "system.posix_acl_default", &acl);
    let sparse = File::create(top.join("sparse")).expect("a file");
    sparse.write_all_at(b"middle", 5 << 20).expect("written");
    sparse.set_len(8 << 20).expect("a size");
    for (name, mode, owner) in
        [("a/b/file", 0o4755, 1_000_003), ("a", 0o1777, 1_000_000), ("fifo", 0o606, 1_000_009)]
    {
        std::os::unix::fs::chown(top.join(name), Some(owner), Some(owner)).expect("chown");
        fs::set_permissions(top.join(name), fs::Permissions::from_mode(mode)).expect("chmod");
    }
    // After the chown, which takes it away.
    set(&top.join("third"), "security.capability", &capability(Some(1_000_000)));
    let old = rustix::fs::Timespec { tv_sec: 1_000_000_000, tv_nsec: 123_456_789 };
    let times = rustix::fs::Timestamps { last_access: old, last_modification: old };
    for name in ["link", "a/b", "a/b/file", "fifo", ""] {
        rustix::fs::utimensat(rustix::fs::CWD, top.join(name), &times, AtFlags::SYMLINK_NOFOLLOW)
            .expect("times");
    }
}

/// `u::rwx,u:ID:rwx,g::r-x,m::rwx,o::---`.
fn acl(user: u32) -> Vec<u8> {
    let mut value = 2_u32.to_le_bytes().to_vec();
    let none = u32::MAX;
    for (tag, permissions, id) in
        [(1_u16, 7_u16, none), (2, 7, user), (4, 5, none), (16, 7, none), (32, 0, none)]
    {
        value.extend(tag.to_le_bytes());
        value.extend(permissions.to_le_bytes());
        value.extend(id.to_le_bytes());
    }
    value
}

/// `cap_net_raw=ep`, for the user namespace whose root this is.
fn capability(root: Option<u32>) -> Vec<u8> {
    let revision = if root.is_some() { 0x0300_0000_u32 } else { 0x0200_0000 };
    let mut value = (revision | 1).to_le_bytes().to_vec();
    value.extend((1_u32 << 13).to_le_bytes());
    value.extend([0; 12]);
    value.extend(root.into_iter().flat_map(u32::to_le_bytes));
    value
}

/// Every entry below `top` with all that a copy keeps.
fn look(top: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut pending = vec![top.to_owned()];
    let mut inodes = Vec::new();
    while let Some(path) = pending.pop() {
        let m = fs::symlink_metadata(&path).expect("there");
        let mut attributes = file::attributes_by_path(&link_path(&path)).expect("attributes");
        attributes.sort();
        inodes.push((path.clone(), m.ino()));
        let contents = if m.is_file() { format!("{:x?}", digest(&path)) } else { String::new() };
        let target = fs::read_link(&path).unwrap_or_default();
        found.push(format!(
            "{} {:o} {}:{} {}.{} {} {} {:?} {contents} {}",
            path.strip_prefix(top).expect("below").display(),
            m.mode(),
            m.uid(),
            m.gid(),
            m.mtime(),
            m.mtime_nsec(),
            m.rdev(),
            if m.is_dir() { 0 } else { m.size() },
            attributes,
            target.display(),
        ));
        if m.is_dir() {
            pending.extend(fs::read_dir(&path).expect("a directory").map(|e| e.expect("an entry").path()));
        }
    }
    found.sort();
    found
}

/// A path whose attributes are those of the link itself.
fn link_path(path: &Path) -> String {
    let fd = rustix::fs::open(path, OFlags::PATH | OFlags::NOFOLLOW, Mode::empty()).expect("open");
    // Kept open by its path being used at once: leaked on purpose, in a test.
    format!("/proc/self/fd/{}", std::os::fd::IntoRawFd::into_raw_fd(fd))
}

fn digest(path: &Path) -> Vec<u8> {
    use sha2::Digest;
    sha2::Sha256::digest(fs::read(path).expect("read")).to_vec()
}

#[test]
fn a_tree_is_copied_with_everything() {
    if !is_root("a_tree_is_copied_with_everything") {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let (from, to) = (directory.path().join("from"), directory.path().join("to"));
    fs::create_dir(&from).expect("a directory");
    every_kind(&from);
    let copied = copy(&from, &to, Owners::Same).expect("copied");
    assert_eq!(look(&to), look(&from));
    assert_eq!(copied.entries, 12);
    let inode = |name: &str| fs::metadata(to.join(name)).expect("there").ino();
    assert!(inode("a/b/file") == inode("third") && inode("third") == inode("a/second"));
    assert_eq!(fs::metadata(to.join("third")).expect("there").nlink(), 3);
    assert_eq!(fs::metadata(to.join("a/empty")).expect("there").nlink(), 1, "its other name is elsewhere");
    assert!(fs::symlink_metadata(to.join("socket")).expect("there").file_type().is_socket());
    let blocks = fs::metadata(to.join("sparse")).expect("there").blocks();
    assert!(blocks * 512 < 1 << 20, "holes stay holes: {blocks} blocks");
}

#[test]
fn owners_are_shifted_also_in_acls_and_capabilities() {
    if !is_root("owners_are_shifted_also_in_acls_and_capabilities") {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let (from, to, back) =
        (directory.path().join("from"), directory.path().join("to"), directory.path().join("back"));
    fs::create_dir(&from).expect("a directory");
    every_kind(&from);
    let error =
        format!("{:#}", copy(&from, &to, Owners::Shifted { from: 1_000_000, to: 0 }).expect_err("root's"));
    assert!(error.contains("outside of the ids 1000000 to 1065535"), "{error}");
    fs::remove_dir_all(&to).expect("removed");
    let status = Command::new("chown").args(["-hR", "--from=0:0", "1000000:1000000"]).arg(&from).status();
    assert!(status.expect("chown(1)").success());
    set(&from.join("third"), "security.capability", &capability(Some(1_000_000)));
    copy(&from, &to, Owners::Shifted { from: 1_000_000, to: 0 }).expect("copied");
    let value = |path: &Path, name: &str| {
        let all = file::attributes_by_path(path.to_str().expect("a path")).expect("attributes");
        all.into_iter().find(|(n, _)| n.as_bytes() == name.as_bytes()).expect(name).1
    };
    assert_eq!(fs::metadata(to.join("a/b/file")).expect("there").uid(), 3);
    assert_eq!(value(&to.join("a/b"), "system.posix_acl_default"), acl(7));
    assert_eq!(value(&to.join("third"), "security.capability"), capability(None));
    copy(&to, &back, Owners::Shifted { from: 0, to: 1_000_000 }).expect("copied");
    assert_eq!(look(&back), look(&from), "there and back");
}

#[test]
fn links_are_not_followed_and_no_depth_is_too_deep() {
    if !is_root("links_are_not_followed_and_no_depth_is_too_deep") {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let (from, to, canary) =
        (directory.path().join("from"), directory.path().join("to"), directory.path().join("canary"));
    fs::create_dir(&from).expect("a directory");
    fs::create_dir(&canary).expect("a directory");
    fs::write(canary.join("secret"), "alive").expect("a file");
    let mut at = file::open_directory(&from).expect("open");
    for _ in 0..DEPTH {
        rustix::fs::mkdirat(&at, "d", Mode::RWXU).expect("a directory");
        rustix::fs::symlinkat(&canary, &at, "l").expect("a link");
        at = file::open_child(&at, "d".as_ref()).expect("open");
    }
    let copied = copy(&from, &to, Owners::Same).expect("copied");
    assert_eq!(copied.entries, 2 * DEPTH as u64);
    let mut at = file::open_directory(&to).expect("open");
    for _ in 0..DEPTH {
        let link = rustix::fs::readlinkat(&at, "l", Vec::new()).expect("a link");
        assert_eq!(link.as_bytes(), canary.as_os_str().as_bytes());
        at = file::open_child(&at, "d".as_ref()).expect("open");
    }
    let parent = file::open_directory(directory.path()).expect("open");
    for name in ["from", "to"] {
        removal::remove(&parent, name.as_ref()).expect("removed");
    }
    assert_eq!(fs::read_to_string(canary.join("secret")).expect("a file"), "alive");
}

/// What was copied ahead counts only as long as nothing of the file has changed since.
#[test]
fn what_changes_after_it_was_copied_ahead_is_copied_again() {
    if !is_root("what_changes_after_it_was_copied_ahead_is_copied_again") {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let [from, early, to] = ["from", "early", "to"].map(|name| {
        let path = directory.path().join(name);
        fs::create_dir(&path).expect("a directory");
        path
    });
    every_kind(&from);
    for name in ["same", "written", "mapped", "moved", "gone", "owned", "linked"] {
        fs::write(from.join(name), format!("{name} before")).expect("a file");
    }
    std::thread::sleep(std::time::Duration::from_millis(100));
    let open = |path: &Path| file::open_directory(path).expect("open");
    let quiet = |_: &Copied| Ok(());
    let ready = ahead(open(&from).as_fd(), open(&early).as_fd(), None, &quiet).expect("copied ahead");
    assert!(ready.ready.len() > 7, "{:?}", ready.ready);
    let inode = |path: &Path| fs::metadata(path).expect("there").ino();
    let kept = kept_name((fs::metadata(&from).expect("there").dev(), inode(&from.join("same"))));
    let same = inode(&early.join(kept));
    // Not even its size changes.
    fs::write(from.join("written"), "written after").expect("written");
    fs::rename(from.join("moved"), from.join("a/elsewhere")).expect("moved");
    fs::remove_file(from.join("gone")).expect("removed");
    std::os::unix::fs::chown(from.join("owned"), Some(1_000_001), None).expect("chown");
    fs::hard_link(from.join("linked"), from.join("a/linked")).expect("a link");
    fs::write(from.join("new"), "new").expect("a file");
    let copied = tree_after(open(&from).as_fd(), open(&to).as_fd(), ready, None, &quiet);
    assert!(copied.expect("copied").0.bytes > 0, "some had to be copied again");
    assert_eq!(look(&to), look(&from));
    assert_eq!(inode(&to.join("same")), same, "it was only moved into place");
    assert_eq!(inode(&to.join("linked")), inode(&to.join("a/linked")));
}

#[test]
fn a_plain_copy_has_nothing_but_files() {
    if !is_root("a_plain_copy_has_nothing_but_files") {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let (from, to) = (directory.path().join("from"), directory.path().join("to"));
    fs::create_dir(&from).expect("a directory");
    every_kind(&from);
    let copied = copy(&from, &to, Owners::Plain).expect("copied");
    assert_eq!(copied.left_out, 5, "a link, a whiteout, a device, a FIFO and a socket");
    let file = fs::metadata(to.join("a/b/file")).expect("there");
    assert_eq!((file.mode() & 0o7777, file.uid(), file.gid()), (0o755, 0, 0));
    assert_eq!(file::attributes_by_path(&link_path(&to.join("third"))).expect("attributes"), []);
    assert!(fs::symlink_metadata(to.join("link")).is_err());
}

#[test]
fn a_word_of_no_ends_it() {
    let directory = tempfile::tempdir().expect("a directory");
    let (from, to) = (directory.path().join("from"), directory.path().join("to"));
    fs::create_dir(&from).expect("a directory");
    fs::create_dir(&to).expect("a directory");
    let mut file = OpenOptions::new().create(true).append(true).open(from.join("big")).expect("a file");
    file.write_all(&vec![7; 20 << 20]).expect("written");
    let (from, to) = (file::open_directory(&from).expect("open"), file::open_directory(&to).expect("open"));
    let calls = Cell::new(0);
    let error = tree(from.as_fd(), to.as_fd(), Owners::Same, &|copied| {
        calls.set(calls.get() + 1);
        ensure!(copied.bytes < 8 << 20, "enough");
        Ok(())
    });
    // Where the blocks can be shared there is nothing to wait for, and one word at the end.
    assert_eq!((format!("{:#}", error.expect_err("stopped")).contains("enough"), calls.get()), (true, 1));
}

/// btrfs and xfs on loop devices, in a mount namespace of the child's own.
#[test]
fn blocks_are_shared_where_the_file_system_can() {
    if !is_root("blocks_are_shared_where_the_file_system_can") {
        return;
    }
    for kind in ["btrfs", "xfs"] {
        let directory = tempfile::tempdir().expect("a directory");
        let image = directory.path().join("image");
        File::create(&image).and_then(|f| f.set_len(400 << 20)).expect("an image");
        let made = Command::new(format!("mkfs.{kind}")).args(["-q"]).arg(&image).status();
        assert!(made.expect("mkfs is installed").success());
        let top = directory.path().join("mounted");
        fs::create_dir(&top).expect("a directory");
        // mount(8) finds the loop device, which goes with the mount.
        let mounted = Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&top).status();
        assert!(mounted.expect("mount(8)").success());
        let result = std::panic::catch_unwind(|| shared_on(&top));
        rustix::mount::unmount(&top, UnmountFlags::DETACH).expect("unmounted");
        result.unwrap_or_else(|_| panic!("on {kind}"));
    }
}

fn shared_on(top: &Path) {
    let (from, to) = (top.join("from"), top.join("to"));
    fs::create_dir(&from).expect("a directory");
    fs::write(from.join("big"), vec![7; 16 << 20]).expect("a file");
    every_kind(&from);
    File::open(&from).and_then(|f| f.sync_all()).expect("synced");
    rustix::fs::syncfs(file::open_directory(top).expect("open")).expect("synced");
    let free = || {
        rustix::fs::statvfs(top).expect("statvfs").f_bfree
            * rustix::fs::statvfs(top).expect("statvfs").f_frsize
    };
    let before = free();
    let copied = copy(&from, &to, Owners::Same).expect("copied");
    rustix::fs::syncfs(file::open_directory(top).expect("open")).expect("synced");
    assert!(copied.shared >= 16 << 20 && copied.shared == copied.bytes, "{copied:?}");
    assert!(before - free() < 8 << 20, "{} bytes more are used", before - free());
    assert_eq!(look(&to), look(&from));
}
