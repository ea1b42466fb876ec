//! stockade: declarative jails for Linux.
//!
//! # From above
//!
//! A person writes what jails there are to be; [`pass::pass`] makes it so, once for `apply` and
//! again and again for the daemon. It is one line, of which the middle is pure:
//!
//! ```text
//! files ─source→ texts ─definition→ keys ─resolve→ Desired ┐
//!                                                          ├─plan→ Plan ─execute→ the machine
//! kernel, /run/stockade ───────────probe────────→ Live ────┘
//! ```
//!
//! # Where things are
//!
//! The nouns, which everything else speaks of: [`jail`] (one jail, checked), [`desired`] (all that
//! is wanted), [`live`] (all that is), [`plan`] (the difference), [`step`] (the order of a start
//! and a stop, as tables), [`spec`] (what a keeper is told), and [`keys`], the one table of what
//! may be written, what it means and what a change of it costs.
//!
//! The pure half reads no file, clock or environment and cannot fail, only report:
//! [`definition`] (one file's text to keys with their places), [`expression`] (`{{ … }}`),
//! [`template`] (what a root is made of), [`etc`] (who a jail is told it is), [`resolve`] (all files
//! to [`desired::Desired`]), [`plan()`](plan::plan), [`storage`] (where a jail's writes go),
//! [`security`] (a jail's profile as data), [`status`] (rows of `ls`) and [`diagnostic`] (what is
//! wrong, and where).
//!
//! The shell does and decides nothing: [`source`] reads the config directory, [`probe`] the
//! machine, [`execute`] carries a plan out with [`root`], [`limits`] and [`network`], and
//! [`journal`] keeps what it did. [`keeper`] is the process beside each jail, [`init`] the one that
//! becomes the jail's first, and [`inside`] the way into a running one. [`interrupt`] is what
//! ctrl-C asks of all of these. [`watch`] rings when a file changes, [`daemon`] decides when to make
//! a pass, [`supervisor`] is what systemd hears of it, [`log`] says what came of it, [`terminal`]
//! relays keys and screens, and [`cli`] is what people type. [`sys`] is the kernel's surface, and
//! the only place with unsafe code.
//!
//! # What always holds
//!
//! 1. Nothing is decided in [`execute`], except to skip what depends on a failure.
//! 2. A plan carried out leaves an empty plan, and so does one that was cut off after any step
//!    and made again.
//! 3. An unchanged definition never restarts a jail that runs well.
//! 4. Broken is not absent: a jail whose file has errors is left as it is, and started again as it
//!    was if it ends. What could not be listed proves no absence.
//! 5. One jail's failure stops that jail and its dependants, never the others.
//! 6. Events carry no facts: each pass reads the files and the kernel anew. The journal says what
//!    was done and by which definition; the kernel says what runs.
//! 7. Every wait, queue, retry and size has a named limit.
//! 8. The daemon has threads, so it never runs set-up code between fork and exec: it executes this
//!    program again, as a keeper or for a job beside its passes. No pass waits for what may last.
//! 9. A path below a jail's root is opened through a descriptor of that root, never by joined
//!    strings.
//! 10. What a definition asks for and the host cannot enforce is refused in the plan, never
//!     skipped.

/// As the standard library's, but a line that cannot be written, behind a redirection to a full
/// disk say, is no reason to panic with a jail half-made. In this crate it hides the other.
#[cfg(not(test))]
macro_rules! eprintln {
    ($($text:tt)*) => { $crate::log::tell(&format!("{}\n", format_args!($($text)*))) };
}

#[cfg(not(test))]
macro_rules! eprint {
    ($($text:tt)*) => { $crate::log::tell(&format!($($text)*)) };
}

pub mod desired;
pub mod jail;
pub mod keys;
pub mod live;
pub mod plan;
pub mod spec;
pub mod step;
pub mod storage;

pub mod definition;
pub mod diagnostic;
pub mod etc;
pub mod expression;
pub mod resolve;
pub mod status;
pub mod template;

pub mod cli;
pub mod cores;
pub mod daemon;
pub mod execute;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub mod init;
pub mod inside;
pub mod interrupt;
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
pub mod supervisor;
pub mod sys;
pub mod terminal;
pub mod watch;
