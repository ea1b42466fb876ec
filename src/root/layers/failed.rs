//! Why a layer could not be made: a text beside the layers for whoever looks, until one who builds
//! it fares better. It stands for nothing but what is shown.

use std::fs;
use std::path::Path;

const FAILED: &str = ".failed-";
/// Bytes of a text that are kept.
const TEXT_MAX: usize = 4_096;

/// The layer that an entry of `layers/` tells of.
pub(super) fn id(name: &str) -> Option<&str> {
    name.strip_prefix(FAILED)
}

/// What cannot be written down is told all the same, by the one who built.
pub(super) fn note(layers: &Path, id: &str, error: &anyhow::Error) {
    let mut text = format!("{error:#}");
    text.truncate(text.floor_char_boundary(TEXT_MAX));
    let _ = fs::write(layers.join(format!("{FAILED}{id}")), text);
}

pub(super) fn read(layers: &Path, id: &str) -> Option<String> {
    fs::read_to_string(layers.join(format!("{FAILED}{id}"))).ok()
}

/// Most often there is none.
pub fn forget(state: &Path, id: &str) {
    let _ = fs::remove_file(state.join("layers").join(format!("{FAILED}{id}")));
}
