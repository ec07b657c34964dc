use std::net::TcpListener;

use super::*;

fn pool(url: &str) -> Pool {
    let (transport, authority, path, query) = endpoint::Upstream::parse_url(url).unwrap();
    let settings = endpoint::Upstream {
        transport,
        authority,
        path,
        query,
        max_concurrency: std::num::NonZeroUsize::MIN,
        rate: None,
        headers: Vec::new(),
        connect_timeout: Duration::from_secs(2),
        connect_retry: Duration::ZERO,
        tls: endpoint::TlsMaterial::default(),
        allow: None,
    };
    Pool::new(Arc::new(Upstream::new(&settings, None).unwrap()))
}

fn run<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, future)
}

#[test]
fn a_connection_that_was_idle_for_long_is_closed() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let pool = pool(&format!("http://{}/", listener.local_addr().unwrap()));
    run(async {
        let now = Instant::now();
        let connection = pool.connect().await.unwrap();
        pool.idle.borrow_mut().push(connection);
        pool.sweep(now);
        pool.sweep(now + IDLE_LIFE - Duration::from_millis(1));
        let used = pool.reuse().expect("it is still good");
        pool.idle.borrow_mut().push(used);
        // It was used: its rest begins anew.
        pool.sweep(now + IDLE_LIFE);
        assert_eq!(pool.idle.borrow().len(), 1);
        pool.sweep(now + 2 * IDLE_LIFE);
        assert_eq!(pool.idle.borrow().len(), 0);
    });
}

#[test]
fn a_connection_to_where_the_name_led_before_is_not_used() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let pool = pool(&format!("http://localhost:{port}/"));
    run(async {
        for is_swept in [true, false] {
            let connection = pool.connect().await.unwrap();
            pool.idle.borrow_mut().push(connection);
            pool.sweep(Instant::now());
            assert_eq!(pool.idle.borrow().len(), 1);
            let route = &pool.upstream.route;
            route.found(vec![([192, 0, 2, 1], port).into()]);
            if is_swept {
                pool.sweep(Instant::now());
                assert_eq!(pool.idle.borrow().len(), 0);
            } else {
                assert!(pool.reuse().is_none());
            }
            route.found(vec![([127, 0, 0, 1], port).into()]);
        }
    });
}
