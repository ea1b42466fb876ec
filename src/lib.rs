//! stockade: declarative jails for Linux.

pub mod desired;
pub mod jail;
pub mod keys;
pub mod live;
pub mod plan;
pub mod spec;
pub mod step;

pub mod definition;
pub mod diagnostic;
pub mod expression;
pub mod resolve;
pub mod status;
pub mod template;

pub mod cli;
pub mod cores;
pub mod daemon;
pub mod execute;
pub mod init;
pub mod inside;
pub mod journal;
pub mod keeper;
pub mod limits;
pub mod log;
pub mod network;
pub mod pass;
pub mod probe;
pub mod root;
pub mod security;
pub mod source;
pub mod sys;
pub mod terminal;
pub mod watch;
