//! Listening sockets: bound once for certain, then once per thread.

use std::{
    fs, io,
    net::SocketAddr,
    num::NonZeroUsize,
    os::unix::{
        fs::{FileTypeExt as _, MetadataExt as _},
        net::{UnixListener, UnixStream},
    },
    path::Path,
};

use listenfd::ListenFd;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::AppError;
use crate::{config::Listen, server};

/// Connections that may wait to be accepted, per socket; the system caps it at `somaxconn`.
const BACKLOG: i32 = 4096;

/// An address that is ours, and its sockets, one per thread.
#[derive(Debug)]
pub(super) struct Bound {
    pub(super) address: Listen,
    sockets: Sockets,
    /// The file of a Unix socket that is ours to remove.
    made: Option<Made>,
}

/// Which file was made, as far as it can be told from another in its place: numbers are given anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Made {
    device: u64,
    inode: u64,
    at: (i64, i64),
}

impl Made {
    fn of(path: &Path) -> Option<Self> {
        let file = fs::symlink_metadata(path).ok()?;
        Some(Self {
            device: file.dev(),
            inode: file.ino(),
            at: (file.mtime(), file.mtime_nsec()),
        })
    }
}

#[derive(Debug)]
enum Sockets {
    /// Handed over to the threads.
    Gone,
    Tcp(Vec<std::net::TcpListener>),
    /// One queue for all threads.
    Unix(UnixListener),
}

impl Bound {
    /// Closes the sockets that the threads have shares of.
    pub(super) fn let_go(&mut self) {
        self.sockets = Sockets::Gone;
    }

    /// Takes a Unix socket's file away, unless another instance has put its own there: it may since
    /// we stopped listening.
    pub(super) fn remove(&self) {
        if let (Listen::Unix(path), Some(made)) = (&self.address, self.made)
            && Made::of(path) == Some(made)
        {
            // It may be gone already; there is nothing left to do about it.
            let _ = fs::remove_file(path);
        }
    }
}

/// Binds the public addresses, or takes the sockets that systemd passed in their stead.
pub(super) fn public(addresses: &[Listen], threads: NonZeroUsize) -> Result<Vec<Bound>, AppError> {
    let mut passed = ListenFd::from_env();
    if passed.len() == 0 {
        return all(addresses, threads);
    }
    (0..passed.len())
        .map(|number| {
            take(&mut passed, number)
                .map_err(|error| AppError::Start(format!("passed socket {number}"), error))
        })
        .collect()
}

fn take(passed: &mut ListenFd, number: usize) -> io::Result<Bound> {
    let none = || io::Error::other("neither a TCP nor a Unix stream socket");
    if let Ok(Some(tcp)) = passed.take_tcp_listener(number) {
        tcp.set_nonblocking(true)?;
        let address = Listen::Tcp(tcp.local_addr()?);
        return Ok(Bound {
            address,
            sockets: Sockets::Tcp(vec![tcp]),
            made: None,
        });
    }
    let unix = passed.take_unix_listener(number)?.ok_or_else(none)?;
    unix.set_nonblocking(true)?;
    let path = unix
        .local_addr()?
        .as_pathname()
        .unwrap_or_else(|| Path::new(""))
        .to_owned();
    Ok(Bound {
        address: Listen::Unix(path),
        sockets: Sockets::Unix(unix),
        made: None,
    })
}

/// Binds every address, for this many threads.
pub(super) fn all(addresses: &[Listen], threads: NonZeroUsize) -> Result<Vec<Bound>, AppError> {
    let bind = |address: &Listen| {
        match address {
            Listen::Plain(tcp) => bind_tcp(*tcp, threads, Listen::Plain),
            Listen::Tcp(tcp) => bind_tcp(*tcp, threads, Listen::Tcp),
            Listen::Unix(path) => bind_unix(path),
        }
        .map_err(|error| AppError::Start(format!("cannot listen at {address}"), error))
    };
    addresses.iter().map(bind).collect()
}

/// Binds once without `SO_REUSEPORT`, which a second instance would share silently; then, for more
/// than one thread, once per thread with it.
fn bind_tcp(
    address: SocketAddr,
    threads: NonZeroUsize,
    kind: fn(SocketAddr) -> Listen,
) -> io::Result<Bound> {
    let alone = tcp_socket(address, false)?;
    let address = alone.local_addr()?;
    let sockets = if threads.get() == 1 {
        vec![alone]
    } else {
        drop(alone);
        (0..threads.get())
            .map(|_| tcp_socket(address, true))
            .collect::<io::Result<_>>()?
    };
    Ok(Bound {
        address: kind(address),
        sockets: Sockets::Tcp(sockets),
        made: None,
    })
}

fn tcp_socket(address: SocketAddr, is_shared: bool) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(is_shared)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SockAddr::from(address))?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Binds a Unix socket; a file that nobody listens at any more is replaced.
fn bind_unix(path: &Path) -> io::Result<Bound> {
    let is_socket = fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket());
    if is_socket {
        if UnixStream::connect(path).is_ok() {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        fs::remove_file(path)?;
    }
    let unix = UnixListener::bind(path)?;
    unix.set_nonblocking(true)?;
    Ok(Bound {
        address: Listen::Unix(path.into()),
        sockets: Sockets::Unix(unix),
        made: Made::of(path),
    })
}

/// The sockets of one thread.
pub(super) fn share(bound: &[Bound], thread: usize) -> Result<Vec<server::Socket>, AppError> {
    let socket = |bound: &Bound| {
        match &bound.sockets {
            // A socket that systemd passed is one for all threads.
            Sockets::Tcp(all) => all.get(thread).or(all.first()).map_or_else(
                || Err(io::ErrorKind::NotFound.into()),
                |tcp| {
                    let kind = match bound.address {
                        Listen::Plain(_) => server::Socket::Plain,
                        Listen::Tcp(_) | Listen::Unix(_) => server::Socket::Tcp,
                    };
                    tcp.try_clone().map(kind)
                },
            ),
            Sockets::Unix(unix) => unix.try_clone().map(server::Socket::Unix),
            Sockets::Gone => Err(io::ErrorKind::NotFound.into()),
        }
        .map_err(|error| AppError::Start(bound.address.to_string(), error))
    };
    bound.iter().map(socket).collect()
}
