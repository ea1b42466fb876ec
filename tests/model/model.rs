//! What the rules say: which jails must run, with what, and which of them are still the same ones.
//! It knows files and what happened to them, and no kernel, clock or daemon.

pub const NAMES: [&str; 5] = ["base", "one", "two", "three", "four"];
/// The jail that others depend on; the first, so that going through them in order is enough.
pub const BASE: usize = 0;

/// One definition, by the things that can be told from outside.
#[derive(Clone, Debug, PartialEq)]
pub struct Definition {
    /// MiB; changed live.
    pub memory: Option<u32>,
    /// Changed live.
    pub hostname: u8,
    /// What the main process is told: a change is a restart.
    pub argument: u8,
    /// With one, the jail has the template that renders it; changed live.
    pub word: Option<u8>,
    pub enabled: bool,
    /// On [`BASE`].
    pub depends: bool,
    /// Not restarted when it ends by itself.
    pub once: bool,
}

impl Definition {
    pub fn text(&self) -> String {
        let mut text = String::new();
        let template = if self.word.is_some() { "page" } else { "host" };
        text += &format!("template = \"{template}\"\n");
        if self.depends {
            text += &format!("depend = [\"{}\"]\n", NAMES[BASE]);
        }
        if !self.enabled {
            text += "enabled = false\n";
        }
        text += &format!("[host]\nhostname = \"h{}\"\n", self.hostname);
        text += &format!("[exec]\ncommand = [\"sleep\", \"{}\"]\n", self.sleeps());
        if let Some(memory) = self.memory {
            text += &format!("[limits]\nmemory = \"{memory}M\"\n");
        }
        if let Some(word) = self.word {
            text += &format!("[vars]\nword = {word}\n");
        }
        let policy = if self.once { "no" } else { "always" };
        text + &format!("[restart]\npolicy = \"{policy}\"\ndelay = \"100ms\"\nmax = 1000\n")
    }

    pub fn sleeps(&self) -> u32 {
        100_000 + u32::from(self.argument)
    }
}

#[derive(Clone, Debug, PartialEq)]
pub enum File {
    Absent,
    /// There, and in error.
    Broken,
    Good(Definition),
}

/// What a jail was last given.
#[derive(Clone, Debug, PartialEq)]
pub struct Given {
    pub definition: Definition,
    /// The rendered page, of those that have one.
    pub page: Option<String>,
    /// The host's default for `limits.processes`.
    pub processes: Option<u32>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Running {
    pub given: Given,
    /// Another number is another process.
    pub instance: u32,
    /// Without its keeper.
    pub orphan: bool,
}

#[derive(Clone, Debug)]
pub struct Jail {
    pub file: File,
    /// Stopped by hand.
    pub held: bool,
    pub running: Option<Running>,
    /// What it was given when it ended by itself, if its policy lets that stand.
    pub ended: Option<Given>,
    /// By what it starts again while its file is in error.
    pub last: Last,
    /// Ends in a row: each makes the next start wait twice as long.
    pub kills: u32,
    /// Whether it still is the same one is not known: its disk was full while it had to change, or
    /// it depends on when a pass looked.
    pub doubtful: bool,
}

/// The last good definition that was in force.
#[derive(Clone, Debug, PartialEq)]
pub enum Last {
    Nothing,
    Given(Given),
    /// Its disk was full when it had to start.
    Unknown,
}

#[allow(clippy::struct_excessive_bools)] // They are independent.
#[derive(Clone, Debug)]
pub struct Model {
    pub jails: Vec<Jail>,
    /// The template's text has this in it.
    pub page: u8,
    pub template_broken: bool,
    pub host_broken: bool,
    pub processes: Option<u32>,
    pub daemon: bool,
    /// The disk with the state directory.
    pub full: bool,
    instances: u32,
}

/// What the files ask of one jail.
enum Wish {
    Leave,
    Gone,
    Disabled,
    Down,
    Up(Given),
}

impl Model {
    pub fn new() -> Self {
        let (file, last) = (File::Absent, Last::Nothing);
        let jail = Jail { file, held: false, running: None, ended: None, last, kills: 0, doubtful: false };
        Self {
            jails: vec![jail; NAMES.len()],
            page: 0,
            template_broken: false,
            host_broken: false,
            processes: None,
            daemon: true,
            full: false,
            instances: 0,
        }
    }

    /// Before each step: what was in doubt has been looked at.
    pub fn begin(&mut self) {
        for jail in self.jails.iter_mut().filter(|_| !self.full) {
            jail.doubtful = false;
        }
    }

    /// What a daemon that has looked will have made of it.
    pub fn settle(&mut self) {
        if !self.daemon {
            return;
        }
        if self.full {
            return self.mark_doubtful();
        }
        let mut base_restarts = false;
        for at in 0..self.jails.len() {
            let was = self.jails[at].running.as_ref().map(|running| running.instance);
            self.settle_one(at, base_restarts);
            let is = self.jails[at].running.as_ref().map(|running| running.instance);
            base_restarts |= at == BASE && was.is_some() && is.is_some() && was != is;
        }
    }

    fn settle_one(&mut self, at: usize, base_restarts: bool) {
        let wish = self.wish(at);
        let next = self.instances + 1;
        let jail = &mut self.jails[at];
        match wish {
            Wish::Leave => {}
            Wish::Gone => {
                (jail.running, jail.ended, jail.last, jail.kills) = (None, None, Last::Nothing, 0);
            }
            Wish::Disabled => (jail.running, jail.ended, jail.last) = (None, None, Last::Nothing),
            Wish::Down => jail.running = None,
            Wish::Up(given) if jail.ended.as_ref() == Some(&given) => {}
            Wish::Up(given) => {
                // Two passes may see the two edits, of the base and of the dependant.
                let depended = jail.running.as_ref().map(|running| running.given.definition.depends);
                jail.doubtful |= base_restarts && depended.is_some_and(|was| was != given.definition.depends);
                let same = jail.running.as_ref().filter(|running| {
                    let dragged = base_restarts && given.definition.depends;
                    !running.orphan && !dragged && !restarts(&running.given, &given)
                });
                let instance = same.map_or(next, |running| running.instance);
                if same.is_none() && jail.running.as_ref().is_some_and(|running| running.given != given) {
                    jail.kills = 0;
                }
                self.instances = self.instances.max(instance);
                jail.ended = None;
                jail.last = Last::Given(given.clone());
                jail.running = Some(Running { given, instance, orphan: false });
            }
        }
    }

    fn wish(&self, at: usize) -> Wish {
        let jail = &self.jails[at];
        let definition = match &jail.file {
            _ if self.broken(at) => return self.by_last(at),
            File::Good(definition) => definition,
            _ => return Wish::Gone,
        };
        let base = &self.jails[BASE];
        let base_down = match &base.file {
            File::Good(base_definition) => base.held || !base_definition.enabled,
            _ => false,
        };
        if !definition.enabled {
            return Wish::Disabled;
        }
        if jail.held || (definition.depends && base_down) {
            return Wish::Down;
        }
        let page = definition.word.map(|word| page_text(self.page, word));
        Wish::Up(Given { definition: definition.clone(), page, processes: self.processes })
    }

    /// In error: what runs is left, what has ended starts again as it was.
    fn by_last(&self, at: usize) -> Wish {
        let jail = &self.jails[at];
        match &jail.last {
            _ if self.host_broken => Wish::Leave,
            _ if jail.held => Wish::Down,
            Last::Given(given) if jail.running.is_none() => {
                let can = !given.definition.depends || self.jails[BASE].running.is_some();
                if can { Wish::Up(given.clone()) } else { Wish::Leave }
            }
            _ => Wish::Leave,
        }
    }

    /// Its file, or something that its file needs, is in error.
    pub fn broken(&self, at: usize) -> bool {
        let jail = &self.jails[at];
        if self.host_broken {
            return true;
        }
        match &jail.file {
            File::Absent => false,
            File::Broken => true,
            File::Good(definition) => {
                let template = definition.word.is_some() && self.template_broken;
                let base = &self.jails[BASE].file;
                template || definition.depends && (*base == File::Absent || self.broken(BASE))
            }
        }
    }

    /// With a full disk a change may come about or fail, but what has none must not be touched.
    fn mark_doubtful(&mut self) {
        let mut after = self.clone();
        after.full = false;
        after.settle();
        for (jail, after) in self.jails.iter_mut().zip(after.jails) {
            if jail.running != after.running {
                (jail.doubtful, jail.last) = (true, Last::Unknown);
            }
        }
    }

    /// The process of a jail ended by itself.
    pub fn end(&mut self, at: usize) {
        let jail = &mut self.jails[at];
        let Some(running) = jail.running.take() else { return };
        jail.kills += 1;
        // Without its keeper nobody saw how it ended.
        if running.given.definition.once && !running.orphan {
            jail.ended = Some(running.given);
        }
    }

    /// `start` by hand of a jail and what it depends on.
    pub fn start(&mut self, at: usize) {
        let depends = matches!(&self.jails[at].file, File::Good(definition) if definition.depends);
        for other in [Some(at), depends.then_some(BASE)].into_iter().flatten() {
            let jail = &mut self.jails[other];
            (jail.held, jail.ended, jail.kills) = (false, None, 0);
        }
    }

    /// Whether `start` and `stop` by hand are sure to succeed.
    pub fn startable(&self, at: usize) -> bool {
        let enabled = |at: usize| match &self.jails[at].file {
            File::Good(definition) => definition.enabled && !self.broken(at),
            _ => false,
        };
        let depends = matches!(&self.jails[at].file, File::Good(definition) if definition.depends);
        !self.full && enabled(at) && (!depends || enabled(BASE))
    }
}

/// What of a change cannot be done to a running jail.
fn restarts(old: &Given, new: &Given) -> bool {
    let (old, new) = (&old.definition, &new.definition);
    old.argument != new.argument || old.word.is_some() != new.word.is_some()
}

pub fn page_text(page: u8, word: u8) -> String {
    format!("page {page} of {word}\n")
}
