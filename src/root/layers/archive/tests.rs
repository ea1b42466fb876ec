//! Archives made here, hostile ones too, unpacked through `ensure` as a jail's start does it.

use crate::template::hex;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;

use tar::{Builder, EntryType, Header};
use tempfile::TempDir;

use super::*;
use crate::desired::{Kept, Layer, LayerSource};
use crate::root::{is_root, layers};

/// A header with the path and link target as they are given, which the tar crate would refuse.
fn header(path: &str, kind: EntryType, link: &str, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1_000_000_000);
    header.set_size(size);
    let old = header.as_old_mut();
    old.name[..path.len()].copy_from_slice(path.as_bytes());
    old.linkname[..link.len()].copy_from_slice(link.as_bytes());
    header.set_cksum();
    header
}

type Part<'p> = (Header, &'p [u8]);

fn file<'p>(path: &str, contents: &'p str) -> Part<'p> {
    (header(path, EntryType::Regular, "", contents.len() as u64), contents.as_bytes())
}

fn other(path: &str, kind: EntryType, link: &str) -> Part<'static> {
    (header(path, kind, link, 0), b"")
}

fn link(path: &str, to: &str) -> Part<'static> {
    other(path, EntryType::Symlink, to)
}

fn changed(part: Part<'_>, change: impl FnOnce(&mut Header)) -> Part<'_> {
    let (mut header, contents) = part;
    change(&mut header);
    header.set_cksum();
    (header, contents)
}

fn archive(parts: &[Part<'_>]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for (header, contents) in parts {
        builder.append(header, *contents).expect("an archive in memory");
    }
    builder.into_inner().expect("an archive in memory")
}

/// A state directory, and beside it a directory that no archive may touch.
struct Place {
    directory: TempDir,
    canary: PathBuf,
}

impl Place {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let canary = directory.path().join("outside/canary");
        fs::create_dir(directory.path().join("outside")).expect("a directory");
        fs::write(&canary, "alive").expect("a file");
        Self { directory, canary }
    }

    fn unpack(&self, bytes: &[u8], sha256: Option<String>) -> anyhow::Result<PathBuf> {
        self.unpack_with(bytes, sha256, Kept::default())
    }

    fn unpack_with(&self, bytes: &[u8], sha256: Option<String>, kept: Kept) -> anyhow::Result<PathBuf> {
        let path = self.directory.path().join("base.tar");
        fs::write(&path, bytes)?;
        let id = format!("sha256-{}", hex(&Sha256::digest(bytes)));
        let layer = Layer { id, source: LayerSource::Tar { path, sha256, kept } };
        layers::tests::ensure(&self.directory.path().join("state"), &layer, &|line| eprintln!("{line}"))
    }

    /// Nothing outside was made, changed or removed.
    fn is_untouched(&self) -> bool {
        let outside: Vec<_> = fs::read_dir(self.directory.path().join("outside"))
            .expect("it is there")
            .map(|entry| entry.expect("an entry").file_name())
            .collect();
        let links = fs::metadata(&self.canary).map(|m| (m.nlink(), m.mode() & 0o777));
        outside == ["canary"]
            && fs::read(&self.canary).is_ok_and(|bytes| bytes == b"alive")
            && links.is_ok_and(|found| found == (1, 0o644))
    }

    fn leftovers(&self) -> Vec<String> {
        fs::read_dir(self.directory.path().join("state/layers"))
            .expect("it is there")
            .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
            // Why it failed stays for whoever looks.
            .filter(|name| !name.starts_with(".lock-") && !name.starts_with(".failed-"))
            .collect()
    }
}

#[track_caller]
fn check_refused(parts: &[Part<'_>], expect: &str) {
    let place = Place::new();
    let error = place.unpack(&archive(parts), None).expect_err(expect);
    let error = format!("{error:#}");
    assert!(error.contains(expect), "{error:?} lacks {expect:?}");
    assert!(place.is_untouched(), "{expect}");
    assert_eq!(place.leftovers(), [""; 0], "{expect}");
}

#[test]
fn hostile_archives_end_the_build() {
    if !is_root("hostile_archives_end_the_build") {
        return;
    }
    let directory = |path| changed(other(path, EntryType::Directory, ""), |h| h.set_mode(0o755));
    check_refused(
        &[file("../../../outside/canary", "x")],
        "entry `../../../outside/canary`: the path goes through `..`",
    );
    check_refused(&[file("a/../../x", "x")], "through `..`");
    check_refused(&[directory("..")], "through `..`");
    check_refused(&[link("../x", "y")], "through `..`");
    check_refused(&[other("x", EntryType::Link, "../../../outside/canary")], "through `..`");
    check_refused(
        &[other("x", EntryType::Link, "outside/canary")],
        "entry `x`: hard link to what is not there",
    );
    check_refused(&[file("a", "x"), file("a/b", "x")], "entry `a/b`");
    check_refused(&[file("a/b", "x"), file("a", "x")], "entry `a`: takes the place of a directory");
    check_refused(&[changed(file("a", "x"), |h| h.set_uid(65_536))], "entry `a`: its owner 65536");
    check_refused(&[changed(file("a", "x"), |h| h.set_gid(70_000))], "entry `a`: its owner 70000");
    check_refused(&[changed(file("a", ""), |h| h.set_size(1 << 40))], "more than");
    check_refused(&[changed(file("a", "short"), |h| h.set_size(4096))], "entry `a`");
    check_refused(&[link("a", "a"), file("a/b", "x")], "entry `a/b`");
    check_refused(&[], "there is no entry");
    let deep = "d/".repeat(49);
    let links: Vec<Part<'_>> = vec![link("l", &deep), file("l/x", "x")];
    check_refused(&links, "entry `l/x`");
}

#[test]
fn a_header_cannot_ask_for_all_memory() {
    if !is_root("a_header_cannot_ask_for_all_memory") {
        return;
    }
    let name = "n".repeat(3 << 20);
    let long = (header("././@LongLink", EntryType::GNULongName, "", name.len() as u64), name.as_bytes());
    check_refused(&[long, file("a", "x")], "a header has more than 1048576 bytes");
    let name = format!("{}\0", "n".repeat(300));
    let long = (header("././@LongLink", EntryType::GNULongName, "", name.len() as u64), name.as_bytes());
    check_refused(&[long, file("a", "x")], "a name has more than 255 bytes");
    let name = format!("{}\0", "n/".repeat(200));
    let long = (header("././@LongLink", EntryType::GNULongName, "", name.len() as u64), name.as_bytes());
    check_refused(&[long, file("a", "x")], "more than 128 directories deep");
}

/// Path and what is there: a mode with the file's kind, or a link's target.
fn listing(root: &Path, below: &Path, into: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(root.join(below)).expect("a directory") {
        let path = below.join(entry.expect("an entry").file_name());
        let metadata = fs::symlink_metadata(root.join(&path)).expect("an entry");
        let shown = match fs::read_link(root.join(&path)) {
            Ok(target) => format!("-> {}", target.display()),
            Err(_) => format!("{:o} {}", metadata.mode(), metadata.uid()),
        };
        into.insert(path.display().to_string(), shown);
        if metadata.is_dir() {
            listing(root, &path, into);
        }
    }
}

#[track_caller]
fn check(parts: &[Part<'_>], expect: &[(&str, &str)]) {
    let place = Place::new();
    let root = place.unpack(&archive(parts), None).expect("a layer");
    let mut found = BTreeMap::new();
    listing(&root, Path::new(""), &mut found);
    let found: Vec<(&str, &str)> =
        found.iter().map(|(path, shown)| (path.as_str(), shown.as_str())).collect();
    assert_eq!(found, expect);
    assert!(place.is_untouched());
}

#[test]
fn what_leads_outside_stays_inside() {
    if !is_root("what_leads_outside_stays_inside") {
        return;
    }
    check(&[file("/etc/passwd", "x")], &[("etc", "40755 0"), ("etc/passwd", "100644 0")]);
    let up = "../../../../../../../../../../outside";
    check(
        &[other("outside", EntryType::Directory, ""), link("l", up), file("l/canary", "x")],
        &[
            ("l", "-> ../../../../../../../../../../outside"),
            ("outside", "40644 0"),
            ("outside/canary", "100644 0"),
        ],
    );
    check(
        &[
            link("l", "/t"),
            other("t", EntryType::Directory, ""),
            file("l/f", "x"),
            other("h", EntryType::Link, "l/f"),
        ],
        &[("h", "100644 0"), ("l", "-> /t"), ("t", "40644 0"), ("t/f", "100644 0")],
    );
    // A later entry replaces a link and is not written through it.
    check(&[link("f", "/t"), file("t", "x"), file("f", "y")], &[("f", "100644 0"), ("t", "100644 0")]);
    check(&[link("d", "/t"), other("d", EntryType::Directory, "")], &[("d", "40644 0")]);
    check(
        &[link("s", "/etc/shadow"), other("h", EntryType::Link, "s")],
        &[("h", "-> /etc/shadow"), ("s", "-> /etc/shadow")],
    );
}

#[test]
fn devices_are_left_out_and_setuid_is_kept() {
    if !is_root("devices_are_left_out_and_setuid_is_kept") {
        return;
    }
    let device = |path, kind| {
        changed(other(path, kind, ""), |h| {
            h.set_device_major(8).expect("a GNU header");
            h.set_device_minor(0).expect("a GNU header");
        })
    };
    check(
        &[
            device("sda", EntryType::Block),
            device("null", EntryType::Char),
            other("pipe", EntryType::Fifo, ""),
            changed(file("su", "x"), |h| h.set_mode(0o4755)),
            changed(file("own", "x"), |h| h.set_uid(65_535)),
        ],
        &[("own", "100644 65535"), ("su", "104755 0")],
    );
}

#[test]
fn capabilities_and_overlay_marks_are_dropped() {
    if !is_root("capabilities_and_overlay_marks_are_dropped") {
        return;
    }
    let mut builder = Builder::new(Vec::new());
    let records: [(&str, &[u8]); 4] = [
        ("SCHILY.xattr.security.capability", b"\x01\0\0\x02\xff\xff\xff\xff\0\0\0\0\0\0\0\0\0\0\0\0"),
        ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
        ("SCHILY.xattr.user.overlay.redirect", b"/"),
        ("SCHILY.xattr.user.kept", b"yes"),
    ];
    builder.append_pax_extensions(records).expect("an archive in memory");
    let (header, contents) = file("f", "x");
    builder.append(&header, contents).expect("an archive in memory");
    let place = Place::new();
    let root = place.unpack(&builder.into_inner().expect("bytes"), None).expect("a layer");
    let mut names = vec![0; 1024];
    let length = rustix::fs::listxattr(root.join("f"), names.as_mut_slice()).expect("a list");
    assert_eq!(names[..length], *b"user.kept\0");
}

/// One file with this attribute.
fn with_attribute(name: &str, value: &[u8]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    add(&mut builder, (name, value), &file("f", "x"));
    builder.into_inner().expect("an archive in memory")
}

fn add(builder: &mut Builder<Vec<u8>>, (name, value): (&str, &[u8]), (header, contents): &Part<'_>) {
    let record = [(&*format!("SCHILY.xattr.{name}"), value)];
    builder.append_pax_extensions(record).expect("an archive in memory");
    builder.append(header, *contents).expect("an archive in memory");
}

/// Inodes come again when files are replaced, with other contents and attributes each time.
#[test]
fn the_manifest_says_what_was_written_last() {
    if !is_root("the_manifest_says_what_was_written_last") {
        return;
    }
    let large = "x".repeat(700_000);
    // Owner, group and others: all that the mode says is said in the list too.
    let list: Vec<u8> = [[2, 0, 0, 0].as_slice(), &[1, 0, 7, 0, 255, 255, 255, 255]].concat();
    let list = [list.as_slice(), &[4, 0, 5, 0, 255, 255, 255, 255, 32, 0, 5, 0, 255, 255, 255, 255]].concat();
    for default in [false, true] {
        let mut builder = Builder::new(Vec::new());
        if default {
            let top = other("./", EntryType::Directory, "");
            add(&mut builder, ("system.posix_acl_default", &list), &top);
        }
        for round in 0..200 {
            let (name, more) = (format!("f{}", round % 7), format!("f{}", round % 5));
            let text = format!("{:04}", round % 3);
            add(&mut builder, ("user.round", text.as_bytes()), &file(&name, &text));
            for (header, contents) in [
                file(&name, if round % 50 == 0 { &large } else { "same" }),
                link(&more, &name),
                changed(file(&more, &text), |h| h.set_mode(0o6751 - round % 8)),
                other("again", EntryType::Link, &name),
                file(&name, &text),
            ] {
                builder.append(&header, contents).expect("an archive in memory");
            }
            add(&mut builder, ("user.round", text.as_bytes()), &file(&format!("g{}", round % 3), "same"));
        }
        Place::new()
            .unpack(&builder.into_inner().expect("bytes"), None)
            .expect("a layer as its manifest says");
    }
}

const NET_RAW: &[u8] = b"\0\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

#[test]
fn what_the_template_asks_for_is_kept() {
    if !is_root("what_the_template_asks_for_is_kept") {
        return;
    }
    let device = |path, kind, major| {
        changed(other(path, kind, ""), |h| {
            h.set_device_major(major).expect("a GNU header");
            h.set_device_minor(3).expect("a GNU header");
        })
    };
    let no_whiteout = changed(other("hides", EntryType::Char, ""), |h| {
        h.set_device_major(0).and_then(|()| h.set_device_minor(0)).expect("a GNU header");
    });
    let parts = [
        device("sda", EntryType::Block, 8),
        device("null", EntryType::Char, 1),
        no_whiteout,
        other("pipe", EntryType::Fifo, ""),
        changed(file("su", "x"), |h| h.set_mode(0o6755)),
    ];
    let place = Place::new();
    let kept = Kept { setuid: false, devices: true, capabilities: true };
    let root = place.unpack_with(&archive(&parts), None, kept).expect("a layer");
    let mut found = BTreeMap::new();
    listing(&root, Path::new(""), &mut found);
    let found: Vec<(&str, &str)> = found.iter().map(|(path, shown)| (&**path, &**shown)).collect();
    assert_eq!(found, [("null", "20644 0"), ("pipe", "10644 0"), ("sda", "60644 0"), ("su", "100755 0")]);
    assert_eq!(fs::metadata(root.join("null")).expect("a node").rdev(), rustix::fs::makedev(1, 3));
    let place = Place::new();
    let kept = Kept { capabilities: true, ..Kept::default() };
    let root = place.unpack_with(&with_attribute(CAPABILITY, NET_RAW), None, kept).expect("a layer");
    let mut value = [0; 20];
    rustix::fs::getxattr(root.join("f"), CAPABILITY, &mut value[..]).expect("a capability");
    assert_eq!(value, NET_RAW);
}

#[test]
fn nobody_outside_is_given_anything() {
    if !is_root("nobody_outside_is_given_anything") {
        return;
    }
    let kept = Kept { capabilities: true, ..Kept::default() };
    let of_another = [&NET_RAW[..3], b"\x03", &NET_RAW[4..], &100_000_u32.to_le_bytes()].concat();
    let list = [&[2, 0, 0, 0, 2, 0, 7, 0][..], &100_000_u32.to_le_bytes()].concat();
    for (name, value, expect) in [
        (CAPABILITY, &of_another, "its capabilities: 100000 is outside of the ids 0 to 65535"),
        ("system.posix_acl_access", &list, "its ACL: 100000 is outside"),
        (CAPABILITY, &b"short".to_vec(), "its capabilities: too short"),
    ] {
        let error = Place::new().unpack_with(&with_attribute(name, value), None, kept).expect_err(expect);
        assert!(format!("{error:#}").contains(expect), "{error:#}");
    }
}

#[test]
fn a_sparse_file_in_pax_form_is_laid_with_its_holes() {
    if !is_root("a_sparse_file_in_pax_form_is_laid_with_its_holes") {
        return;
    }
    let unpack = |version: &[u8], size: &[u8], map: &str, data: &str| {
        let mut builder = Builder::new(Vec::new());
        let records: [(&str, &[u8]); 3] =
            [("GNU.sparse.major", version), ("GNU.sparse.name", b"f"), ("GNU.sparse.realsize", size)];
        builder.append_pax_extensions(records).expect("an archive in memory");
        let contents = format!("{map:\0<512}{data}");
        let (header, contents) = file("GNUSparseFile.1/f", &contents);
        builder.append(&header, contents).expect("an archive in memory");
        let place = Place::new();
        let layer = place.unpack(&builder.into_inner().expect("bytes"), None);
        layer.map(|layer| fs::read(layer.join("f")).expect("a file"))
    };
    let found = unpack(b"1", b"100000", "2\n50000\n4\n100000\n0\n", "abcd").expect("laid");
    assert_eq!((found.len(), &found[49_999..50_005]), (100_000, &b"\0abcd\0"[..]));
    for (version, size, map, error) in [
        (&b"0"[..], &b"9"[..], "1\n0\n4\n", "another form"),
        (b"1", b"3", "1\n0\n4\n", "beyond its end"),
        (b"1", b"9", "2\n4\n2\n2\n2\n", "overlap"),
        (b"1", b"9", "1\n5\n18446744073709551615\n", "beyond its end"),
        (b"1", b"9", "99999999999\n", "stretches"),
        (b"1", b"9", "1\n-1\n", "map of a sparse file"),
        (b"1", b"9", "1\n0\n8\n", "ends after"),
        (b"1", b"99999999999999", "0\n", "more than"),
        (b"1", b"x", "0\n", "realsize"),
    ] {
        let said = format!("{:#}", unpack(version, size, map, "abcd").expect_err(error));
        assert!(said.contains(error), "{error}: {said}");
    }
}

#[test]
fn every_compression_is_known_by_its_first_bytes() {
    if !is_root("every_compression_is_known_by_its_first_bytes") {
        return;
    }
    let plain = archive(&[file("f", "contents")]);
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 1);
    gz.write_all(&plain).expect("bytes");
    xz.write_all(&plain).expect("bytes");
    let zst = zstd::encode_all(plain.as_slice(), 1).expect("bytes");
    for bytes in [gz.finish().expect("bytes"), xz.finish().expect("bytes"), zst, plain] {
        let place = Place::new();
        let sha256 = hex(&Sha256::digest(&bytes));
        let root = place.unpack(&bytes, Some(sha256)).expect("a layer");
        assert_eq!(fs::read(root.join("f")).expect("a file"), b"contents");
        assert_eq!(fs::metadata(&root).expect("a layer").permissions().mode() & 0o7777, 0o755);
        assert_eq!(fs::metadata(root.join("f")).expect("a file").mtime(), 1_000_000_000);
    }
}

#[test]
fn another_digest_or_half_an_archive_makes_no_layer() {
    if !is_root("another_digest_or_half_an_archive_makes_no_layer") {
        return;
    }
    let plain = archive(&[file("f", "contents")]);
    let place = Place::new();
    let error = place.unpack(&plain, Some("0".repeat(64))).expect_err("another digest");
    assert!(format!("{error:#}").contains("and should have 0000"), "{error:#}");
    assert_eq!(place.leftovers(), [""; 0]);
    let compressed = zstd::encode_all(plain.as_slice(), 1).expect("bytes");
    for half in [&compressed[..compressed.len() / 2], &plain[..700], b"not an archive at all", b""] {
        place.unpack(half, None).expect_err("half an archive");
        assert_eq!(place.leftovers(), [""; 0]);
    }
}
