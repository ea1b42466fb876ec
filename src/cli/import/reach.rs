//! What an archive could do to the host, by the keys of its definition and by its templates.

use std::path::PathBuf;

use serde_json::Value;

use crate::desired::Paths;
use crate::jail::{JailName, Settings};
use crate::root::import::Place;
use crate::source;
use crate::template::imported::Alone;
use crate::template::{Base, Template};

/// What a definition may let its jail, or a line of its own, do on the host.
const REACHING: &[&str] = &[
    "path",
    "mount",
    "allow.devices",
    "allow.host_network",
    "allow.kmsg",
    "allow.settime",
    "security.userns",
    "security.unsafe",
    "security.seccomp",
    "exec.prepare",
    "exec.prestart",
    "exec.created",
    "exec.poststart",
    "exec.prestop",
    "exec.poststop",
    "exec.release",
];

pub fn keys(settings: &Settings) -> Vec<String> {
    let is_set = |key: &&&str| {
        let harmless = |value: &Value| match value {
            Value::Bool(on) => *on == (**key == "security.userns"),
            Value::Array(all) => all.is_empty(),
            Value::String(text) => text == "default",
            _ => false,
        };
        settings.get(**key).is_some_and(|value| !harmless(value))
    };
    REACHING.iter().filter(is_set).map(|key| (*key).to_owned()).collect()
}

/// Nodes in a layer, which no jail can open, but who reads the state directory as root.
pub fn layers(alone: &Alone) -> Option<String> {
    alone.layers.iter().any(|layer| layer.devices).then(|| "device nodes in its layers".to_owned())
}

/// Bases of new templates that read this host's files, or run something on it.
pub fn bases(paths: &Paths, new: &Place, names: &[JailName]) -> Vec<String> {
    let (file, text) = (PathBuf::from("import.toml"), String::new());
    let input = source::with_more(paths, file, text, &new.path);
    let harmless =
        |template: &Template| matches!(template.base, Base::Host | Base::Template(_) | Base::Imported);
    let strange =
        |name: &&JailName| input.templates.get(name.as_str()).is_none_or(|template| !harmless(template));
    names.iter().filter(strange).map(|name| format!("the base of template {name}")).collect()
}
