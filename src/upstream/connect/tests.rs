use std::net::{TcpListener, TcpStream as StdStream};

use tokio::task::LocalSet;

use super::*;

impl Route {
    /// As if a look-up had ended so.
    pub(in crate::upstream) fn found(&self, addresses: Vec<SocketAddr>) {
        self.resolved.remember(Some(addresses));
    }
}

/// A named host's route, as if it had been looked up.
fn route(host: &str, timeout: Duration, addresses: &[SocketAddr]) -> Route {
    let transport = Transport::Tcp {
        host: host.to_owned(),
        port: 80,
    };
    let route = Route::new(&transport, timeout, &TlsMaterial::default()).unwrap();
    route.found(addresses.to_vec());
    route
}

#[test]
fn a_name_that_leads_elsewhere_by_now_is_not_followed_there() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let here = listener.local_addr().unwrap();
    let allow = crate::endpoint::Allowed::parse("192.0.2.0/24").unwrap();
    let allow = Some(Arc::new(Allow::new(vec![allow])));
    let route = route("app.test", Duration::from_secs(2), &[here]).within(allow);
    let error = run(route.connect()).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
    listener.set_nonblocking(true).unwrap();
    let nobody = listener.accept().unwrap_err().kind();
    assert_eq!(nobody, io::ErrorKind::WouldBlock);
}

fn run<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    LocalSet::new().block_on(&runtime, future)
}

/// An address that answers nobody: its queue of connections is full, and stays so while what is
/// returned lives.
fn silent() -> (SocketAddr, impl Sized) {
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&any.into()).unwrap();
    socket.listen(0).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    let short = Duration::from_millis(100);
    let mut waiting = Vec::new();
    while let Ok(stream) = StdStream::connect_timeout(&address, short) {
        waiting.push(stream);
    }
    (address, (socket, waiting))
}

#[test]
fn a_silent_address_leaves_time_for_the_next_and_comes_last_from_then_on() {
    let (silent, _full) = silent();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let good = listener.local_addr().unwrap();
    let route = route("app.test", Duration::from_secs(2), &[silent, good]);
    let (stream, _) = run(route.connect()).unwrap();
    let Stream::Tcp(tcp) = stream else {
        panic!("not TCP");
    };
    assert_eq!(tcp.peer_addr().unwrap(), good);
    let socket = SockRef::from(&tcp);
    assert!(socket.keepalive().unwrap());
    assert_eq!(
        socket.tcp_keepalive_time().unwrap(),
        Duration::from_secs(15)
    );
    assert_eq!(route.resolved.lock().addresses, [good, silent]);
    // The same addresses found again keep that order, and every connection.
    let before = route.generation();
    route.found(vec![silent, good]);
    assert_eq!(route.resolved.lock().addresses, [good, silent]);
    assert_eq!(route.generation(), before);
}

#[test]
fn a_silent_host_is_given_up_when_the_time_is_over() {
    let (silent, _full) = silent();
    let timeout = Duration::from_millis(200);
    let route = route("app.test", timeout, &[silent]);
    let started = Instant::now();
    let error = run(route.connect()).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    assert!(started.elapsed() >= timeout);
}

#[test]
fn old_addresses_are_renewed_without_waiting_and_very_old_ones_with() {
    let old = SocketAddr::from(([192, 0, 2, 1], 80));
    let route = route("localhost", Duration::from_secs(2), &[old]);
    let age = |age| route.resolved.lock().since = Instant::now().checked_sub(age);
    run(async {
        let known = route.addresses("localhost", 80).await.unwrap();
        assert_eq!(known.0, [old]);
        age(ADDRESS_LIFE);
        let known = route.addresses("localhost", 80).await.unwrap();
        assert_eq!(known.0, [old], "at once");
        while route.generation() == known.1 {
            tokio::task::yield_now().await;
        }
        let (renewed, _) = route.addresses("localhost", 80).await.unwrap();
        assert!(renewed.iter().all(|a| a.ip().is_loopback()), "{renewed:?}");
        route.found(vec![old]);
        age(2 * ADDRESS_LIFE);
        let (renewed, _) = route.addresses("localhost", 80).await.unwrap();
        assert!(renewed.iter().all(|a| a.ip().is_loopback()), "{renewed:?}");
    });
}

#[test]
fn a_tls_failure_is_told_by_its_cause() {
    use rustls::{CertificateError as Bad, Error};
    for (error, fault) in [
        (Error::InvalidCertificate(Bad::Expired), TlsFault::Expired),
        (
            Error::InvalidCertificate(Bad::NotValidYet),
            TlsFault::NotYetValid,
        ),
        (
            Error::InvalidCertificate(Bad::NotValidForName),
            TlsFault::OtherName,
        ),
        (
            Error::InvalidCertificate(Bad::UnknownIssuer),
            TlsFault::UnknownIssuer,
        ),
        (
            Error::InvalidCertificate(Bad::BadSignature),
            TlsFault::UnfitCertificate,
        ),
        (
            Error::AlertReceived(rustls::AlertDescription::HandshakeFailure),
            TlsFault::Declined,
        ),
        (Error::DecryptError, TlsFault::Protocol),
    ] {
        let error = io::Error::new(io::ErrorKind::InvalidData, error);
        assert_eq!(TlsFault::of(&error), Some(fault));
    }
    assert_eq!(TlsFault::of(&io::ErrorKind::TimedOut.into()), None);
}
