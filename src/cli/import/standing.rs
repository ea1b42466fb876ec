//! A jail that came with its layers: it gets a template of its own, which no other jail of this
//! host uses unless somebody says so.

use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};

use crate::jail::JailName;
use crate::journal;
use crate::template::imported::{self, Alone};

const PREFIX: &str = "imported-";

/// Makes the jail's own template below `place`; gives its name.
pub fn template(alone: &Alone, texts: &[String], jail: &JailName, place: &Path) -> Result<JailName> {
    let name = JailName::new(&format!("{PREFIX}{jail}"))
        .map_err(|_| anyhow!("{jail}: the name of its template would be too long: give it another name"))?;
    ensure!(texts.len() == alone.files.len(), "the archive lacks files of the jail's template");
    let directory = place.join(name.as_str());
    std::fs::create_dir(&directory).with_context(|| format!("make {}", directory.display()))?;
    journal::make_directory(&directory, 0o755)?;
    for (number, (file, text)) in alone.files.iter().zip(texts).enumerate() {
        write(&directory.join(imported::source(number, file)), text)?;
    }
    let text = imported::text(alone).context("write the jail's template")?;
    write(&directory.join("template.toml"), &text)?;
    Ok(name)
}

fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).with_context(|| format!("write {}", path.display()))
}

/// The definition with this template. One that cannot be read stays as it is, to be complained about.
pub fn definition(text: &str, template: &JailName) -> String {
    crate::cli::definition::set(text, "template", template.as_str()).unwrap_or_else(|_| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_definition_gets_its_own_template_and_keeps_all_else() {
        let name = JailName::new("imported-web").unwrap();
        let check = |text: &str, expect: &str| assert_eq!(definition(text, &name), expect);
        check(
            "# mine\ntemplate = \"t\" # so\n[exec]\ncommand = ['x']\n",
            "# mine\ntemplate = \"imported-web\" # so\n[exec]\ncommand = ['x']\n",
        );
        check("persist = true\n[exec]\n", "persist = true\ntemplate = \"imported-web\"\n[exec]\n");
        check("[exec]\n", "template = \"imported-web\"\n[exec]\n");
        check("= broken", "= broken");
    }
}
