//! `base.layers` and `base.run`, as an import writes them.

use super::{Item, Reader};
use crate::keys::{self, TEMPLATE_KEYS};
use crate::template::hex;
use crate::template::image::Run;

/// The kernel stacks no more than 500, and the jail's own lie over these.
const LAYERS_MAX: usize = 250;

impl Reader<'_> {
    pub fn layers(&mut self, item: &Item<'_>) -> Option<Vec<String>> {
        let list = item.get_ref().as_array().filter(|list| !list.is_empty() && list.len() <= LAYERS_MAX);
        let Some(list) = list else {
            self.at(item.span(), format!("this has to be a list of 1 to {LAYERS_MAX} layers"));
            return None;
        };
        list.iter().map(|layer| self.layer(layer)).collect()
    }

    fn layer(&mut self, item: &Item<'_>) -> Option<String> {
        let text = self.string(item)?;
        if !is_layer(&text) {
            self.at(item.span(), "this has to be the name of a layer: sha256- and 64 hexadecimal digits");
            return None;
        }
        Some(text)
    }

    /// Each of them may be absent, and arguments empty.
    pub fn run(&mut self, item: &Item<'_>) -> Option<Run> {
        let Some(table) = item.get_ref().as_table() else {
            self.mismatch(item, "a table");
            return None;
        };
        self.only(table, &keys::words(TEMPLATE_KEYS, "base.run"));
        let mut text = |key: &str| table.get(key).map_or(Some(String::new()), |item| self.string(item));
        let (user, workdir) = (text("user"), text("workdir"));
        let env = table.get("env").map_or(Some(Vec::new()), |item| self.environment(item));
        let command = table.get("command").map_or(Some(Vec::new()), |item| self.arguments(item));
        Some(Run { user: user?, workdir: workdir?, env: env?, command: command? })
    }

    fn arguments(&mut self, item: &Item<'_>) -> Option<Vec<String>> {
        let words = item.get_ref().as_array();
        let words = words
            .and_then(|list| list.iter().map(|word| word.get_ref().as_str()).collect::<Option<Vec<_>>>());
        let words = words.filter(|words| words.iter().all(|word| !word.contains('\0')));
        if words.is_none() {
            self.mismatch(item, "a list with a command and its arguments");
        }
        Some(words?.into_iter().map(ToOwned::to_owned).collect())
    }
}

/// Whether it can be the name of a layer, and so part of a path.
pub fn is_layer(text: &str) -> bool {
    let digits = text.strip_prefix("sha256-").unwrap_or_default();
    digits.len() == hex(&[0; 32]).len()
        && digits.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}
