//! The one table of keys.

use serde::{Deserialize, Serialize};

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
