//! What a long copy or build shows: nothing for a second, then how far it is.

use std::cell::Cell;
use std::io::IsTerminal;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::Options;
use crate::desired::{Layer, LayerSource};
use crate::execute::Host;
use crate::root::layers::WAITING;

/// How long a thing is done in silence.
const SILENCE: Duration = Duration::from_secs(1);
/// Redraws a second, at most.
const HERTZ: u8 = 10;
const TICK: Duration = Duration::from_millis(100);

/// Counts bytes; with a known total there is a bar.
pub struct Progress {
    bar: ProgressBar,
    begun: Instant,
    /// There is somebody to look, and it is not shown yet.
    waits: Cell<bool>,
}

impl Progress {
    pub fn new(options: &Options, what: &str, total: Option<u64>) -> Result<Self> {
        let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::hidden());
        bar.set_style(ProgressStyle::with_template(match total {
            Some(_) => "{prefix}: {bar:30} {bytes} of {total_bytes}, {bytes_per_sec} {wide_msg}",
            None => "{spinner} {prefix}: {bytes}, {bytes_per_sec}, {elapsed} {wide_msg}",
        })?);
        bar.set_prefix(what.to_owned());
        let looked_at = std::io::stderr().is_terminal() && !options.json;
        Ok(Self { bar, begun: Instant::now(), waits: Cell::new(looked_at) })
    }

    pub fn add(&self, bytes: u64) {
        if self.waits.get() && self.begun.elapsed() > SILENCE {
            self.bar.set_draw_target(ProgressDrawTarget::stderr_with_hz(HERTZ));
            self.waits.set(false);
        }
        self.bar.inc(bytes);
    }

    pub fn bytes(&self) -> u64 {
        self.bar.position()
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// Builds one layer of a template, those below it being there, and shows that it goes on. With
/// `aloud`, what the programs say that make it is shown line by line as well.
pub fn build(options: &Options, aloud: bool, host: &Host, template: &str, layer: &Layer) -> Result<()> {
    let shown = Building::new(options, aloud, template, layer)?;
    let (done, wait) = channel::<()>();
    let slow = &shown;
    let built = std::thread::scope(|scope| {
        // Where there is no thread to be had, a build is shown by what it says alone.
        let _ = std::thread::Builder::new().spawn_scoped(scope, move || {
            if wait.recv_timeout(SILENCE) == Err(RecvTimeoutError::Timeout) {
                slow.begin();
            }
        });
        let built = host.layers(std::slice::from_ref(layer), &|line| shown.line(line));
        drop(done);
        built
    });
    shown.end(built.is_ok());
    built.map(drop)
}

/// What a layer is made from, in a phrase.
pub fn made_from(source: &LayerSource) -> String {
    match source {
        LayerSource::Host => "the host's /usr".to_owned(),
        LayerSource::Directory(path) => format!("directory {}", path.display()),
        LayerSource::Tar { path, .. } => format!("tar {}", path.display()),
        LayerSource::Image { archive, blob, .. } => {
            format!("image {} {}", archive.display(), &blob.sha256[..12])
        }
        LayerSource::Debootstrap(wanted) => format!("debootstrap {}", wanted.suite),
        LayerSource::Build(build) => format!("run {}", build.run.join("; ")),
        LayerSource::Files(files) => format!("{} files of its own", files.len()),
        LayerSource::Built => "an earlier start or an import".to_owned(),
    }
}

/// One line on a terminal for as long as it lasts, a few lines elsewhere.
struct Building<'b> {
    template: &'b str,
    layer: &'b Layer,
    bar: Option<ProgressBar>,
    /// Lines for who is no terminal, and no program that wants JSON.
    plain: bool,
    /// Programs make the layer, and are heard.
    talks: bool,
    begun: Instant,
    last: Mutex<String>,
}

impl<'b> Building<'b> {
    fn new(options: &Options, aloud: bool, template: &'b str, layer: &'b Layer) -> Result<Self> {
        let is_terminal = std::io::stderr().is_terminal();
        let bar = (is_terminal && !options.json)
            .then(|| -> Result<ProgressBar> {
                let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
                bar.set_style(ProgressStyle::with_template("{spinner} {prefix}: {wide_msg} {elapsed}")?);
                bar.set_prefix(format!("template {template}"));
                bar.set_message(made_from(&layer.source));
                Ok(bar)
            })
            .transpose()?;
        let talks = aloud && matches!(layer.source, LayerSource::Debootstrap(_) | LayerSource::Build(_));
        let plain = bar.is_none() && !options.json;
        Ok(Self { template, layer, bar, plain, talks, begun: Instant::now(), last: Mutex::default() })
    }

    fn is_slow(&self) -> bool {
        self.begun.elapsed() > SILENCE
    }

    fn begin(&self) {
        if let Some(bar) = &self.bar {
            bar.set_draw_target(ProgressDrawTarget::stderr_with_hz(HERTZ));
            bar.enable_steady_tick(TICK);
        } else if self.plain {
            self.say(&format!("building {}", made_from(&self.layer.source)));
        }
    }

    fn line(&self, line: &str) {
        if let Some(bar) = &self.bar {
            if self.talks && line != WAITING {
                self.say_once(line);
            } else {
                bar.set_message(line.to_owned());
            }
        } else if self.plain && (self.talks || line == WAITING) {
            self.say_once(line);
        }
    }

    /// Not what was said just before: who waits says so again and again.
    fn say_once(&self, line: &str) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if *last != line {
            line.clone_into(&mut last);
            self.say(line);
        }
    }

    fn say(&self, line: &str) {
        let line = format!("template {}: {line}", self.template);
        match &self.bar {
            Some(bar) => bar.suspend(|| eprintln!("{line}")),
            None => eprintln!("{line}"),
        }
    }

    fn end(&self, is_built: bool) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        if is_built && self.is_slow() && (self.bar.is_some() || self.plain) {
            self.say(&format!("built in {} s", self.begun.elapsed().as_secs()));
        }
    }
}
