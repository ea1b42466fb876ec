//! What an archive of a jail says about itself, before all the rest.
//!
//! An archive is a zstd tar: `manifest.json`, `definition.toml`, `templates/NAME/…`, of one that
//! stands alone `files/NUMBER` and `layers/NUMBER/…` as `alone` counts them, then `writes/…`
//! and last `checksum`, the BLAKE3 digest of the tar stream before it. Owners are ids inside the jail.

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};

use crate::jail::JailName;
use crate::storage::Kind;
use crate::template::imported::Alone;
use crate::template::is_layer;

pub const MANIFEST: &str = "manifest.json";
pub const DEFINITION: &str = "definition.toml";
pub const TEMPLATES: &str = "templates";
pub const FILES: &str = "files";
pub const LAYERS: &str = "layers";
pub const WRITES: &str = "writes";
pub const CHECKSUM: &str = "checksum";
/// Of these archives; another one is refused by name.
const SCHEMA: u32 = 1;
/// The largest manifest.
pub const MANIFEST_BYTES_MAX: u64 = 1 << 20;
/// Layers and templates of one jail.
const PARTS_MAX: usize = 1_000;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    pub schema: u32,
    /// Of the stockade that wrote it.
    pub version: String,
    pub name: JailName,
    /// The templates below the jail, its own first; `host` has no directory.
    pub templates: Vec<JailName>,
    /// Ids of the layers, topmost first.
    pub layers: Vec<String>,
    pub storage: Kind,
    /// The first of its ids on the host it comes from.
    pub first_id: u32,
    /// The snapshot it was taken from.
    pub snapshot: Option<String>,
    /// Its own writes are part of the archive.
    pub writes: bool,
    /// Of its own writes, counted before they were packed, when it may not have written any yet;
    /// what snapshots have set aside is counted with what now lies over it.
    pub entries: u64,
    pub bytes: u64,
    /// What goes along so that the jail needs no template of the host it comes to.
    #[serde(default)]
    pub alone: Option<Alone>,
}

impl Manifest {
    pub fn schema() -> u32 {
        SCHEMA
    }

    pub fn parse(text: &[u8]) -> anyhow::Result<Self> {
        #[derive(Deserialize)]
        struct Schema {
            schema: u32,
        }
        let head: Schema = serde_json::from_slice(text).context("it is no archive of a jail")?;
        ensure!(head.schema == SCHEMA, "written by another version (schema {})", head.schema);
        let manifest: Self = serde_json::from_slice(text).context("read the manifest")?;
        let alone = manifest.alone.as_ref();
        let more = alone.map_or(0, |alone| alone.layers.len() + alone.files.len());
        let parts = manifest.templates.len() + manifest.layers.len() + more;
        ensure!(parts <= PARTS_MAX, "more than {PARTS_MAX} layers");
        let brought = alone.into_iter().flat_map(|alone| &alone.layers);
        let brought = brought.flat_map(|layer| [&layer.id, &layer.content]);
        for layer in manifest.layers.iter().chain(brought) {
            ensure!(is_layer(layer), "`{}` names no layer", layer.escape_debug());
        }
        Ok(manifest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_is_read_as_it_was_written_and_another_is_refused() {
        let manifest = Manifest {
            schema: SCHEMA,
            version: "0.1.0".into(),
            name: JailName::new("web").unwrap(),
            templates: vec![JailName::new("debian").unwrap()],
            layers: vec![format!("sha256-{}", "a".repeat(64))],
            storage: Kind::Overlay,
            first_id: 65_536,
            snapshot: None,
            writes: true,
            entries: 1,
            bytes: 2,
            alone: None,
        };
        let text = serde_json::to_string(&manifest).unwrap();
        assert_eq!(Manifest::parse(text.as_bytes()).unwrap(), manifest);
        for (from, to) in [
            ("\"schema\":1", "\"schema\":2"),
            ("\"web\"", "\"../web\""),
            ("\"debian\"", "\"a/b\""),
            ("sha256-a", "../../-a"),
            ("{", "["),
        ] {
            assert!(text.contains(from), "{from}");
            assert!(Manifest::parse(text.replacen(from, to, 1).as_bytes()).is_err(), "{to}");
        }
    }
}
