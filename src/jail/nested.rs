//! Dotted keys as the tables they stand for, read by serde where they lie: a thousand jails are
//! built at every look, and a tree of copies for each would cost more than the rest of it.

use std::collections::btree_map;
use std::iter::Peekable;

use serde::Deserialize as _;
use serde::de::value::{MapAccessDeserializer, MapDeserializer};
use serde::de::{DeserializeSeed, IntoDeserializer, MapAccess};
use serde_json::{Error, Value};

use super::{Jail, JailName, Settings};

/// Reads a jail from its keys. Only the first two parts of a key nest: `exec.env` is one table.
pub fn jail(name: &JailName, settings: &Settings) -> Result<Jail, Error> {
    let keys = Keys { name: Some(name), open: None, rest: settings.iter().peekable() };
    Jail::deserialize(MapAccessDeserializer::new(keys))
}

/// The top of the tree. Keys of one table follow one another, for the settings are sorted.
struct Keys<'s> {
    /// Given first, as if it were a key.
    name: Option<&'s JailName>,
    /// The key whose value comes next, up to its dot.
    open: Option<&'s str>,
    rest: Peekable<btree_map::Iter<'s, String, Value>>,
}

impl<'s> Keys<'s> {
    /// The members of `table`, all of which come next.
    fn members(&mut self, table: &str) -> Vec<(&'s str, &'s Value)> {
        let inside = |key: &'s str| key.strip_prefix(table)?.strip_prefix('.');
        let mut members = Vec::new();
        while let Some((key, value)) = self.rest.peek()
            && let Some(leaf) = inside(key)
        {
            members.push((leaf, *value));
            self.rest.next();
        }
        members
    }
}

impl<'s> MapAccess<'s> for Keys<'s> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'s>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        self.open = if self.name.is_some() {
            Some("name")
        } else {
            self.rest.peek().map(|(key, _)| key.split_once('.').map_or(key.as_str(), |(table, _)| table))
        };
        self.open.map(|key| seed.deserialize(key.into_deserializer())).transpose()
    }

    fn next_value_seed<V: DeserializeSeed<'s>>(&mut self, seed: V) -> Result<V::Value, Error> {
        if let Some(name) = self.name.take() {
            return seed.deserialize(name.as_str().into_deserializer());
        }
        let open = self.open.unwrap_or_default();
        match self.rest.next_if(|(key, _)| *key == open) {
            Some((_, value)) => seed.deserialize(value),
            None => seed.deserialize(MapDeserializer::new(self.members(open).into_iter())),
        }
    }
}
