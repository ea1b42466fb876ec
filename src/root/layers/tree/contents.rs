//! The contents of new files. In a fresh tree a thread beside the one that makes the files writes
//! and digests what is in them, and gives them what they get last. It knows no paths but to tell
//! of them: a file is its descriptor, wherever an archive has moved the name since.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, anyhow, ensure};

use super::budget::Budget;
use super::metadata::{Attribute, Metadata, own, set_attributes, times};
use crate::root::layers::stream::fill;

/// Bytes handed over at a time.
const BATCH_BYTES: usize = 128 << 10;
/// Steps handed over at a time, some of which hold open files.
const BATCH_STEPS_MAX: usize = 128;
/// Batches on their way.
const BATCHES: usize = 3;

/// What a regular file holds: `parts` of it, offset and length in ascending order, come from
/// `data` one after the other, and the rest are holes.
pub struct Contents<'d> {
    pub size: u64,
    pub parts: Vec<(u64, u64)>,
    pub data: &'d mut dyn Read,
}

/// What is known of a file because it was written here.
pub struct Written {
    pub size: u64,
    pub digest: blake3::Hash,
    /// It was given no extended attributes.
    pub is_bare: bool,
}

/// Files by inode, as they were written: they need not be read again.
pub type Digests = HashMap<u64, Written>;

/// A new file, and what it is to be in the end.
pub struct New {
    pub file: File,
    /// As it is told of.
    pub path: PathBuf,
    pub metadata: Metadata,
    pub attributes: Vec<Attribute>,
}

enum Step {
    /// Gone when it has been taken up.
    Begin(Option<New>),
    /// The next bytes of the batch go there.
    Write { offset: u64, length: usize },
    /// A file with holes is not digested, for these count too. Inode, and whether it has no
    /// attributes, are known when it is written.
    End { size: u64, is_whole: bool, written: (u64, bool) },
    /// A file of that inode was made by other means.
    Forget(u64),
}

#[derive(Default)]
struct Batch {
    bytes: Vec<u8>,
    used: usize,
    steps: Vec<Step>,
}

/// Does the steps, in their order.
#[derive(Default)]
struct Writing {
    file: Option<New>,
}

impl Writing {
    fn all(&mut self, batch: &mut Batch) -> Result<()> {
        let mut bytes = batch.bytes.as_slice();
        for step in &mut batch.steps {
            match step {
                Step::Begin(new) => self.file = new.take(),
                Step::Write { offset, length } => {
                    let (part, behind) = bytes.split_at(*length);
                    bytes = behind;
                    self.file()?.file.write_all_at(part, *offset).context("write")?;
                }
                Step::End { size, is_whole, written } => {
                    let new = self.file()?;
                    let inode = finish(new, (!*is_whole).then_some(*size))?;
                    *written = (inode, new.attributes.is_empty());
                    self.file = None;
                }
                Step::Forget(_) => {}
            }
        }
        Ok(())
    }

    fn file(&self) -> Result<&New> {
        self.file.as_ref().context("a file")
    }

    fn beside(mut self, batches: Receiver<Batch>, written: &SyncSender<Batch>) -> Result<()> {
        for mut batch in batches {
            if let Err(error) = self.all(&mut batch) {
                let shown = self.file.map(|new| new.path.display().to_string());
                return Err(error.context(shown.unwrap_or_default()));
            }
            written.send(batch).map_err(|_| anyhow!("the digesting thread died"))?;
        }
        Ok(())
    }
}

/// Gives its inode.
fn finish(new: &New, size: Option<u64>) -> Result<u64> {
    if let Some(size) = size {
        rustix::fs::ftruncate(&new.file, size).context("set the size")?;
    }
    let inode = own(&new.file, new.metadata)?.st_ino;
    // After the owner, whose change takes a file's capabilities away.
    set_attributes(&new.file, &new.attributes)?;
    rustix::fs::futimens(&new.file, &times(new.metadata.mtime)).context("set times")?;
    Ok(inode)
}

/// Digests what has been written.
fn digest(batches: Receiver<Batch>, done: &SyncSender<Batch>) -> Digests {
    let (mut digests, mut digest) = (Digests::new(), blake3::Hasher::new());
    for mut batch in batches {
        let mut bytes = batch.bytes.as_slice();
        for step in batch.steps.drain(..) {
            match step {
                Step::Begin(_) => drop(digest.reset()),
                Step::Write { length, .. } => {
                    let (part, behind) = bytes.split_at(length);
                    bytes = behind;
                    digest.update(part);
                }
                Step::End { size, is_whole: true, written: (inode, is_bare) } => {
                    digests.insert(inode, Written { size, digest: digest.finalize(), is_bare });
                }
                // The inode may have been that of a file that is gone.
                Step::End { written: (inode, _), .. } | Step::Forget(inode) => drop(digests.remove(&inode)),
            }
        }
        batch.used = 0;
        // A full channel only costs a new allocation.
        let _ = done.try_send(batch);
    }
    digests
}

/// Two threads, for writing and digesting take as long as all the rest.
struct Beside {
    /// Gone when they are to end.
    channels: Option<(SyncSender<Batch>, Receiver<Batch>)>,
    threads: Option<(JoinHandle<Result<()>>, JoinHandle<Digests>)>,
}

impl Beside {
    fn start() -> std::io::Result<Self> {
        let (sender, batches) = sync_channel(BATCHES);
        let (written, to_digest) = sync_channel(BATCHES);
        let (done, used) = sync_channel(3 * BATCHES);
        let digesting = thread::Builder::new().spawn(move || digest(to_digest, &done))?;
        let writing = thread::Builder::new().spawn(move || Writing::default().beside(batches, &written))?;
        Ok(Self { channels: Some((sender, used)), threads: Some((writing, digesting)) })
    }

    fn hand_over(&mut self, batch: &mut Batch) -> Result<()> {
        let (sender, used) = self.channels.as_ref().context("it has ended")?;
        let full = std::mem::replace(batch, used.try_recv().unwrap_or_default());
        if sender.send(full).is_ok() { Ok(()) } else { self.join().map(drop) }
    }

    fn join(&mut self) -> Result<Digests> {
        drop(self.channels.take());
        let (writing, digesting) = self.threads.take().context("it has ended")?;
        let written = writing.join().map_err(|_| anyhow!("the writing thread died"));
        let digests = digesting.join().map_err(|_| anyhow!("the digesting thread died"));
        written??;
        digests
    }
}

impl Drop for Beside {
    /// No thread writes on when nobody is there any more who could use it.
    fn drop(&mut self) {
        if self.threads.is_some() {
            // Whoever had an error has told it.
            let _ = self.join();
        }
    }
}

enum Side {
    Here(Writing),
    Beside(Beside),
}

/// Takes the contents of one file after the other.
pub struct Writer {
    batch: Batch,
    side: Side,
}

impl Writer {
    /// Everything is done when it is asked for.
    pub fn here() -> Self {
        Self { batch: Batch::default(), side: Side::Here(Writing::default()) }
    }

    /// What is asked for is done when [`Self::end`] says so, and an error may come with a later file.
    pub fn beside() -> Self {
        // Without threads it is one after the other.
        let Ok(beside) = Beside::start() else { return Self::here() };
        Self { batch: Batch::default(), side: Side::Beside(beside) }
    }

    /// Fills a new file, and gives it what it is to have.
    pub fn file(&mut self, new: New, contents: Contents<'_>, budget: &mut Budget) -> Result<()> {
        let size = contents.size;
        let is_whole = contents.parts == [(0, size)];
        self.batch.steps.push(Step::Begin(Some(new)));
        let filled = self.fill(contents, budget);
        self.batch.steps.push(Step::End { size, is_whole, written: (0, false) });
        match &self.side {
            _ if filled.is_err() => self.batch = Batch::default(),
            Side::Here(_) => self.hand_over()?,
            Side::Beside(_) => self.make_room()?,
        }
        filled
    }

    /// The inode may have been that of a file that is gone.
    pub fn forget(&mut self, inode: u64) -> Result<()> {
        self.batch.steps.push(Step::Forget(inode));
        self.make_room()
    }

    fn fill(&mut self, contents: Contents<'_>, budget: &mut Budget) -> Result<()> {
        let mut at = 0;
        for (offset, length) in contents.parts {
            let end = offset.checked_add(length).filter(|end| offset >= at && *end <= contents.size);
            let end = end.context("its parts overlap or go beyond its end")?;
            budget.bytes(offset - at)?;
            self.stretch(contents.data, offset, length, budget)?;
            at = end;
        }
        budget.bytes(contents.size - at)
    }

    fn stretch(&mut self, data: &mut dyn Read, offset: u64, length: u64, budget: &mut Budget) -> Result<()> {
        let mut done = 0;
        while done < length {
            self.make_room()?;
            let Batch { bytes, used, steps } = &mut self.batch;
            bytes.resize(BATCH_BYTES, 0);
            let room =
                usize::try_from(length - done).map_or(BATCH_BYTES, |left| left.min(BATCH_BYTES - *used));
            let count = fill(data, &mut bytes[*used..*used + room]).context("read")?;
            budget.bytes(count as u64)?;
            ensure!(count == room, "ends after {} of {length} bytes", done + count as u64);
            steps.push(Step::Write { offset: offset + done, length: count });
            *used += count;
            done += count as u64;
        }
        Ok(())
    }

    fn make_room(&mut self) -> Result<()> {
        let is_full = self.batch.used == BATCH_BYTES || self.batch.steps.len() >= BATCH_STEPS_MAX;
        if is_full { self.hand_over() } else { Ok(()) }
    }

    fn hand_over(&mut self) -> Result<()> {
        match &mut self.side {
            Side::Here(writing) => {
                writing.all(&mut self.batch)?;
                self.batch.steps.clear();
                self.batch.used = 0;
                Ok(())
            }
            Side::Beside(beside) => beside.hand_over(&mut self.batch),
        }
    }

    /// Waits until all is done. Gives what is known of the files that were written.
    pub fn end(mut self) -> Result<Digests> {
        self.hand_over()?;
        match &mut self.side {
            Side::Here(_) => Ok(Digests::new()),
            Side::Beside(beside) => beside.join(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_written_is_told_by_its_name() {
        let told = |mut writer: Writer| -> String {
            let file = File::open("/dev/null").expect("a file that nobody writes to");
            let new = New { file, path: "a/b".into(), metadata: Metadata::default(), attributes: Vec::new() };
            let contents = Contents { size: 1, parts: vec![(0, 1)], data: &mut &b"x"[..] };
            let written = writer.file(new, contents, &mut Budget::default());
            format!("{:#}", written.and_then(|()| writer.end()).err().expect("an error"))
        };
        assert_eq!(told(Writer::here()), "write: Bad file descriptor (os error 9)");
        assert_eq!(told(Writer::beside()), "a/b: write: Bad file descriptor (os error 9)");
    }
}
