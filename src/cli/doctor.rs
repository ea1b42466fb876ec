//! `doctor`: what this host can do and what not, each line with its remedy.
