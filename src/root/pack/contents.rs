//! What of a file goes behind its header.

use std::fs::File;
use std::io::{self, Read};

use rustix::fs::SeekFrom;

use super::CHUNK;

/// So many bytes of a file: one that has shrunk is filled up, one that has grown is cut.
pub struct Exactly<'f> {
    pub file: &'f File,
    pub left: u64,
    pub told: &'f dyn Fn(u64),
}

impl Read for Exactly<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if crate::interrupt::asked() {
            return Err(io::Error::other("interrupted"));
        }
        let most = buffer.len().min(CHUNK).min(usize::try_from(self.left).unwrap_or(CHUNK));
        if most == 0 {
            return Ok(0);
        }
        let mut count = self.file.read(&mut buffer[..most])?;
        if count == 0 {
            buffer[..most].fill(0);
            count = most;
        }
        self.left -= count as u64;
        (self.told)(count as u64);
        Ok(count)
    }
}

/// The map and then the data of a file with holes.
pub struct Stretches<'f> {
    pub map: &'f [u8],
    pub file: &'f File,
    pub parts: &'f [(u64, u64)],
    /// Bytes read of the first of the parts.
    pub done: u64,
    pub told: &'f dyn Fn(u64),
}

impl Read for Stretches<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if !self.map.is_empty() {
            return self.map.read(buffer);
        }
        let Some((offset, length)) = self.parts.first().copied() else { return Ok(0) };
        if self.done == length {
            (self.parts, self.done) = (&self.parts[1..], 0);
            return self.read(buffer);
        }
        if self.done == 0 {
            rustix::fs::seek(self.file, SeekFrom::Start(offset))?;
        }
        let mut part = Exactly { file: self.file, left: length - self.done, told: self.told };
        let count = part.read(buffer)?;
        self.done += count as u64;
        Ok(count)
    }
}
