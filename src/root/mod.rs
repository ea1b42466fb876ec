//! A jail's root file system on disk: shared layers, the jail's own writes, the files stockade owns.
//!
//! Shell. Nothing here decides what a root is made of; `template` has done that. Every path below
//! a root is resolved inside it by descriptor, and nothing is ever chowned recursively.

pub mod files;
pub mod layers;
pub mod own;
mod removal;

pub use own::{discard, prepare};
