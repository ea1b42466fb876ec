//! Images as they should be, and as somebody hostile would make them.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;
use crate::desired::Kept;
use crate::root::is_root;
use crate::root::layers;
use crate::template::{Base, Template};

fn digest(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// One entry: `path/` is a directory, `path -> target` a link, another a file with that content.
fn tar_of(entries: &[(&str, &str)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, content) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_mtime(1_000_000);
        header.set_uid(0);
        header.set_gid(0);
        if let Some((path, target)) = path.split_once(" -> ") {
            header.set_entry_type(EntryType::Symlink);
            header.set_size(0);
            header.set_mode(0o777);
            builder.append_link(&mut header, path, target).expect("a link");
        } else if path.ends_with('/') {
            header.set_entry_type(EntryType::Directory);
            header.set_size(0);
            header.set_mode(if *path == "tmp/" { 0o1777 } else { 0o755 });
            builder.append_data(&mut header, path, &[][..]).expect("a directory");
        } else {
            header.set_size(content.len() as u64);
            header.set_mode(0o4755);
            // As it stands, for names that the builder itself would refuse.
            header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
            header.set_cksum();
            builder.append(&header, content.as_bytes()).expect("a file");
        }
    }
    builder.into_inner().expect("an archive")
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).expect("memory");
    encoder.finish().expect("memory")
}

/// A layout in the making.
struct Layout {
    directory: TempDir,
}

impl Layout {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        fs::create_dir_all(directory.path().join("image/blobs/sha256")).expect("directories");
        Self { directory }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("image")
    }

    fn blob(&self, bytes: &[u8]) -> Value {
        let digest = digest(bytes);
        fs::write(self.path().join("blobs/sha256").join(&digest), bytes).expect("a blob");
        json!({ "digest": format!("sha256:{digest}"), "size": bytes.len(), "mediaType": "x" })
    }

    /// An image of these layers, lowest first.
    fn image(&self, layers: &[Vec<u8>], process: &Value) -> Value {
        let layers: Vec<Value> = layers.iter().map(|bytes| self.blob(bytes)).collect();
        let config = json!({ "architecture": architecture::host(), "os": "linux", "config": process,
            "rootfs": { "type": "layers", "diff_ids": [] } });
        let config = self.blob(config.to_string().as_bytes());
        self.blob(json!({ "schemaVersion": 2, "config": config, "layers": layers }).to_string().as_bytes())
    }

    fn index(&self, manifests: &[Value]) {
        fs::write(self.path().join("index.json"), json!({ "manifests": manifests }).to_string()).expect("it");
    }

    fn of(layers: &[Vec<u8>]) -> Self {
        let layout = Self::new();
        let image = layout.image(layers, &Value::Null);
        layout.index(&[image]);
        layout
    }

    /// Builds all its layers; topmost first, as directories.
    fn build(&self) -> anyhow::Result<Vec<PathBuf>> {
        self.build_from(&self.path(), Kept::default())
    }

    fn build_from(&self, path: &Path, kept: Kept) -> anyhow::Result<Vec<PathBuf>> {
        let base = Base::Oci { path: path.to_owned(), reference: None };
        let mut template = Template { base, kept, ..Template::host(String::new()) };
        layers::look(&mut template)?;
        let all = std::collections::BTreeMap::from([("it".to_owned(), template)]);
        let wanted = crate::template::layers(&all, "it").expect("a good template");
        let state = self.directory.path().join("state");
        let built = wanted.iter().rev().map(|layer| layers::tests::ensure(&state, layer, &|_| ()));
        let mut built = built.collect::<anyhow::Result<Vec<_>>>()?;
        built.reverse();
        Ok(built)
    }

    #[track_caller]
    fn refused(&self, expect: &str) {
        let error = format!("{:#}", self.build().expect_err(expect));
        assert!(error.contains(expect), "{error}");
        for entry in fs::read_dir(self.directory.path().join("state/layers")).into_iter().flatten() {
            let name = entry.expect("an entry").file_name().to_string_lossy().into_owned();
            assert!(!name.starts_with(".building-"), "{name} is left");
        }
    }
}

/// The whole archive of a layout, as other tools hand it on.
fn as_archive(layout: &Layout) -> PathBuf {
    let path = layout.directory.path().join("image.tar");
    let mut builder = tar::Builder::new(fs::File::create(&path).expect("a file"));
    builder.append_dir_all(".", layout.path()).expect("an archive");
    builder.finish().expect("an archive");
    path
}

#[test]
fn layers_hide_what_is_below_them() {
    if !is_root("layers_hide_what_is_below_them") {
        return;
    }
    let base =
        tar_of(&[("tmp/", ""), ("etc/", ""), ("etc/a", "a"), ("etc/b", "b"), ("gone/", ""), ("gone/x", "x")]);
    let top = tar_of(&[
        ("etc/.wh.a", ""),
        ("tmp/new", "n"),
        ("gone/.wh..wh..opq", ""),
        ("gone/y", "y"),
        ("etc/b", "new b"),
        ("etc/.wh.b", ""),
        ("etc/.wh..wh.plnk", ""),
    ]);
    let layout = Layout::of(&[gzip(&base), top]);
    let built = layout.build().expect("two layers");
    let [top, base] = &built[..] else { panic!("{built:?}") };
    let whiteout = fs::symlink_metadata(top.join("etc/a")).expect("a whiteout");
    assert!(whiteout.file_type().is_char_device() && whiteout.rdev() == 0);
    assert_eq!(fs::read(top.join("etc/b")).expect("its own file"), b"new b");
    let gone = fs::File::open(top.join("gone")).expect("a directory");
    let opaque = crate::sys::file::attributes(&gone, "trusted.overlay.").expect("attributes");
    assert_eq!(opaque, [("trusted.overlay.opaque".into(), b"y".to_vec())]);
    let mode = |layer: &Path| fs::metadata(layer.join("tmp")).expect("a directory").permissions().mode();
    assert_eq!(mode(top) & 0o7777, 0o1777, "a directory that is only implied is as below");
    assert_eq!(mode(base) & 0o7777, 0o1777);
    assert!(!top.join("etc/.wh..wh.plnk").exists());
}

#[test]
fn a_layer_without_its_last_padding_is_whole() {
    if !is_root("a_layer_without_its_last_padding_is_whole") {
        return;
    }
    let mut cut = tar_of(&[("a", "abc")]);
    cut.truncate(512 + 3);
    let layout = Layout::of(&[cut]);
    let built = layout.build().expect("a layer");
    assert_eq!(fs::read(built[0].join("a")).expect("a file"), b"abc");
    let mut torn = tar_of(&[("a", &"abc".repeat(1000))]);
    torn.truncate(512 + 1000);
    Layout::of(&[torn]).refused("ends after");
}

#[test]
fn what_is_asked_for_is_kept_of_an_image() {
    if !is_root("what_is_asked_for_is_kept_of_an_image") {
        return;
    }
    let mut builder = tar::Builder::new(Vec::new());
    let mut fifo = tar::Header::new_gnu();
    fifo.set_entry_type(tar::EntryType::Fifo);
    fifo.set_size(0);
    fifo.set_mode(0o600);
    fifo.set_uid(0);
    fifo.set_gid(0);
    builder.append_data(&mut fifo, "pipe", &[][..]).expect("an archive in memory");
    let capability: &[u8] = b"\0\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let record = [("SCHILY.xattr.security.capability", capability)];
    builder.append_pax_extensions(record).expect("an archive in memory");
    let mut file = tar::Header::new_gnu();
    file.set_size(0);
    file.set_mode(0o755);
    file.set_uid(0);
    file.set_gid(0);
    builder.append_data(&mut file, "ping", &[][..]).expect("an archive in memory");
    let layout = Layout::of(&[builder.into_inner().expect("an archive in memory")]);
    let seen = |kept| {
        let layer = layout.build_from(&layout.path(), kept).expect("a layer").remove(0);
        let ping = fs::File::open(layer.join("ping")).expect("a file");
        let attributes = crate::sys::file::attributes(&ping, "security.capability").expect("attributes");
        (layer.join("pipe").exists(), attributes.len(), layer)
    };
    let plain = seen(Kept::default());
    let devices = seen(Kept { devices: true, ..Kept::default() });
    let capabilities = seen(Kept { capabilities: true, ..Kept::default() });
    assert_eq!([(plain.0, plain.1), (devices.0, devices.1)], [(false, 0), (true, 0)]);
    assert_eq!((capabilities.0, capabilities.1), (false, 1));
    assert!(plain.2 != devices.2 && devices.2 != capabilities.2, "each is a layer of its own");
}

#[test]
fn images_share_what_they_begin_with() {
    if !is_root("images_share_what_they_begin_with") {
        return;
    }
    let base = tar_of(&[("a", "a")]);
    let one = Layout::of(&[base.clone(), tar_of(&[("b", "b")])]);
    let two = Layout::of(&[base, tar_of(&[("c", "c")])]);
    let names = |layout: &Layout| -> Vec<_> {
        layout.build().expect("good").iter().map(|path| path.file_name().map(ToOwned::to_owned)).collect()
    };
    let (one, two) = (names(&one), names(&two));
    assert_eq!(one[1], two[1]);
    assert_ne!(one[0], two[0]);
}

#[test]
fn an_archive_of_a_layout_is_the_layout() {
    if !is_root("an_archive_of_a_layout_is_the_layout") {
        return;
    }
    let layout = Layout::of(&[gzip(&tar_of(&[("bin/", ""), ("bin/su", "x")]))]);
    let from_directory = layout.build().expect("a layer");
    let archive = as_archive(&layout);
    assert_eq!(layout.build_from(&archive, Kept::default()).expect("the same"), from_directory);
    let mode = |path: &Path| fs::metadata(path.join("bin/su")).expect("a file").permissions().mode() & 0o7777;
    assert_eq!(mode(&from_directory[0]), 0o4755);
    let plain =
        layout.build_from(&archive, Kept { setuid: false, ..Kept::default() }).expect("another layer");
    assert_eq!(mode(&plain[0]), 0o755);
    fs::write(layout.directory.path().join("image.tar.gz"), gzip(&fs::read(archive).expect("it")))
        .expect("it");
    let error = look(&layout.directory.path().join("image.tar.gz"), None).expect_err("compressed");
    assert!(error.to_string().contains("decompress it first"), "{error}");
}

#[test]
fn a_docker_archive_is_known_by_its_configuration() {
    if !is_root("a_docker_archive_is_known_by_its_configuration") {
        return;
    }
    let layer = tar_of(&[("motd", "hi")]);
    let archive = |diff: &str, target: &str| {
        let layout = Layout::new();
        let config = json!({ "architecture": architecture::host(), "config": { "Cmd": ["/x"] },
            "rootfs": { "diff_ids": [format!("sha256:{diff}")] } });
        let manifest = json!([{ "Config": "c.json", "RepoTags": ["it:1"], "Layers": ["l/layer.tar"] }]);
        let path = layout.directory.path().join("saved.tar");
        let (manifest, config) = (manifest.to_string(), config.to_string());
        let link = format!("l/layer.tar -> {target}");
        let mut bytes = tar_of(&[("manifest.json", &manifest), ("c.json", &config), (&link, "")]);
        // Over the end of the first archive, the layer's own file.
        bytes.truncate(bytes.len() - 1024);
        let mut builder = tar::Builder::new(bytes);
        let mut header = tar::Header::new_gnu();
        header.set_size(layer.len() as u64);
        builder.append_data(&mut header, "real.tar", &layer[..]).expect("a file");
        fs::write(&path, builder.into_inner().expect("an archive")).expect("a file");
        (layout, path)
    };
    let (layout, path) = archive(&digest(&layer), "../real.tar");
    assert_eq!(look(&path, Some("it:1")).expect("an image").run.command, ["/x"]);
    assert!(look(&path, Some("it:2")).expect_err("no such tag").to_string().contains("`it:1`"));
    let built = layout.build_from(&path, Kept::default()).expect("a layer");
    assert_eq!(fs::read(built[0].join("motd")).expect("a file"), b"hi");
    let (layout, path) = archive(&"0".repeat(64), "../real.tar");
    let error = format!("{:#}", layout.build_from(&path, Kept::default()).expect_err("another digest"));
    assert!(error.contains("it has the sha256"), "{error}");
    let (layout, path) = archive(&digest(&layer), "../l/layer.tar");
    let error = format!("{:#}", layout.build_from(&path, Kept::default()).expect_err("a circle"));
    assert!(error.contains("circle of links"), "{error}");
    let (layout, path) = archive(&digest(&layer), "../../../../../../etc/passwd");
    let error = format!("{:#}", layout.build_from(&path, Kept::default()).expect_err("outside"));
    assert!(error.contains("is missing"), "{error}");
}

#[test]
fn what_is_not_what_its_digest_says_is_refused() {
    if !is_root("what_is_not_what_its_digest_says_is_refused") {
        return;
    }
    let layer = tar_of(&[("a", "a")]);
    let blobs = |layout: &Layout| layout.path().join("blobs/sha256");
    let layout = Layout::of(std::slice::from_ref(&layer));
    let mut changed = layer.clone();
    changed[600] ^= 1;
    fs::write(blobs(&layout).join(digest(&layer)), &changed).expect("a blob");
    layout.refused("it has the sha256");
    fs::write(blobs(&layout).join(digest(&layer)), [&layer[..], b"more"].concat()).expect("a blob");
    layout.refused("and should have");
    fs::remove_file(blobs(&layout).join(digest(&layer))).expect("a blob");
    layout.refused("is missing");
    std::os::unix::fs::symlink("/etc/passwd", blobs(&layout).join(digest(&layer))).expect("a link");
    layout.refused("open blobs/sha256");
    fs::remove_file(blobs(&layout).join(digest(&layer))).expect("a blob");
    fs::create_dir(blobs(&layout).join(digest(&layer))).expect("a directory");
    layout.refused("not a regular file");

    let layout = Layout::of(&[layer]);
    let manifest = fs::read_to_string(layout.path().join("index.json")).expect("it");
    let name = manifest.split("sha256:").nth(1).expect("a digest")[..64].to_owned();
    let text = fs::read_to_string(blobs(&layout).join(&name)).expect("it");
    fs::write(blobs(&layout).join(&name), text.replace("layers", "layerz")).expect("it");
    layout.refused("has the sha256");
}

#[test]
fn hostile_texts_are_refused() {
    if !is_root("hostile_texts_are_refused") {
        return;
    }
    let layout = Layout::of(&[tar_of(&[("a", "a")])]);
    let index = layout.path().join("index.json");
    for (text, expect) in [
        ("", "EOF"),
        ("{}", "missing field `manifests`"),
        ("{\"manifests\": [{\"digest\": \"sha256:../../x\", \"size\": 3}]}", "not a sha256 digest"),
        ("{\"manifests\": [{\"digest\": \"sha256:00\", \"size\": -3}]}", "invalid value"),
        ("{\"manifests\": [{\"digest\": \"sha256:00\", \"size\": 1e400}]}", "number out of range"),
    ] {
        fs::write(&index, text).expect("a file");
        layout.refused(expect);
    }
    let huge = fs::File::create(&index).expect("a file");
    huge.set_len(TEXT_BYTES_MAX + 1).expect("a sparse file");
    layout.refused("larger than");
    fs::remove_file(&index).expect("it");
    layout.refused("neither an OCI layout nor a docker archive");
    let kind = "application/vnd.oci.image.index.v1+json";
    let mut inner = layout.blob(b"{}");
    for _ in 0..=HOPS_MAX {
        inner["mediaType"] = json!(kind);
        inner = layout.blob(json!({ "manifests": [inner] }).to_string().as_bytes());
    }
    inner["mediaType"] = json!(kind);
    layout.index(&[inner]);
    layout.refused("indexes stand in one another");
}

#[test]
fn hostile_layers_reach_nothing_outside() {
    if !is_root("hostile_layers_reach_nothing_outside") {
        return;
    }
    let outside = tempfile::tempdir().expect("a directory");
    let canary = outside.path().join("canary");
    fs::write(&canary, "alive").expect("a file");
    let link = format!("x -> {}", outside.path().display());
    // Through a link of the layer itself: the whiteout stays inside.
    Layout::of(&[tar_of(&[(&link, ""), ("x/.wh.canary", ""), ("x/.wh..wh..opq", "")])]).build().ok();
    assert_eq!(fs::read(&canary).expect("it is there"), b"alive");
    let attributes = crate::sys::file::attributes(&fs::File::open(outside.path()).expect("it"), "trusted.");
    assert_eq!(attributes.expect("attributes"), []);
    for (entries, expect) in [
        (vec![("../.wh.canary", "")], "`..`"),
        (vec![("a/.wh...", "")], "takes away what cannot have a name"),
        (vec![("a/.wh.", "")], "takes away what cannot have a name"),
    ] {
        Layout::of(&[tar_of(&entries)]).refused(expect);
    }
    // Behind a whiteout there is no way to what the layer below has.
    let below = tar_of(&[("d -> /etc", ""), ("e/", "")]);
    let top = tar_of(&[(".wh.d", ""), ("d/passwd", "mine"), ("e/", "")]);
    let layout = Layout::of(&[below, top]);
    let built = layout.build().expect("good");
    assert_eq!(fs::read(built[0].join("d/passwd")).expect("its own"), b"mine");
}

#[test]
fn a_blob_that_grows_without_end_is_cut_off() {
    if !is_root("a_blob_that_grows_without_end_is_cut_off") {
        return;
    }
    // Sixteen exabytes in a header, and a few megabytes of zeros behind it.
    let mut header = tar::Header::new_gnu();
    header.as_old_mut().name[..4].copy_from_slice(b"bomb");
    header.set_size(u64::MAX >> 1);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_cksum();
    let bomb = [header.as_bytes().as_slice(), &vec![0; 8 << 20]].concat();
    Layout::of(&[gzip(&bomb)]).refused("more than 68719476736 bytes");
}
