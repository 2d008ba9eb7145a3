//! What HTTP clients can do wrong, on purpose or not: each is bounded, and honest clients do not notice.

use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use clonegate::clock::Clock;
use clonegate::http::{HttpServer, HttpSettings};
use clonegate::metrics::Metrics;
use clonegate_tests::memory_disk::{MemoryDevice, MemoryExports};
use clonegate_tests::raw_http::RawHttp;

const DISK: &str = "/v1/clones/desk-1/disk";
const CONNECTIONS_MAX: usize = 32;

struct Rig {
    address: SocketAddr,
    metrics: Arc<Metrics>,
    huge: Arc<MemoryDevice>,
    _server: HttpServer,
    _runtime: tokio::runtime::Runtime,
}

fn rig() -> Rig {
    rig_with(|_| {})
}

fn rig_with(change: impl FnOnce(&mut HttpSettings)) -> Rig {
    let disk = MemoryDevice::holding("desk-1", &[7; 4096], false);
    let huge = MemoryDevice::new("huge", 1 << 40, false);
    let exports = MemoryExports::of(&[("desk-1", &disk), ("huge", &huge)]);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut settings = HttpSettings {
        listen: ([127, 0, 0, 1], 0).into(),
        workers: 2,
        connections_max: CONNECTIONS_MAX,
        idle_timeout: Duration::from_secs(5),
        header_timeout: Duration::from_millis(400),
        body_timeout: Duration::from_millis(400),
        stall_timeout: Duration::from_millis(400),
        write_buffers_bytes: 1024 * 1024,
        ..HttpSettings::default()
    };
    change(&mut settings);
    let metrics = Metrics::new();
    let server = {
        let _inside = runtime.enter();
        clonegate::http::serve(&settings, exports, None, &metrics, &Clock::system()).unwrap()
    };
    Rig { address: server.local_addr(), metrics, huge, _server: server, _runtime: runtime }
}

impl Rig {
    fn connect(&self) -> RawHttp {
        RawHttp::connect(self.address)
    }

    /// An honest client gets its bytes.
    fn honest(&self) {
        let reply = self.connect().request("GET", DISK, &[("Range", "bytes=0-99")]);
        assert_eq!((reply.status, reply.body), (206, vec![7; 100]));
    }

    /// A counter or gauge without labels.
    fn metric(&self, name: &str) -> u64 {
        let text = self.metrics.render().unwrap();
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.and_then(|value| value.parse().ok()).expect("the metric is there")
    }
}

/// The status of what came back before the end of the connection; 0 when nothing did.
fn status_of(bytes: &[u8]) -> u16 {
    let text = String::from_utf8_lossy(bytes);
    text.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0)
}

/// Looks until it is so.
fn until(mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < Duration::from_secs(60), "it never came to that");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_header_that_never_ends_is_cut_off() {
    let rig = rig();
    let mut http = rig.connect();
    http.send(format!("GET {DISK} HTTP/1.1\r\n")).unwrap();
    let mut drip = http.stream().try_clone().unwrap();
    let dripping = std::thread::spawn(move || {
        // A byte at a time keeps nothing alive; ends when the server has closed.
        while drip.write_all(b"a").is_ok() {
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    rig.honest();
    assert_eq!(status_of(&http.rest()), 0);
    dripping.join().unwrap();
    rig.honest();
    assert!(rig.metric("clonegate_http_connections_timed_out_total") >= 1);
}

#[test]
fn a_body_that_never_ends_is_cut_off_and_writes_nothing() {
    let rig = rig();
    for sent in [&b""[..], b"half"] {
        let mut http = rig.connect();
        http.send(format!("PUT {DISK} HTTP/1.1\r\nHost: a\r\nContent-Range: bytes 0-7/*\r\nContent-Length: 8\r\n\r\n"))
            .unwrap();
        http.send(sent).unwrap();
        rig.honest();
        assert!(matches!(status_of(&http.rest()), 0 | 100));
    }
    rig.honest();
}

#[test]
fn bodies_wait_for_room_and_give_it_back() {
    let rig = rig();
    let mut slow: Vec<RawHttp> = (0..3).map(|_| rig.connect()).collect();
    for http in &mut slow {
        http.send("PUT /v1/clones/huge/disk HTTP/1.1\r\nHost: a\r\nContent-Range: bytes 0-1048575/*\r\nContent-Length: 1048576\r\n\r\n")
            .unwrap();
    }
    let reply = rig.connect().request_with("PUT", DISK, &[("Content-Range", "bytes 0-3/*")], &[7; 4]);
    assert_eq!(reply.status, 204);
}

/// The head of a PUT to the huge disk, of so many bytes.
fn put_head(bytes: u64) -> String {
    let last = bytes - 1;
    format!(
        "PUT /v1/clones/huge/disk HTTP/1.1\r\nHost: a\r\nContent-Range: bytes 0-{last}/*\r\nContent-Length: {bytes}\r\n\r\n"
    )
}

#[test]
fn clients_that_announce_much_and_drip_do_not_stop_the_puts_of_others() {
    let rig = rig_with(|settings| {
        // Neither standing still nor being slow on average ends them within this test.
        settings.body_timeout = Duration::from_secs(600);
        settings.write_hurry = Duration::from_millis(200);
    });
    let ended = Arc::new(AtomicBool::new(false));
    let dripping: Vec<_> = (0..4)
        .map(|_| {
            let mut http = rig.connect();
            http.send(put_head(64 << 20)).unwrap();
            http.send(vec![1; 100 << 10]).unwrap();
            let ended = Arc::clone(&ended);
            std::thread::spawn(move || {
                while !ended.load(SeqCst) && http.send(b"a").is_ok() {
                    std::thread::sleep(Duration::from_millis(20));
                }
            })
        })
        .collect();
    let put = |bytes: usize| {
        let range = format!("bytes 0-{}/*", bytes - 1);
        let path = if bytes > 4096 { "/v1/clones/huge/disk" } else { DISK };
        rig.connect().request_with("PUT", path, &[("Content-Range", &range)], &vec![7; bytes]).status
    };
    // Small ones need not wait for anybody; larger ones wait until one that drips has been cut off.
    while rig.metric("clonegate_http_connections_timed_out_total") == 0 {
        assert_eq!([put(4), put(64 << 10), put(1 << 20)], [204; 3]);
    }
    ended.store(true, SeqCst);
    for thread in dripping {
        thread.join().unwrap();
    }
    rig.honest();
}

#[test]
fn a_put_that_waits_too_long_for_room_is_told_to_come_again() {
    let rig = rig_with(|settings| settings.write_patience = Duration::from_millis(300));
    rig.huge.stuck.store(true, SeqCst);
    let mut first = rig.connect();
    first.send([put_head(100 << 10).as_bytes(), &[1; 100 << 10]].concat()).unwrap();
    until(|| rig.huge.writing.load(SeqCst) == 1);
    let mut second = rig.connect();
    second.send([put_head(1 << 20).as_bytes(), &[1; 100 << 10]].concat()).unwrap();
    let reply = second.reply(false).unwrap();
    assert_eq!((reply.status, reply.code().as_str()), (503, "put-buffers-full"));
    assert_eq!(reply.field("retry-after"), Some("1"));
    let small = rig.connect().request_with("PUT", DISK, &[("Content-Range", "bytes 0-3/*")], &[7; 4]);
    assert_eq!(small.status, 204);
    rig.huge.stuck.store(false, SeqCst);
    assert_eq!(first.reply(false).unwrap().status, 204);
}

#[test]
fn a_reader_that_does_not_read_is_cut_off_and_holds_little() {
    let rig = rig();
    let mut readers: Vec<RawHttp> = (0..8).map(|_| rig.connect()).collect();
    for http in &mut readers {
        http.send("GET /v1/clones/huge/disk HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    }
    // Each is being answered, and reads no further.
    for http in &mut readers {
        http.stream().peek(&mut [0]).unwrap();
    }
    while rig.metric("clonegate_http_connections") > 0 {
        rig.honest();
        std::thread::sleep(Duration::from_millis(50));
    }
    // What was read from the volume is what fits the sockets and a window, not the volume.
    let sent = rig.metrics.render().unwrap();
    let line = sent.lines().find(|line| line.starts_with("clonegate_http_sent_bytes_total")).unwrap();
    let sent: u64 = line.rsplit(' ').next().unwrap().parse().unwrap();
    assert!(sent < 8 * 32 * 1024 * 1024, "{line}");
}

#[test]
fn headers_are_bounded() {
    let rig = rig();
    let many: String = (0..10_000).map(|n| format!("X-{n}: y\r\n")).collect();
    let long = format!("X-Long: {}\r\n", "y".repeat(1024 * 1024));
    let path = format!("/{}", "y".repeat(1024 * 1024));
    for (path, fields) in [(DISK, many.as_str()), (DISK, long.as_str()), (path.as_str(), "")] {
        let mut http = rig.connect();
        // The server may stop reading before everything is sent.
        let _ = http.send(format!("GET {path} HTTP/1.1\r\nHost: a\r\n{fields}\r\n"));
        assert!(matches!(status_of(&http.rest()), 0 | 414 | 431), "{} bytes of path", path.len());
        rig.honest();
    }
}

#[test]
fn requests_that_two_readers_could_read_differently_end_the_connection() {
    let rig = rig();
    let put = format!("PUT {DISK} HTTP/1.1\r\nHost: a\r\nContent-Range: bytes 0-0/*\r\n");
    let next = format!("GET {DISK} HTTP/1.1\r\nHost: smuggled\r\nRange: bytes=0-0\r\n\r\n");
    let cases = [
        (
            "length and chunks",
            format!("{put}Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n\x07\r\n0\r\n\r\n{next}"),
        ),
        (
            "chunks and length",
            format!("{put}Transfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n1\r\n\x07\r\n0\r\n\r\n{next}"),
        ),
        ("two lengths", format!("{put}Content-Length: 1\r\nContent-Length: 2\r\n\r\n\x07{next}")),
        ("a list of lengths", format!("{put}Content-Length: 1, 2\r\n\r\n\x07{next}")),
        ("a signed length", format!("{put}Content-Length: +1\r\n\r\n\x07{next}")),
        ("chunked twice removed", format!("{put}Transfer-Encoding: chunked, identity\r\n\r\n\x07{next}")),
        ("a chunk size with a sign", format!("{put}Transfer-Encoding: chunked\r\n\r\n-1\r\n\x07\r\n0\r\n\r\n{next}")),
        ("a space before the colon", format!("{put}Content-Length : 1\r\n\r\n\x07{next}")),
        ("a folded field", format!("{put}X: a\r\n Content-Length: 1\r\n\r\n{next}")),
        ("a bare carriage return", format!("{put}X: a\rContent-Length: 1\r\n\r\n{next}")),
        ("a zero byte", format!("{put}X: a\0b\r\n\r\n{next}")),
    ];
    for (what, text) in cases {
        let mut http = rig.connect();
        http.send(&text).unwrap();
        let answered = String::from_utf8_lossy(&http.rest()).matches("HTTP/1.1 ").count();
        assert!(answered <= 1, "{what}: the connection went on");
        rig.honest();
    }
}

#[test]
fn a_request_has_one_host() {
    let rig = rig();
    for hosts in ["", "Host: a\r\nHost: b\r\n"] {
        let mut http = rig.connect();
        http.send(format!("GET {DISK} HTTP/1.1\r\n{hosts}\r\n")).unwrap();
        let reply = http.reply(false).unwrap();
        assert_eq!((reply.status, reply.code().as_str()), (400, "bad-host"), "{hosts:?}");
    }
    let mut old = rig.connect();
    old.send(format!("GET {DISK} HTTP/1.0\r\nRange: bytes=0-9\r\n\r\n")).unwrap();
    let text = old.rest();
    assert_eq!((status_of(&text), text.ends_with(&[7; 10])), (206, true));
}

#[test]
fn paths_do_not_lead_elsewhere() {
    let rig = rig();
    for path in [
        "/v1/clones/../clones/desk-1/disk",
        "/v1/clones/%2e%2e/desk-1/disk",
        "/v1/clones/desk-1%2fdisk",
        "/v1/clones/desk-1%00/disk",
        "/v1/clones/%00/disk",
        "/v1/clones/desk-1/disk/..",
        "/v1/clones/..%2f..%2fetc%2fpasswd/disk",
        "/v1/clones//disk",
        "/v1/clones/desk-1@identity/disk",
        "/v1/clones/disk%2fdata/disk",
        "/v1/clones/\u{e9}/disk",
        "/v1/disks/..",
        "//v1/clones/desk-1/disk",
        "/v1/clones/desk-1/disk%20",
        "*",
    ] {
        for method in ["GET", "PUT", "DELETE"] {
            let mut http = rig.connect();
            http.send(format!("{method} {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"))
                .unwrap();
            let status = status_of(&http.rest());
            assert!(matches!(status, 400 | 404 | 405), "{method} {path}: {status}");
        }
    }
    rig.honest();
}

#[test]
fn what_is_not_http_is_refused() {
    let rig = rig();
    for bytes in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..],
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET\r\n\r\n",
        b"\r\n\r\n\r\n\0\0\0\0",
        b"NBDMAGICIHAVEOPT",
        b"CONNECT example.org:443 HTTP/1.1\r\nHost: example.org\r\nConnection: close\r\n\r\n",
    ] {
        let mut http = rig.connect();
        http.send(bytes).unwrap();
        let status = status_of(&http.rest());
        assert!(matches!(status, 0 | 400 | 404 | 405 | 505), "{bytes:?}: {status}");
        rig.honest();
    }
}

#[test]
fn idle_connections_make_room_for_new_ones() {
    let rig = rig();
    let mut idle: Vec<RawHttp> = Vec::new();
    for _ in 0..CONNECTIONS_MAX * 4 {
        let mut http = rig.connect();
        assert_eq!(http.request("GET", DISK, &[("Range", "bytes=0-0")]).status, 206);
        idle.push(http);
    }
    rig.honest();
    assert!(rig.metric("clonegate_http_connections") <= CONNECTIONS_MAX as u64 + 2);
    // The newest are still served.
    let newest = idle.last_mut().unwrap();
    assert_eq!(newest.request("GET", DISK, &[("Range", "bytes=0-0")]).status, 206);
}

#[test]
fn readers_that_do_not_read_make_room_for_new_connections() {
    let rig = rig_with(|settings| {
        settings.workers = 1;
        settings.stall_timeout = Duration::from_secs(600);
        settings.crowded_timeout = Duration::from_millis(200);
    });
    let mut readers: Vec<RawHttp> = (0..CONNECTIONS_MAX).map(|_| rig.connect()).collect();
    for http in &mut readers {
        http.send("GET /v1/clones/huge/disk HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    }
    for http in &mut readers {
        http.stream().peek(&mut [0]).unwrap();
    }
    // New ones are turned away only until a reader has stood still for long enough.
    let mut served = 0;
    until(|| {
        let reply = rig.connect().request("GET", DISK, &[("Range", "bytes=0-99")]);
        assert!(matches!(reply.status, 206 | 503), "{}", reply.status);
        served += u32::from(reply.status == 206);
        assert!(rig.metric("clonegate_http_connections") <= CONNECTIONS_MAX as u64 + 1);
        served == 8
    });
    assert!(rig.metric("clonegate_http_connections_timed_out_total") >= 1);
}

#[test]
fn a_new_connection_is_turned_away_when_all_that_may_be_open_are_being_served() {
    let rig = rig_with(|settings| settings.workers = 1);
    rig.huge.stuck.store(true, SeqCst);
    let mut busy: Vec<RawHttp> = (0..CONNECTIONS_MAX).map(|_| rig.connect()).collect();
    for http in &mut busy {
        http.send([put_head(4).as_bytes(), b"abcd"].concat()).unwrap();
    }
    until(|| rig.huge.writing.load(SeqCst) == CONNECTIONS_MAX as u64);
    for _ in 0..3 {
        let reply = rig.connect().request("GET", DISK, &[("Range", "bytes=0-99")]);
        assert_eq!((reply.status, reply.code().as_str()), (503, "too-many-connections"));
        assert_eq!(reply.field("retry-after"), Some("1"));
    }
    assert_eq!(rig.metric("clonegate_http_connections_refused_total"), 3);
    assert_eq!(rig.metric("clonegate_http_connections"), CONNECTIONS_MAX as u64);
    rig.huge.stuck.store(false, SeqCst);
    for http in &mut busy {
        assert_eq!(http.reply(false).unwrap().status, 204);
    }
    rig.honest();
}

#[test]
fn a_shutdown_lets_answers_finish() {
    let disk = MemoryDevice::holding("desk-1", &[7; 3 * 1024 * 1024], false);
    let exports = MemoryExports::of(&[("desk-1", &disk)]);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let settings = HttpSettings { listen: ([127, 0, 0, 1], 0).into(), ..HttpSettings::default() };
    let server = {
        let _inside = runtime.enter();
        clonegate::http::serve(&settings, exports, None, &Metrics::new(), &Clock::system()).unwrap()
    };
    let address = server.local_addr();
    let mut idle = RawHttp::connect(address);
    assert_eq!(idle.request("GET", DISK, &[("Range", "bytes=0-0")]).status, 206);
    let mut busy = RawHttp::connect(address);
    busy.send(format!("GET {DISK} HTTP/1.1\r\nHost: a\r\n\r\n")).unwrap();
    let mut first = [0; 12];
    std::io::Read::read_exact(busy.stream(), &mut first).unwrap();
    let ending = runtime.spawn(server.shutdown());
    assert_eq!(idle.rest(), b"");
    let rest = busy.rest();
    assert!(rest.len() > 3 * 1024 * 1024 && rest.ends_with(&[7; 1024]));
    runtime.block_on(ending).unwrap();
    assert!(std::net::TcpStream::connect(address).is_err());
}

#[test]
fn a_port_in_use_is_said_in_one_line() {
    let rig = rig();
    let settings = HttpSettings { listen: rig.address, ..HttpSettings::default() };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let _inside = runtime.enter();
    let exports = MemoryExports::of(&[]);
    let error = clonegate::http::serve(&settings, exports, None, &Metrics::new(), &Clock::system()).unwrap_err();
    assert_eq!(error.code(), "address-in-use");
    assert!(!error.to_string().contains('\n'), "{error}");
}
