//! What an image says of itself: the OCI layout's index, manifest and configuration, and the
//! docker archive's manifest. Pure: texts in, facts out; whoever wrote them is not trusted.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::hex;
use crate::desired::Blob;

/// Layers of one image; the kernel stacks no more than 500.
pub const LAYERS_MAX: usize = 127;
/// The name that OCI layouts give an image.
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// An image of this host's architecture.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Image {
    /// Lowest first.
    pub layers: Vec<Blob>,
    pub run: Run,
}

/// What its makers start in it: defaults for a jail.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    pub user: String,
    pub workdir: String,
    /// Names with their values.
    pub env: Vec<(String, String)>,
    /// Entry point and arguments.
    pub command: Vec<String>,
}

/// A blob as OCI names it.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    #[serde(default)]
    pub media_type: String,
    digest: String,
    size: u64,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
    #[serde(default)]
    platform: Option<Platform>,
}

#[derive(Clone, Debug, Deserialize)]
struct Platform {
    architecture: String,
    os: String,
}

#[derive(Deserialize)]
struct Index {
    manifests: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct Manifest {
    config: Descriptor,
    layers: Vec<Descriptor>,
}

/// One entry of a docker archive's manifest.json.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    layers: Vec<String>,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct Configuration {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    config: Option<Process>,
    rootfs: RootFs,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Process {
    user: Option<String>,
    env: Option<Vec<String>>,
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    working_dir: Option<String>,
}

#[derive(Deserialize)]
struct RootFs {
    diff_ids: Vec<String>,
}

/// A docker archive's image, with its layers by their names in the archive.
#[derive(Debug, PartialEq, Eq)]
pub struct SavedImage {
    pub config: PathBuf,
    pub layers: Vec<PathBuf>,
}

impl Descriptor {
    /// The digest's digits.
    pub fn sha256(&self) -> Result<&str, String> {
        sha256(&self.digest)
    }

    /// Where a layout has it.
    pub fn blob(&self) -> Result<Blob, String> {
        let sha256 = self.sha256()?.to_owned();
        let name = PathBuf::from(format!("blobs/sha256/{sha256}"));
        Ok(Blob { name, sha256, size: Some(self.size) })
    }

    /// It stands for several images, one for each platform.
    pub fn is_index(&self) -> bool {
        self.media_type.ends_with(".index.v1+json") || self.media_type.ends_with(".manifest.list.v2+json")
    }

    fn reference(&self) -> Option<&str> {
        self.annotations.as_ref()?.get(REF_NAME).map(String::as_str)
    }
}

/// The digits of `sha256:…`; a digest of another kind, or with anything else in it, is refused, so
/// that it can be part of a path.
fn sha256(digest: &str) -> Result<&str, String> {
    let digits = digest.strip_prefix("sha256:").unwrap_or_default();
    let good = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    if digits.len() == hex(&[0; 32]).len() && digits.bytes().all(good) {
        return Ok(digits);
    }
    Err(format!("`{}` is not a sha256 digest", digest.escape_debug()))
}

fn read<T: DeserializeOwned>(text: &[u8]) -> Result<T, String> {
    serde_json::from_slice(text).map_err(|error| error.to_string())
}

/// The one image, or list of images, that an index means by `reference` for `architecture`.
pub fn choose(index: &[u8], reference: Option<&str>, architecture: &str) -> Result<Descriptor, String> {
    let all = read::<Index>(index)?.manifests;
    let names: BTreeSet<&str> = all.iter().filter_map(Descriptor::reference).collect();
    let is_meant = |found: &&Descriptor| reference.is_none_or(|name| found.reference() == Some(name));
    let meant: Vec<&Descriptor> = all.iter().filter(is_meant).collect();
    if meant.is_empty() {
        return Err(match reference {
            Some(name) => format!("no image in it is named `{name}`{}", holds(&names)),
            None => "there is no image in it".to_owned(),
        });
    }
    let fits = |platform: &Platform| platform.os == "linux" && platform.architecture == architecture;
    let mut fitting = meant.iter().filter(|found| found.platform.as_ref().is_none_or(fits));
    let Some(first) = fitting.next() else {
        let others: BTreeSet<&str> =
            meant.iter().filter_map(|found| Some(found.platform.as_ref()?.architecture.as_str())).collect();
        return Err(format!("no image in it is for {architecture}{}", holds(&others)));
    };
    if fitting.any(|other| other.digest != first.digest) {
        return Err(format!("there are several images in it: say which with `reference`{}", holds(&names)));
    }
    Ok((*first).clone())
}

fn holds(names: &BTreeSet<&str>) -> String {
    let shown: Vec<String> = names.iter().take(8).map(|name| format!("`{}`", name.escape_debug())).collect();
    if shown.is_empty() { String::new() } else { format!(" (it has {})", shown.join(", ")) }
}

/// Configuration and layers, lowest first, of an OCI manifest.
pub fn manifest(text: &[u8]) -> Result<(Descriptor, Vec<Blob>), String> {
    let manifest: Manifest = read(text)?;
    let layers = manifest.layers.iter().map(Descriptor::blob).collect::<Result<Vec<_>, _>>()?;
    few_enough(layers.len())?;
    Ok((manifest.config, layers))
}

/// The one image that a docker archive means by `reference`.
pub fn saved(text: &[u8], reference: Option<&str>) -> Result<SavedImage, String> {
    let all: Vec<Saved> = read(text)?;
    let tags = |saved: &Saved| saved.repo_tags.clone().unwrap_or_default();
    let names: Vec<String> = all.iter().flat_map(tags).collect();
    let names: BTreeSet<&str> = names.iter().map(String::as_str).collect();
    let count = all.len();
    let mut found = all
        .into_iter()
        .filter(|saved| reference.is_none_or(|name| tags(saved).iter().any(|tag| tag == name)));
    let Some(first) = found.next() else {
        let wanted = reference.map(|name| format!(" named `{name}`")).unwrap_or_default();
        return Err(format!("there is no image{wanted} in it{}", holds(&names)));
    };
    if reference.is_none() && count > 1 {
        return Err(format!("there are several images in it: say which with `reference`{}", holds(&names)));
    }
    few_enough(first.layers.len())?;
    let layers = first.layers.into_iter().map(PathBuf::from).collect();
    Ok(SavedImage { config: first.config.into(), layers })
}

fn few_enough(layers: usize) -> Result<(), String> {
    if layers > LAYERS_MAX {
        return Err(format!("it has {layers} layers, and {LAYERS_MAX} are the most"));
    }
    Ok(())
}

/// What a configuration says: the architecture, the digests of its layers as they are unpacked,
/// lowest first, and what runs.
pub fn configuration(text: &[u8]) -> Result<(String, Vec<String>, Run), String> {
    let found: Configuration = read(text)?;
    let diffs = found.rootfs.diff_ids.iter().map(|digest| sha256(digest).map(str::to_owned));
    let diffs = diffs.collect::<Result<Vec<_>, _>>()?;
    let process = found.config.unwrap_or_default();
    let mut command = process.entrypoint.unwrap_or_default();
    command.extend(process.cmd.unwrap_or_default());
    let pair = |line: String| {
        line.split_once('=')
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .unwrap_or((line, String::new()))
    };
    let run = Run {
        user: process.user.unwrap_or_default(),
        workdir: process.working_dir.unwrap_or_default(),
        env: process.env.unwrap_or_default().into_iter().map(pair).collect(),
        command,
    };
    Ok((found.architecture, diffs, run))
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    const B: &str = "sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

    fn index(manifests: &str) -> String {
        format!("{{\"manifests\": [{manifests}]}}")
    }

    fn entry(digest: &str, rest: &str) -> String {
        format!("{{\"digest\": \"{digest}\", \"size\": 7{rest}}}")
    }

    #[track_caller]
    fn check(manifests: &str, reference: Option<&str>, expect: Result<&str, &str>) {
        let chosen = choose(index(manifests).as_bytes(), reference, "amd64");
        match (chosen, expect) {
            (Ok(found), Ok(digest)) => assert_eq!(found.digest, digest),
            (Err(found), Err(words)) => assert!(found.contains(words), "{found}"),
            (found, _) => panic!("{found:?} is not {expect:?}"),
        }
    }

    #[test]
    fn one_image_is_chosen_by_name_and_platform() {
        let arm = entry(A, ", \"platform\": {\"os\": \"linux\", \"architecture\": \"arm64\"}");
        let amd = entry(B, ", \"platform\": {\"os\": \"linux\", \"architecture\": \"amd64\"}");
        let named =
            |digest, name: &str| entry(digest, &format!(", \"annotations\": {{\"{REF_NAME}\": \"{name}\"}}"));
        check(&entry(A, ""), None, Ok(A));
        check(&format!("{arm},{amd}"), None, Ok(B));
        check(&arm, None, Err("no image in it is for amd64 (it has `arm64`)"));
        let two = format!("{},{}", named(A, "one"), named(B, "two"));
        check(&two, None, Err("several images in it: say which with `reference` (it has `one`, `two`)"));
        check(&two, Some("two"), Ok(B));
        check(&two, Some("three"), Err("no image in it is named `three`"));
        check(&format!("{0},{0}", entry(A, "")), None, Ok(A));
        check("", None, Err("there is no image in it"));
    }

    #[test]
    fn nothing_but_a_digest_becomes_part_of_a_path() {
        let long = format!("sha256:{}", "A".repeat(64));
        for digest in ["", "sha256:", "md5:00", "sha256:../../../../etc/shadow", &long, &format!("{A}/..")] {
            let layers = entry(digest, "");
            let text = format!("{{\"config\": {}, \"layers\": [{layers}]}}", entry(A, ""));
            assert!(manifest(text.as_bytes()).is_err(), "{digest}");
        }
        let text = format!("{{\"config\": {0}, \"layers\": [{0}]}}", entry(A, ""));
        let (_, layers) = manifest(text.as_bytes()).expect("a good one");
        assert_eq!(layers[0].name, PathBuf::from(format!("blobs/sha256/{}", &A[7..])));
    }

    #[test]
    fn sizes_and_counts_have_bounds() {
        let negative = entry(A, "").replace('7', "-7");
        assert!(choose(index(&negative).as_bytes(), None, "amd64").expect_err("negative").contains("-7"));
        let many = vec![entry(A, ""); LAYERS_MAX + 1].join(",");
        let text = format!("{{\"config\": {}, \"layers\": [{many}]}}", entry(A, ""));
        assert!(manifest(text.as_bytes()).expect_err("too many").contains("128 layers"));
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        assert!(manifest(deep.as_bytes()).is_err());
    }

    #[test]
    fn saved_images_are_found_by_their_tags() {
        let text = r#"[{"Config": "c.json", "Layers": ["x/layer.tar"], "RepoTags": ["a:1"]},
                       {"Config": "d.json", "Layers": [], "RepoTags": null}]"#;
        let found = saved(text.as_bytes(), Some("a:1")).expect("an image");
        assert_eq!(found, SavedImage { config: "c.json".into(), layers: vec!["x/layer.tar".into()] });
        assert!(saved(text.as_bytes(), None).expect_err("two").contains("say which"));
        assert!(saved(b"[]", None).expect_err("none").contains("no image"));
    }

    #[test]
    fn a_configuration_says_what_runs() {
        let text = format!(
            r#"{{"architecture": "amd64", "rootfs": {{"diff_ids": ["{A}"]}}, "config":
               {{"User": "www", "Env": ["A=b=c", "D"], "Entrypoint": ["/x"], "Cmd": ["y"], "WorkingDir": null}}}}"#
        );
        let (architecture, diffs, run) = configuration(text.as_bytes()).expect("a good one");
        assert_eq!((architecture.as_str(), diffs.len()), ("amd64", 1));
        assert_eq!(run.command, ["/x", "y"]);
        assert_eq!(run.env, [("A".to_owned(), "b=c".to_owned()), ("D".to_owned(), String::new())]);
        assert_eq!((run.user.as_str(), run.workdir.as_str()), ("www", ""));
    }
}
