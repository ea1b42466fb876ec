//! A compressed stream read, digested and decompressed in a thread of its own, beside the one that
//! writes what comes out.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Take};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use anyhow::{Context, Result, anyhow, ensure};
use flate2::bufread::MultiGzDecoder;
use liblzma::bufread::XzDecoder;
use liblzma::stream::{CONCATENATED, Stream};
use sha2::{Digest, Sha256};

use crate::template::hex;

/// Memory an xz archive may ask for; `xz -9` asks for 65 MiB.
const XZ_MEMORY_MAX: u64 = 256 << 20;
/// The base-2 logarithm of the window a zstd archive may ask for, 128 MiB; `zstd -19` asks for 8 MiB.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;
/// Bytes read, or handed from one thread to the other, at a time.
const CHUNK: usize = 128 << 10;
/// Chunks on their way.
const CHUNKS: usize = 4;

/// Gives what `source` holds, decompressed, to `take`. What lies behind the end that `take` has found
/// is read too: who writes it into a pipe is not to be ended by it, and with `sha256` the whole source
/// must have that digest.
pub fn read<T>(
    source: Take<File>,
    sha256: Option<&str>,
    take: impl FnOnce(&mut dyn Read) -> Result<T>,
) -> Result<T> {
    let source = Digesting { source, digest: sha256.map(|_| Sha256::new()) };
    let decoder = match decoder(BufReader::with_capacity(CHUNK, source)).context("read")? {
        // Nothing is to be done beside, and contents go from the file to where they are wanted.
        Decoder::Plain(source) if sha256.is_none() => {
            let head = io::Cursor::new(source.buffer().to_vec());
            let mut source = BufReader::new(head.chain(source.into_inner()));
            let taken = take(&mut source)?;
            io::copy(&mut source, &mut io::sink()).context("read")?;
            return Ok(taken);
        }
        other => other,
    };
    let given_up = AtomicBool::new(false);
    thread::scope(|scope| {
        let (sender, receiver) = sync_channel(CHUNKS);
        let (used, unused) = sync_channel(CHUNKS);
        let stop = &given_up;
        let digest = scope.spawn(move || decompress(decoder, &sender, &unused, stop));
        let mut chunks = Chunks { receiver, used, chunk: Vec::new(), at: 0 };
        let taken = take(&mut chunks);
        given_up.store(taken.is_err(), Ordering::Relaxed);
        drop(chunks);
        let found = digest.join().map_err(|_| anyhow!("the decompressing thread died"))?;
        let taken = taken?;
        if let Some(wanted) = sha256 {
            let found = found.context("read")?;
            ensure!(wanted == found, "it has the sha256 {found}, and should have {wanted}");
        }
        Ok(taken)
    })
}

/// What is read is digested, if anybody wants that.
struct Digesting {
    source: Take<File>,
    digest: Option<Sha256>,
}

impl Read for Digesting {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.source.read(buffer)?;
        if let Some(digest) = &mut self.digest {
            digest.update(&buffer[..count]);
        }
        Ok(count)
    }
}

type Chunk = io::Result<Vec<u8>>;

/// The thread: it ends when all is read, or nobody takes any more. Gives the source's digest.
fn decompress(
    mut decoder: Decoder,
    sender: &SyncSender<Chunk>,
    unused: &Receiver<Vec<u8>>,
    given_up: &AtomicBool,
) -> io::Result<String> {
    loop {
        let mut chunk = unused.try_recv().unwrap_or_default();
        chunk.resize(CHUNK, 0);
        let filled = fill(&mut decoder, &mut chunk).map(|count| {
            chunk.truncate(count);
            chunk
        });
        let last = filled.as_ref().map_or(true, Vec::is_empty);
        if sender.send(filled).is_err() || last {
            break;
        }
    }
    let mut source = decoder.into_source();
    if !given_up.load(Ordering::Relaxed) {
        io::copy(&mut source, &mut io::sink())?;
    }
    Ok(source.digest.map(|digest| hex(&digest.finalize())).unwrap_or_default())
}

/// Reads until the chunk is full, or there is no more.
pub fn fill(from: &mut dyn Read, chunk: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < chunk.len() {
        match from.read(&mut chunk[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

type Source = BufReader<Digesting>;

enum Decoder {
    Plain(Source),
    Gzip(Box<MultiGzDecoder<Source>>),
    Xz(Box<XzDecoder<Source>>),
    Zstd(Box<zstd::Decoder<'static, Source>>),
}

/// Chooses by the first bytes, not by the name.
fn decoder(mut source: Source) -> io::Result<Decoder> {
    let head = source.fill_buf()?;
    Ok(if head.starts_with(&[0x1f, 0x8b]) {
        Decoder::Gzip(Box::new(MultiGzDecoder::new(source)))
    } else if head.starts_with(&[0xfd, b'7', b'z', b'X', b'Z', 0]) {
        let stream = Stream::new_stream_decoder(XZ_MEMORY_MAX, CONCATENATED)?;
        Decoder::Xz(Box::new(XzDecoder::new_stream(source, stream)))
    } else if head.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        let mut decoder = zstd::Decoder::with_buffer(source)?;
        decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
        Decoder::Zstd(Box::new(decoder))
    } else {
        Decoder::Plain(source)
    })
}

impl Read for Decoder {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Decoder::Plain(source) => source.read(buffer),
            Decoder::Gzip(decoder) => decoder.read(buffer),
            Decoder::Xz(decoder) => decoder.read(buffer),
            Decoder::Zstd(decoder) => decoder.read(buffer),
        }
    }
}

impl Decoder {
    /// What the decoder's buffer has read ahead is digested already.
    fn into_source(self) -> Digesting {
        match self {
            Decoder::Plain(source) => source,
            Decoder::Gzip(decoder) => decoder.into_inner(),
            Decoder::Xz(decoder) => decoder.into_inner(),
            Decoder::Zstd(decoder) => decoder.finish(),
        }
        .into_inner()
    }
}

/// The other end: what comes out of the decoder, as a stream.
struct Chunks {
    receiver: Receiver<Chunk>,
    /// Chunks go back to be filled again.
    used: SyncSender<Vec<u8>>,
    chunk: Vec<u8>,
    at: usize,
}

impl Read for Chunks {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at == self.chunk.len() {
            // After the last chunk the sender is gone, and the stream is at its end.
            let Ok(next) = self.receiver.recv() else { return Ok(0) };
            // A full channel only costs a new allocation.
            let _ = self.used.try_send(std::mem::replace(&mut self.chunk, next?));
            self.at = 0;
        }
        let count = buffer.len().min(self.chunk.len() - self.at);
        buffer[..count].copy_from_slice(&self.chunk[self.at..self.at + count]);
        self.at += count;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::OwnedFd;

    use super::*;

    /// mmdebstrap writes the rest of its last record after the end of the archive, and failed when
    /// nobody read it any more.
    #[test]
    fn who_writes_into_a_pipe_can_write_to_the_end() {
        // More than the pipe and all buffers hold, also when it is compressed.
        let numbers = (0..1_u32 << 20).flat_map(|number| number.wrapping_mul(0x9e37_79b1).to_le_bytes());
        let text: Vec<u8> = numbers.collect();
        let packed = zstd::encode_all(&text[..], 1).unwrap();
        assert!(packed.len() > 2 << 20, "{}", packed.len());
        for archive in [text.clone(), packed] {
            let (from, mut to) = io::pipe().unwrap();
            let writer = thread::spawn(move || to.write_all(&archive));
            let source = File::from(OwnedFd::from(from)).take(u64::MAX);
            let mut first = [0; 8];
            read(source, None, |reader| Ok(reader.read_exact(&mut first)?)).unwrap();
            assert_eq!(first, text[..8]);
            writer.join().unwrap().expect("all is read");
        }
    }
}
