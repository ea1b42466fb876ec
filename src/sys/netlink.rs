//! One rtnetlink(7) socket, used synchronously: requests go out in one datagram, answers are read
//! until the last of them is acknowledged.
//!
//! A socket belongs to the network namespace it was opened in, whatever its thread does later.
//! This module knows how to talk, not what to say: it must not name a link or an address.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use anyhow::{Context, Result, bail};
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_ACK_TLVS, NLM_F_CAPPED, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE,
    NLMSG_ERROR, NLMSG_OVERRUN, NetlinkBuffer, NetlinkSerializable, NlasIterator,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};

/// Room for one answer, what linux/netlink.h calls a good size. The kernel allocates each part of
/// a dump as large as the last read had room for, so that more makes many short dumps slower.
const RECEIVE_BYTES: usize = 8 * 1024;

/// A dump that was overtaken by a change is asked for again this often.
const DUMP_ATTEMPTS_MAX: usize = 16;

/// Length of `struct nlmsghdr`, and the multiple that messages are padded to.
const HEADER_BYTES: usize = 16;
const ALIGN: usize = 4;

/// `NLMSGERR_ATTR_MSG` of linux/netlink.h: the kernel's own words about an error.
const ERROR_TEXT: u16 = 1;

/// One message to the kernel.
pub struct Request {
    /// Verb and object for the error, `create link sj0`.
    pub what: String,
    pub message: RouteNetlinkMessage,
    /// `NLM_F_CREATE` and the like; request, acknowledge and dump are set by the socket.
    pub flags: u16,
}

impl Request {
    pub fn new(what: String, message: RouteNetlinkMessage, flags: u16) -> Self {
        Self { what, message, flags }
    }
}

/// The kernel said no. A type of its own, for callers branch on the number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    pub what: String,
    pub errno: Errno,
    /// The kernel's extended acknowledgement, where it gave one.
    pub reason: Option<String>,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, io::Error::from(self.errno))?;
        self.reason.as_ref().map_or(Ok(()), |reason| write!(f, ": {reason}"))
    }
}

impl std::error::Error for Refused {}

/// The number of a refusal somewhere in `error`'s chain.
pub fn refusal(error: &anyhow::Error) -> Option<Errno> {
    error.downcast_ref::<Refused>().map(|refused| refused.errno)
}

pub struct Netlink {
    socket: Socket,
    sequence: u32,
    /// No allocation: a socket lives for one jail, and each would take fresh memory behind what its look
    /// has left.
    buffer: [u8; RECEIVE_BYTES],
}

impl Netlink {
    /// Opens a socket in the calling thread's network namespace.
    pub fn open() -> Result<Self> {
        let socket = connected().context("open a netlink socket")?;
        Ok(Self { socket, sequence: 0, buffer: [0; RECEIVE_BYTES] })
    }

    /// Opens a socket in the network namespace `netns`, by a thread that enters it and ends:
    /// the caller's own threads never change their namespace.
    pub fn open_in(netns: BorrowedFd<'_>) -> Result<Self> {
        in_netns(netns, Self::open)?
    }

    /// Index of the link called `name` in the socket's namespace.
    pub fn index(&self, name: &str) -> Result<Option<u32>> {
        match rustix::net::netdevice::name_to_index(self.socket.as_fd(), name) {
            Ok(index) => Ok(Some(index)),
            Err(rustix::io::Errno::NODEV) => Ok(None),
            Err(error) => Err(error).with_context(|| format!("look up link {name}")),
        }
    }

    /// Name of the link with this index in the socket's namespace.
    pub fn name(&self, index: u32) -> Result<Option<String>> {
        match rustix::net::netdevice::index_to_name(self.socket.as_fd(), index) {
            Ok(name) => Ok(Some(name)),
            Err(rustix::io::Errno::NODEV | rustix::io::Errno::NXIO) => Ok(None),
            Err(error) => Err(error).with_context(|| format!("look up link {index}")),
        }
    }

    /// Sends all requests as one datagram and waits for every acknowledgement. The kernel works
    /// on each of them whatever became of those before; the first refusal is the error.
    pub fn send(&mut self, requests: &[Request]) -> Result<()> {
        if requests.is_empty() {
            return Ok(());
        }
        let first = self.transmit(requests, NLM_F_ACK)?;
        let mut refused: Option<(usize, Refused)> = None;
        let mut missing = requests.len();
        while missing > 0 {
            let length = self.receive()?;
            for answer in Answers(&self.buffer[..length]) {
                let answer = answer?;
                let Some(at) = position(&answer, first, requests.len()) else { continue };
                if answer.kind != NLMSG_ERROR {
                    continue;
                }
                missing -= 1;
                if let Some(refusal) = answer.refusal(&requests[at].what)
                    && refused.as_ref().is_none_or(|(earlier, _)| at < *earlier)
                {
                    refused = Some((at, refusal));
                }
            }
        }
        refused.map_or(Ok(()), |(_, refusal)| Err(refusal.into()))
    }

    /// Asks for a list; `read` turns the payload of one message into an item, or leaves it out.
    /// A list that changed while it was read is asked for again.
    pub fn dump<T>(&mut self, request: &Request, read: impl Fn(&[u8]) -> Option<T>) -> Result<Vec<T>> {
        for _ in 0..DUMP_ATTEMPTS_MAX {
            if let Some(items) = self.ask(request, NLM_F_DUMP, &read)? {
                return Ok(items);
            }
        }
        bail!("{}: interrupted by changes {DUMP_ATTEMPTS_MAX} times", request.what)
    }

    /// Asks for one thing; `None` when the kernel answers without one.
    pub fn get<T>(&mut self, request: &Request, read: impl Fn(&[u8]) -> Option<T>) -> Result<Option<T>> {
        Ok(self.ask(request, NLM_F_ACK, read)?.and_then(|items| items.into_iter().next()))
    }

    /// `None` when the kernel marked the list as interrupted by a change.
    fn ask<T>(
        &mut self,
        request: &Request,
        flags: u16,
        read: impl Fn(&[u8]) -> Option<T>,
    ) -> Result<Option<Vec<T>>> {
        let first = self.transmit(std::slice::from_ref(request), flags)?;
        let (mut items, mut whole) = (Vec::new(), true);
        loop {
            let length = self.receive()?;
            for answer in Answers(&self.buffer[..length]) {
                let answer = answer?;
                if position(&answer, first, 1).is_none() {
                    continue;
                }
                whole &= answer.flags & NLM_F_DUMP_INTR == 0;
                if answer.kind != NLMSG_DONE && answer.kind != NLMSG_ERROR {
                    items.extend(read(answer.payload));
                    continue;
                }
                return match answer.refusal(&request.what) {
                    Some(refusal) => Err(refusal.into()),
                    None => Ok(whole.then_some(items)),
                };
            }
        }
    }

    /// Returns the sequence number of the first request; the others follow it.
    fn transmit(&mut self, requests: &[Request], flags: u16) -> Result<u32> {
        let first = self.sequence.wrapping_add(1);
        let mut datagram = Vec::new();
        for request in requests {
            self.sequence = self.sequence.wrapping_add(1);
            append(&mut datagram, request, flags, self.sequence);
        }
        let what = &requests[0].what;
        let sent = retry(|| self.socket.send(&datagram, 0)).with_context(|| what.clone())?;
        if sent != datagram.len() {
            bail!("{what}: {sent} of {} bytes sent", datagram.len());
        }
        Ok(first)
    }

    /// Reads one datagram into the buffer. The kernel answers before the send returns, and
    /// prepares the next part of a dump while the last is read, so there is never a wait here.
    fn receive(&mut self) -> Result<usize> {
        let flags = libc::MSG_DONTWAIT | libc::MSG_TRUNC;
        let length = retry(|| self.socket.recv(&mut &mut self.buffer[..], flags))
            .context("read the kernel's netlink answer")?;
        if length > self.buffer.len() {
            bail!("read the kernel's netlink answer: {length} bytes do not fit {RECEIVE_BYTES}");
        }
        Ok(length)
    }
}

/// Runs `work` on a new thread inside the network namespace `netns`; the thread ends with it.
pub fn in_netns<T: Send>(netns: BorrowedFd<'_>, work: impl FnOnce() -> T + Send) -> Result<T> {
    let inside = move || {
        setns(netns, CloneFlags::CLONE_NEWNET).context("enter a network namespace")?;
        Ok(work())
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().spawn_scoped(scope, inside).context("start a thread")?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Connected to the kernel, so that no other process can slip an answer in.
fn connected() -> io::Result<Socket> {
    let socket = Socket::new(NETLINK_ROUTE)?;
    socket.set_ext_ack(true)?;
    socket.set_cap_ack(true)?;
    socket.set_netlink_get_strict_chk(true)?;
    socket.connect(&SocketAddr::new(0, 0))?;
    Ok(socket)
}

/// A signal is no reason to give up a call.
fn retry<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// Adds one message, its header as linux/netlink.h has it: the crate's own would want a copy of
/// the whole message.
fn append(datagram: &mut Vec<u8>, request: &Request, flags: u16, sequence: u32) {
    let length = HEADER_BYTES + request.message.buffer_len();
    let start = datagram.len();
    datagram.resize(start + length.next_multiple_of(ALIGN), 0);
    let (header, body) = datagram[start..].split_at_mut(HEADER_BYTES);
    let written = u32::try_from(length).expect("a request is short");
    header[..4].copy_from_slice(&written.to_ne_bytes());
    header[4..6].copy_from_slice(&request.message.message_type().to_ne_bytes());
    header[6..8].copy_from_slice(&(NLM_F_REQUEST | flags | request.flags).to_ne_bytes());
    header[8..12].copy_from_slice(&sequence.to_ne_bytes());
    request.message.serialize(&mut body[..length - HEADER_BYTES]);
}

/// One message of an answer.
struct Answer<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    payload: &'a [u8],
}

/// Which of `count` requests, numbered from `first`, is answered; `None` for a late answer to
/// an earlier, abandoned one.
fn position(answer: &Answer<'_>, first: u32, count: usize) -> Option<usize> {
    let at = usize::try_from(answer.sequence.wrapping_sub(first)).ok()?;
    (at < count).then_some(at)
}

impl Answer<'_> {
    /// The refusal in an error or done message; a zero in it is the acknowledgement.
    fn refusal(&self, what: &str) -> Option<Refused> {
        let number = self.payload.first_chunk::<4>().map_or(0, |bytes| i32::from_ne_bytes(*bytes));
        (number != 0).then(|| Refused {
            what: what.to_owned(),
            errno: Errno::from_raw(number.saturating_neg()),
            reason: self.reason(),
        })
    }

    fn reason(&self) -> Option<String> {
        if self.flags & NLM_F_ACK_TLVS == 0 {
            return None;
        }
        let attributes = self.payload.get(self.attributes_at()?..)?;
        let text = NlasIterator::new(attributes).flatten().find(|nla| nla.kind() == ERROR_TEXT)?;
        let text = String::from_utf8_lossy(text.value()).trim_end_matches('\0').to_owned();
        (!text.is_empty()).then_some(text)
    }

    /// Attributes follow the number in a done message; in an error also the request's header,
    /// and the whole request unless the kernel capped it.
    fn attributes_at(&self) -> Option<usize> {
        if self.kind == NLMSG_DONE {
            return Some(4);
        }
        if self.flags & NLM_F_CAPPED != 0 {
            return Some(4 + HEADER_BYTES);
        }
        let length = u32::from_ne_bytes(*self.payload.get(4..)?.first_chunk()?);
        Some(4 + usize::try_from(length).ok()?.next_multiple_of(ALIGN))
    }
}

/// The messages of one datagram.
struct Answers<'a>(&'a [u8]);

impl<'a> Iterator for Answers<'a> {
    type Item = Result<Answer<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let message = match NetlinkBuffer::new_checked(self.0) {
            Ok(message) => message,
            Err(error) => {
                self.0 = &[];
                return Some(Err(anyhow::Error::new(error).context("read the kernel's netlink answer")));
            }
        };
        let length = usize::try_from(message.length()).unwrap_or(usize::MAX).next_multiple_of(ALIGN);
        self.0 = self.0.get(length..).unwrap_or_default();
        if message.message_type() == NLMSG_OVERRUN {
            return Some(Err(anyhow::anyhow!("read the kernel's netlink answer: overrun")));
        }
        Some(Ok(Answer {
            kind: message.message_type(),
            flags: message.flags(),
            sequence: message.sequence_number(),
            payload: message.payload(),
        }))
    }
}
