//! Message sockets between our own processes, with descriptors in the messages.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};

/// The longest message; a jail's whole specification fits many times.
pub const MESSAGE_BYTES_MAX: usize = 128 * 1024;
/// Descriptors in one message; the kernel's own limit is 253, unix(7).
pub const DESCRIPTORS_MAX: usize = 64;

/// Connections waiting to be accepted.
const BACKLOG: i32 = 8;

/// A pair of connected SOCK_SEQPACKET sockets, close-on-exec.
pub fn pair() -> Result<(OwnedFd, OwnedFd)> {
    rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
        .context("make a socket pair")
}

/// Sends one message with its descriptors.
pub fn send(socket: BorrowedFd<'_>, message: &[u8], descriptors: &[BorrowedFd<'_>]) -> Result<()> {
    if message.len() > MESSAGE_BYTES_MAX || descriptors.len() > DESCRIPTORS_MAX {
        bail!("send a message: {} bytes and {} descriptors are too many", message.len(), descriptors.len());
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        bail!("send a message: its descriptors do not fit");
    }
    rustix::io::retry_on_intr(|| {
        rustix::net::sendmsg(socket, &[IoSlice::new(message)], &mut control, SendFlags::NOSIGNAL)
    })
    .context("send a message")?;
    Ok(())
}

/// Receives one message with its descriptors; `None` when the other side has closed.
pub fn receive(socket: BorrowedFd<'_>) -> Result<Option<(Vec<u8>, Vec<OwnedFd>)>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let length = rustix::io::retry_on_intr(|| {
        rustix::net::recv(socket, &mut [0_u8; 0][..], RecvFlags::PEEK | RecvFlags::TRUNC)
            .map(|(_, length)| length)
    })
    .context("receive a message")?;
    if length > MESSAGE_BYTES_MAX {
        bail!("receive a message: {length} bytes are too many");
    }
    let mut bytes = vec![0_u8; length];
    let got = rustix::io::retry_on_intr(|| {
        rustix::net::recvmsg(
            socket,
            &mut [IoSliceMut::new(&mut bytes)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        )
    })
    .context("receive a message")?;
    if got.bytes == 0 {
        return Ok(None);
    }
    let descriptors = control
        .drain()
        .filter_map(|m| if let RecvAncillaryMessage::ScmRights(fds) = m { Some(fds) } else { None })
        .flatten()
        .collect();
    Ok(Some((bytes, descriptors)))
}

/// Whether a message (or the end) comes within `limit_ms`.
pub fn readable_within(socket: BorrowedFd<'_>, limit_ms: i64) -> Result<bool> {
    let mut fds = [PollFd::new(&socket, PollFlags::IN)];
    let limit = Timespec { tv_sec: limit_ms / 1000, tv_nsec: (limit_ms % 1000) * 1_000_000 };
    match poll(&mut fds, Some(&limit)) {
        Ok(count) => Ok(count > 0),
        Err(rustix::io::Errno::INTR) => Ok(false),
        Err(e) => Err(e).context("poll"),
    }
}

/// Whether a message (or the end) waits.
pub fn readable(socket: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::new(&socket, PollFlags::IN)];
    matches!(poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })), Ok(1))
}

/// A listening SOCK_SEQPACKET socket at `path`.
pub fn listen(path: &Path) -> Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
        .context("make a socket")?;
    let address = SocketAddrUnix::new(path).with_context(|| format!("name a socket {}", path.display()))?;
    rustix::net::bind(&socket, &address).with_context(|| format!("bind {}", path.display()))?;
    rustix::net::listen(&socket, BACKLOG).with_context(|| format!("listen on {}", path.display()))?;
    Ok(socket)
}

/// Connects to the socket at `path`.
pub fn connect(path: &Path) -> Result<OwnedFd> {
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .context("make a socket")?;
    let address = SocketAddrUnix::new(path).with_context(|| format!("name a socket {}", path.display()))?;
    rustix::net::connect(&socket, &address).with_context(|| format!("connect to {}", path.display()))?;
    Ok(socket)
}

pub fn accept(listener: BorrowedFd<'_>) -> Result<OwnedFd> {
    rustix::net::accept_with(listener, SocketFlags::CLOEXEC).context("accept a connection")
}

/// Sends what fits at once; an error when nothing does.
pub fn send_now(socket: BorrowedFd<'_>, message: &[u8]) -> Result<()> {
    rustix::net::send(socket, message, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)
        .context("send a message")?;
    Ok(())
}

/// Ends a connection; the descriptor stays until it is dropped.
pub fn shut(socket: BorrowedFd<'_>) {
    // Not connected any more is what was wanted.
    let _ = rustix::net::shutdown(socket, rustix::net::Shutdown::Both);
}

/// Whether the other side is still there.
pub fn open(socket: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::new(&socket, PollFlags::empty())];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut fds, Some(&now)).is_ok() && !fds[0].revents().intersects(PollFlags::HUP | PollFlags::ERR)
}
