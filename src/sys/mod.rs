//! Thin calls to the kernel; nothing is decided here.

pub mod confine;
