//! The one table of keys: what may be written, what it means, what a change of it costs.
//!
//! Parsing, the plan's costs, `explain`, the JSON schema and the man page all come from these
//! rows. Owns no value and reads no file.

mod explain;
mod schema;
mod show;
mod table;
mod template;

use std::collections::HashMap;
use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

pub use explain::{explain, man};
pub use schema::{host_schema, jail_schema, template_schema};
pub use show::{show, toml_text};
pub use table::{HOST_KEYS, KEYS};
pub use template::{FILE_KEYS, TEMPLATE_KEYS, VARIANTS};

/// What a change of a key costs a running jail, cheapest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cost {
    /// Nothing running is touched: only the record changes.
    None,
    /// Set on the running jail.
    Live,
    /// A command runs inside.
    Reload,
    Restart,
    /// The root is made anew.
    Rebuild,
}

impl Cost {
    pub fn as_str(self) -> &'static str {
        match self {
            Cost::None => "none",
            Cost::Live => "live",
            Cost::Reload => "reload",
            Cost::Restart => "restart",
            Cost::Rebuild => "rebuild",
        }
    }
}

/// One row.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// Dotted, as in `limits.memory`; in the host's table `*` stands for a name of the user's.
    pub name: &'static str,
    pub kind: Kind,
    /// For a person: what holds when the key is absent.
    pub default: &'static str,
    pub cost: Cost,
    pub built: Built,
    /// What it becomes, for who knows the kernel.
    pub linux: &'static str,
    /// One sentence.
    pub doc: &'static str,
}

/// How much of a key has its effect in this version. What has none is an error, never ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Built {
    All,
    Nothing,
    /// Only the value 0.
    Zero,
}

/// What may be written as a key's value, and its normal form (always JSON).
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    Bool,
    /// `512M`; normal form bytes.
    Size {
        min: u64,
        max: u64,
    },
    /// `10s`; normal form milliseconds.
    Duration {
        min: u64,
        max: u64,
    },
    /// `1.5`; normal form thousandths.
    Cpus,
    Count {
        min: u64,
        max: u64,
    },
    Choice(&'static [&'static str]),
    Text(Word),
    List {
        of: Word,
        min: usize,
        max: usize,
    },
    /// Environment variables.
    StringMap,
    /// setrlimit(2) names to numbers.
    Rlimits,
    /// `[[mount]]` and the like: a list of tables with these rows.
    Tables(&'static [Key]),
    /// Anything, for templates.
    Vars,
    /// A whole set of jail keys, in stockade.toml.
    Jail,
    /// What follows a changed file, in template.toml.
    OnChange,
}

/// What one string may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// Not empty and without a NUL byte.
    Line,
    /// Like `Line`, but may be empty: an argument.
    Argument,
    JailName,
    Template,
    /// Absolute, without `..`.
    Path,
    /// Relative, below each cgroup hierarchy's root.
    CgroupPath,
    HostName,
    MachineId,
    User,
    Signal,
    CpuList,
    Interface,
    Network,
    Ip,
    Mac,
    Publish,
    MountOption,
    Device,
    Capability,
    Unsafe,
}

impl Kind {
    /// The value as it is named in error messages and the man page.
    pub fn noun(self) -> &'static str {
        match self {
            Kind::Bool => "true or false",
            Kind::Size { .. } => "a size such as \"512M\"",
            Kind::Duration { .. } => "a duration such as \"10s\"",
            Kind::Cpus => "a number of CPUs such as 1.5",
            Kind::Count { .. } => "a whole number",
            Kind::Choice(_) => "one of a few words",
            Kind::Text(word) => word.noun(),
            Kind::List { .. } => "a list of strings",
            Kind::StringMap => "a table of strings",
            Kind::Rlimits => "a table of numbers",
            Kind::Tables(_) => "a list of tables",
            Kind::Vars => "a table of anything",
            Kind::Jail => "a table of jail keys",
            Kind::OnChange => "\"restart\", \"none\" or { reload = [\"command\", …] }",
        }
    }
}

impl Word {
    pub fn noun(self) -> &'static str {
        match self {
            Word::Line | Word::Argument => "a string",
            Word::JailName => "a jail name",
            Word::Template => "a template name",
            Word::Path => "an absolute path",
            Word::CgroupPath => "a relative path",
            Word::HostName => "a host name",
            Word::MachineId => "32 hexadecimal digits",
            Word::User => "a user name or number",
            Word::Signal => "a signal name",
            Word::CpuList => "a list of CPUs such as \"0-3,6\"",
            Word::Interface => "an interface name",
            Word::Network => "an address such as \"10.77.0.10/24\"",
            Word::Ip => "an IP address",
            Word::Mac => "a MAC address",
            Word::Publish => "a published port such as \"0.0.0.0:8080:80/tcp\"",
            Word::MountOption => "a mount option",
            Word::Device => "a device below /dev",
            Word::Capability => "a capability",
            Word::Unsafe => "an unsafe permission",
        }
    }
}

impl Key {
    /// The name's last part, as it is written inside its table.
    pub fn leaf(&self) -> &'static str {
        self.name.rsplit('.').next().unwrap_or(self.name)
    }

    /// The table it is written in, empty at the top.
    pub fn table(&self) -> &'static str {
        self.name.rsplit_once('.').map_or("", |(table, _)| table)
    }
}

/// What each dotted name is: a row, or `None` for a table of rows. A thousand definitions ask for
/// twenty names each, so they are not searched for.
static NAMES: LazyLock<HashMap<&'static str, Option<&'static Key>>> = LazyLock::new(|| {
    let tables = KEYS.iter().map(|key| (key.table(), None)).filter(|(table, _)| !table.is_empty());
    tables.chain(KEYS.iter().map(|key| (key.name, Some(key)))).collect()
});

/// What may be written right inside `table`, keys and inner tables.
pub fn words(rows: &'static [Key], table: &str) -> Vec<&'static str> {
    let below = rows.iter().filter_map(|key| schema::below(key.name, table));
    let mut words: Vec<&str> = below.map(|rest| rest.split('.').next().unwrap_or(rest)).collect();
    words.dedup();
    words
}

/// The row of a jail key by its dotted name.
pub fn find(name: &str) -> Option<&'static Key> {
    NAMES.get(name).copied().flatten()
}

/// What a change of the key costs; a key of no row (an older version's record) costs a restart.
pub fn cost(name: &str) -> Cost {
    find(name).map_or(Cost::Restart, |key| key.cost)
}

/// Whether `name` is a table of jail keys, such as `limits`.
pub fn is_table(name: &str) -> bool {
    NAMES.get(name).is_some_and(Option::is_none)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_unique_and_say_something() {
        let mut seen = std::collections::BTreeSet::new();
        for key in table::all() {
            assert!(seen.insert(key.name), "{} twice", key.name);
            assert!(key.doc.ends_with('.') && key.doc.len() > 10, "{}", key.name);
            assert!(!key.default.is_empty() && !key.linux.is_empty(), "{}", key.name);
        }
    }

    #[test]
    fn costs_are_ordered_and_looked_up() {
        assert!(Cost::None < Cost::Live && Cost::Restart < Cost::Rebuild);
        assert_eq!(cost("limits.memory"), Cost::Live);
        assert_eq!(cost("template"), Cost::Rebuild);
        assert_eq!(cost("gone.in.this.version"), Cost::Restart);
        assert!(is_table("limits") && !is_table("memory") && !is_table(""));
    }
}
