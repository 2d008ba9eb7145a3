//! Disks over HTTP, by real sockets against volumes in memory: RFC 9110 §13 and §14, PUT, and long answers.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use clonegate::clock::Clock;
use clonegate::http::{HttpServer, HttpSettings};
use clonegate::metrics::Metrics;
use clonegate_tests::memory_disk::{MemoryDevice, MemoryExports};
use clonegate_tests::raw_http::{RawHttp, Reply};

const SIZE: usize = 3 * 1024 * 1024 + 512;
const DISK: &str = "/v1/clones/desk-1/disk";
const ETAG: &str = "\"7-1\"";
const MODIFIED: &str = "Tue, 14 Nov 2023 22:13:20 GMT";
const BEFORE: &str = "Tue, 14 Nov 2023 22:13:19 GMT";

struct Rig {
    disk: Arc<MemoryDevice>,
    exports: Arc<MemoryExports>,
    bytes: Vec<u8>,
    address: SocketAddr,
    _server: HttpServer,
    _runtime: tokio::runtime::Runtime,
}

fn rig() -> Rig {
    let bytes: Vec<u8> = (0..SIZE).map(|n| (n / 512 * 7 + n) as u8).collect();
    let disk = MemoryDevice::holding("desk-1", &bytes, false);
    let base = MemoryDevice::holding("base", &bytes, true);
    let huge = MemoryDevice::new("huge", 1 << 62, false);
    huge.store((1 << 62) - 4, b"last");
    let exports = MemoryExports::of(&[
        ("desk-1", &disk),
        ("desk-1@identity", &base),
        ("huge", &huge),
        ("disk/data-1", &disk),
        ("base/b_00000000000000000000000000", &base),
        ("template/win11.23h2", &base),
    ]);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let settings = HttpSettings { listen: ([127, 0, 0, 1], 0).into(), workers: 2, ..HttpSettings::default() };
    let server = {
        let _inside = runtime.enter();
        clonegate::http::serve(&settings, Arc::clone(&exports) as _, None, &Metrics::new(), &Clock::system()).unwrap()
    };
    Rig { disk, exports, bytes, address: server.local_addr(), _server: server, _runtime: runtime }
}

impl Rig {
    fn connect(&self) -> RawHttp {
        RawHttp::connect(self.address)
    }

    fn get(&self, fields: &[(&str, &str)]) -> Reply {
        self.connect().request("GET", DISK, fields)
    }

    /// Runs a check from memory, from a volume that must be waited for, and from one that is not open.
    fn warm_cold_and_closed(&self, check: impl Fn()) {
        check();
        self.disk.cold.store(true, SeqCst);
        check();
        self.exports.closed.store(true, SeqCst);
        check();
        self.disk.cold.store(false, SeqCst);
        self.exports.closed.store(false, SeqCst);
    }
}

#[test]
fn single_ranges_are_206_with_exactly_those_bytes() {
    let rig = rig();
    let end = SIZE;
    rig.warm_cold_and_closed(|| {
        for (range, first, after) in [
            ("bytes=0-0", 0, 1),
            ("bytes=0-511", 0, 512),
            ("bytes=65535-65536", 65_535, 65_537),
            ("bytes=1000-2097151", 1000, 2_097_152),
            ("bytes=3145728-", 3_145_728, end),
            ("bytes=3145728-99999999999999999999", 3_145_728, end),
            ("bytes=-1", end - 1, end),
            ("bytes=-99999999", 0, end),
            ("BYTES=5-5", 5, 6),
            ("bytes= ,, 7-7 ,", 7, 8),
            ("bytes=9999999999-, 8-8", 8, 9),
        ] {
            let reply = rig.get(&[("Range", range)]);
            assert_eq!(reply.status, 206, "{range}");
            let expect = format!("bytes {first}-{}/{end}", after - 1);
            assert_eq!(reply.field("content-range"), Some(expect.as_str()), "{range}");
            assert_eq!(reply.field("content-length"), Some((after - first).to_string().as_str()), "{range}");
            assert!(reply.body == rig.bytes[first..after], "{range}: other bytes");
            assert_eq!(reply.field("etag"), Some(ETAG));
            assert_eq!(reply.field("last-modified"), Some(MODIFIED));
            assert_eq!(reply.field("accept-ranges"), Some("bytes"));
            assert_eq!(reply.field("content-type"), Some("application/octet-stream"));
            assert!(reply.field("date").is_some());
        }
    });
}

#[test]
fn malformed_ranges_are_ignored_and_everything_is_sent() {
    let rig = rig();
    rig.warm_cold_and_closed(|| {
        for range in ["bytes=", "bytes=2-1", "bytes=a-b", "items=0-1", "bytes=1", "bytes=0-1,5-4", "bytes 0-1"] {
            let reply = rig.get(&[("Range", range)]);
            assert_eq!((reply.status, reply.field("content-range")), (200, None), "{range}");
            assert!(reply.body == rig.bytes, "{range}: other bytes");
        }
    });
    let twice = rig.get(&[("Range", "bytes=0-0"), ("Range", "bytes=1-1")]);
    assert_eq!((twice.status, twice.body.len()), (200, SIZE));
}

#[test]
fn what_cannot_be_satisfied_is_416_with_the_size() {
    let rig = rig();
    let many = format!("bytes={}", (0..17).map(|n| format!("{}-{}", n * 2, n * 2)).collect::<Vec<_>>().join(","));
    for (range, code) in [
        ("bytes=99999999-", "range-unsatisfiable"),
        ("bytes=-0", "range-unsatisfiable"),
        ("bytes=0-,0-,0-", "overlapping-ranges"),
        (many.as_str(), "too-many-ranges"),
    ] {
        let reply = rig.get(&[("Range", range)]);
        assert_eq!((reply.status, reply.code().as_str()), (416, code), "{range}");
        assert_eq!(reply.field("content-range"), Some(format!("bytes */{SIZE}").as_str()));
        assert_eq!(reply.field("content-type"), Some("application/problem+json"));
    }
}

#[test]
fn several_ranges_are_multipart_in_the_order_asked() {
    let rig = rig();
    rig.warm_cold_and_closed(|| {
        let reply = rig.get(&[("Range", "bytes=100-102, 0-1, -1")]);
        assert_eq!((reply.status, reply.field("content-range")), (206, None));
        let kind = reply.field("content-type").unwrap();
        let boundary = kind.strip_prefix("multipart/byteranges; boundary=").unwrap();
        let mut expect = Vec::new();
        for (first, after) in [(100, 103), (0, 2), (SIZE - 1, SIZE)] {
            expect.extend_from_slice(if expect.is_empty() { b"--" } else { b"\r\n--" });
            expect.extend_from_slice(boundary.as_bytes());
            expect.extend_from_slice(
                format!(
                    "\r\nContent-Type: application/octet-stream\r\nContent-Range: bytes {first}-{}/{SIZE}\r\n\r\n",
                    after - 1
                )
                .as_bytes(),
            );
            expect.extend_from_slice(&rig.bytes[first..after]);
        }
        expect.extend_from_slice(format!("\r\n--{boundary}--\r\n").as_bytes());
        assert_eq!(reply.body, expect);
    });
    let large = rig.get(&[("Range", "bytes=0-1999999,2000000-3000000")]);
    assert!(large.status == 206 && large.body.len() > 3_000_001);
}

#[test]
fn volumes_beyond_32_bits_are_volumes() {
    let rig = rig();
    let size: u64 = 1 << 62;
    let mut http = rig.connect();
    let head = http.request("HEAD", "/v1/clones/huge/disk", &[]);
    assert_eq!((head.status, head.field("content-length")), (200, Some(size.to_string().as_str())));
    let last = http.request("GET", "/v1/clones/huge/disk", &[("Range", "bytes=-4")]);
    assert_eq!(last.body, b"last");
    assert_eq!(last.field("content-range"), Some(format!("bytes {}-{}/{size}", size - 4, size - 1).as_str()));
    let written = http.request_with(
        "PUT",
        "/v1/clones/huge/disk",
        &[("Content-Range", &format!("bytes {}-{}/{size}", 1u64 << 40, (1u64 << 40) + 3))],
        b"here",
    );
    assert_eq!(written.status, 204);
    let range = format!("bytes={}-{}", 1u64 << 40, (1u64 << 40) + 3);
    assert_eq!(http.request("GET", "/v1/clones/huge/disk", &[("Range", &range)]).body, b"here");
}

#[test]
fn preconditions_are_judged_in_the_order_of_the_rfc() {
    let rig = rig();
    let other = "\"7-0\"";
    let weak = "W/\"7-1\"";
    let cases: &[(&[(&str, &str)], u16)] = &[
        (&[("If-Match", ETAG)], 206),
        (&[("If-Match", "*")], 206),
        (&[("If-Match", other)], 412),
        (&[("If-Match", weak)], 412),
        (&[("If-Match", other), ("If-Match", ETAG)], 206),
        (&[("If-None-Match", ETAG)], 304),
        (&[("If-None-Match", weak)], 304),
        (&[("If-None-Match", "*")], 304),
        (&[("If-None-Match", other)], 206),
        (&[("If-None-Match", other), ("If-Modified-Since", MODIFIED)], 206),
        (&[("If-Modified-Since", MODIFIED)], 304),
        (&[("If-Modified-Since", BEFORE)], 206),
        (&[("If-Modified-Since", "yesterday")], 206),
        (&[("If-Modified-Since", "Tuesday, 14-Nov-23 22:13:20 GMT")], 304),
        (&[("If-Modified-Since", "Tue Nov 14 22:13:20 2023")], 304),
        (&[("If-Unmodified-Since", MODIFIED)], 206),
        (&[("If-Unmodified-Since", BEFORE)], 412),
        (&[("If-Match", ETAG), ("If-Unmodified-Since", BEFORE)], 206),
        (&[("If-Match", other), ("If-None-Match", ETAG)], 412),
        (&[("If-Range", ETAG)], 206),
        (&[("If-Range", other)], 200),
        (&[("If-Range", weak)], 200),
        (&[("If-Range", MODIFIED)], 206),
        (&[("If-Range", BEFORE)], 200),
        (&[("If-Range", ETAG), ("If-Range", ETAG)], 200),
    ];
    rig.warm_cold_and_closed(|| {
        for (fields, status) in cases {
            let fields: Vec<_> = fields.iter().copied().chain([("Range", "bytes=0-9")]).collect();
            let reply = rig.get(&fields);
            assert_eq!(reply.status, *status, "{fields:?}");
            assert_eq!(reply.field("etag"), Some(ETAG), "{fields:?}");
        }
    });
    // A range beyond the end does not matter when the condition says to send everything.
    assert_eq!(rig.get(&[("If-Range", other), ("Range", "bytes=99999999-")]).status, 200);
    assert_eq!(rig.get(&[("If-None-Match", ETAG), ("Range", "bytes=99999999-")]).status, 304);
}

#[test]
fn head_says_the_size_and_ignores_range() {
    let rig = rig();
    let mut http = rig.connect();
    rig.warm_cold_and_closed(|| {
        for fields in [&[][..], &[("Range", "bytes=0-9")][..]] {
            let reply = rig.connect().request("HEAD", DISK, fields);
            assert_eq!((reply.status, reply.field("content-range")), (200, None));
            assert_eq!(reply.field("content-length"), Some(SIZE.to_string().as_str()));
        }
    });
    for path in [
        "/v1/clones/desk-1/disk.img",
        "/v1/clones/desk-1/identity",
        "/v1/disks/data-1",
        "/v1/bases/b_00000000000000000000000000/disk",
        "/v1/templates/win11.23h2/disk",
    ] {
        assert_eq!(http.request("HEAD", path, &[]).status, 200, "{path}");
    }
}

#[test]
fn a_put_writes_there_and_nowhere_else() {
    let rig = rig();
    let mut http = rig.connect();
    let range = format!("bytes 1000-1004/{SIZE}");
    let reply = http.request_with("PUT", DISK, &[("Content-Range", &range), ("If-Match", ETAG)], b"hello");
    assert_eq!((reply.status, reply.field("etag")), (204, Some("\"7-2\"")));
    let again = http.request_with("PUT", DISK, &[("Content-Range", &range), ("If-Match", ETAG)], b"HELLO");
    assert_eq!((again.status, again.code().as_str()), (412, "precondition-failed"));
    let chunked = b"3\r\nHEL\r\n2\r\nLO\r\n0\r\n\r\n";
    let fields = [("Content-Range", "bytes 2000-2004/*"), ("Transfer-Encoding", "chunked")];
    assert_eq!(http.request_with("PUT", DISK, &fields, chunked).status, 204);
    let large = vec![9u8; 2 * 1024 * 1024];
    let fields = [("Content-Range", "bytes 500000-2597151/*"), ("Expect", "100-continue")];
    assert_eq!(http.request_with("PUT", DISK, &fields, &large).status, 204);
    let mut expect = rig.bytes.clone();
    expect[1000..1005].copy_from_slice(b"hello");
    expect[2000..2005].copy_from_slice(b"HELLO");
    expect[500_000..2_597_152].copy_from_slice(&large);
    assert!(rig.get(&[]).body == expect, "other bytes changed");
}

#[test]
fn a_wrong_put_says_what_is_wrong_and_writes_nothing() {
    let rig = rig();
    let end = format!("bytes {SIZE}-{}/*", SIZE + 4);
    let end_of_size = format!("bytes {SIZE}-{}/{SIZE}", SIZE + 4);
    let tried = format!("{DISK}?dry_run=true");
    let cases: &[(&str, &[(&str, &str)], u16, &str)] = &[
        (DISK, &[], 400, "content-range-required"),
        (DISK, &[("Content-Range", "bytes 0-4/*"), ("Content-Range", "bytes 0-4/*")], 400, "content-range-required"),
        (DISK, &[("Content-Range", "bytes 0-4")], 400, "content-range-malformed"),
        (DISK, &[("Content-Range", "bytes */5")], 400, "content-range-malformed"),
        (DISK, &[("Content-Range", "bytes 0-4/5")], 400, "content-range-size"),
        (DISK, &[("Content-Range", "bytes 0-5/*")], 400, "length-mismatch"),
        (DISK, &[("Content-Range", "bytes 0-3/*")], 400, "length-mismatch"),
        (DISK, &[("Content-Range", &end)], 416, "beyond-end"),
        (DISK, &[("Content-Range", &end_of_size)], 416, "beyond-end"),
        (DISK, &[("Content-Range", "bytes 0-4/*"), ("If-None-Match", "*")], 412, "precondition-failed"),
        (DISK, &[("Content-Range", "bytes 0-4/*"), ("If-Match", "\"0\"")], 412, "precondition-failed"),
        (DISK, &[("Content-Range", "bytes 0-4/*"), ("If-Unmodified-Since", BEFORE)], 412, "precondition-failed"),
        ("/v1/clones/huge/disk", &[("Content-Range", "bytes 0-67108864/*")], 413, "body-too-large"),
        ("/v1/bases/b_00000000000000000000000000/disk", &[("Content-Range", "bytes 0-4/*")], 405, "read-only"),
        ("/v1/templates/win11.23h2/disk", &[("Content-Range", "bytes 0-4/*")], 405, "read-only"),
        ("/v1/clones/desk-1/identity", &[("Content-Range", "bytes 0-4/*")], 405, "read-only"),
        ("/v1/clones/nobody/disk", &[("Content-Range", "bytes 0-4/*")], 404, "no-such-export"),
        // What was only to be tried does not happen.
        (&tried, &[("Content-Range", "bytes 0-4/*")], 400, "no-dry-run"),
        ("/v1/clones/Bad_Name/disk", &[("Content-Range", "bytes 0-4/*")], 400, "bad-id"),
    ];
    for (path, fields, status, code) in cases {
        let reply = rig.connect().request_with("PUT", path, fields, b"hello");
        assert_eq!((reply.status, reply.code().as_str()), (*status, *code), "{path} {fields:?}");
    }
    for (sent, fields) in [
        ("7\r\nhello!!\r\n0\r\n\r\n", "Transfer-Encoding: chunked\r\n"),
        ("2\r\nhe\r\n0\r\n\r\n", "Transfer-Encoding: chunked\r\n"),
    ] {
        let mut http = rig.connect();
        http.send(format!("PUT {DISK} HTTP/1.1\r\nHost: a\r\nContent-Range: bytes 0-4/*\r\n{fields}\r\n{sent}"))
            .unwrap();
        let reply = http.reply(false).unwrap();
        assert_eq!((reply.status, reply.code().as_str()), (400, "length-mismatch"), "{sent:?}");
    }
    assert!(rig.get(&[]).body == rig.bytes, "something was written");
}

#[test]
fn other_methods_and_paths_are_answered_with_what_there_is() {
    let rig = rig();
    let mut http = rig.connect();
    for (method, path, status, allow) in [
        ("DELETE", DISK, 405, Some("GET, HEAD, PUT, OPTIONS")),
        ("POST", "/v1/bases/b_00000000000000000000000000/disk", 405, Some("GET, HEAD, OPTIONS")),
        ("OPTIONS", DISK, 204, Some("GET, HEAD, PUT, OPTIONS")),
        ("GET", "/v1/clones/nobody/disk", 404, None),
        ("GET", "/v1/nothing", 404, None),
        ("GET", "/", 200, None),
        ("GET", "/healthz", 200, None),
        ("GET", "/readyz", 200, None),
        ("GET", "/openapi.json", 200, None),
    ] {
        let reply = http.request(method, path, &[]);
        assert_eq!((reply.status, reply.field("allow")), (status, allow), "{method} {path}");
    }
    let reply = http.request("DELETE", "/healthz", &[]);
    assert_eq!((reply.status, reply.code().as_str()), (405, "method-not-allowed"));
    assert!(reply.field("allow").is_some_and(|allow| allow.contains("GET")));
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let rig = rig();
    let mut http = rig.connect();
    let request = |n: usize| format!("GET {DISK} HTTP/1.1\r\nHost: a\r\nRange: bytes={n}-{n}\r\n\r\n");
    http.send((0..100).map(request).collect::<String>()).unwrap();
    for n in 0..100 {
        assert_eq!(http.reply(false).unwrap().body, rig.bytes[n..=n], "{n}");
    }
}

#[test]
fn a_long_answer_is_of_one_version_or_broken_off() {
    let rig = rig();
    rig.disk.restless.store(true, SeqCst);
    for cold in [false, true] {
        rig.disk.cold.store(cold, SeqCst);
        let reply = rig.get(&[]);
        assert_eq!((reply.status, reply.code().as_str()), (503, "changing"));
        // One window is read from one version by itself; only its name is not known.
        let part = rig.get(&[("Range", "bytes=0-9")]);
        assert_eq!((part.status, part.field("etag")), (206, None));
        assert_eq!(part.body, rig.bytes[..10]);
        assert_eq!(rig.get(&[("Range", "bytes=0-9"), ("If-Match", "*")]).status, 503);
    }
    rig.disk.restless.store(false, SeqCst);
    rig.disk.cold.store(false, SeqCst);
    let mut http = rig.connect();
    // As much as fits the buffers between us is on its way before the volume changes; the rest must not come.
    http.send("GET /v1/clones/huge/disk HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    let mut start = [0; 1024];
    std::io::Read::read_exact(http.stream(), &mut start).unwrap();
    let put = rig.connect().request_with("PUT", "/v1/clones/huge/disk", &[("Content-Range", "bytes 0-0/*")], b"x");
    assert_eq!(put.status, 204);
    let rest = http.rest();
    assert!(rest.iter().all(|byte| *byte == 0), "bytes of two versions in one answer");
}

#[test]
fn extents_are_paged() {
    let rig = rig();
    let mut http = rig.connect();
    let all: serde_json::Value =
        serde_json::from_slice(&http.request("GET", "/v1/clones/desk-1/extents", &[]).body).unwrap();
    assert_eq!(all["items"], serde_json::json!([{ "offset": 0, "length": SIZE, "source": "delta" }]));
    assert!(all.get("next").is_none());
    let page = |http: &mut RawHttp, query: &str| -> serde_json::Value {
        serde_json::from_slice(&http.request("GET", &format!("/v1/clones/huge/extents{query}"), &[]).body).unwrap()
    };
    let first = page(&mut http, "?limit=1");
    assert_eq!(first["items"].as_array().unwrap().len(), 1);
    assert_eq!(first["items"][0]["source"], "zero");
    assert!(first["next"].as_u64().unwrap() > 0);
    let last = page(&mut http, &format!("?cursor={}", (1u64 << 62) - 65_536));
    assert_eq!(last["items"][0]["source"], "delta");
    for (query, code) in
        [("?limit=x", "bad-query"), ("?nothing=1", "bad-query"), ("?cursor=9223372036854775807", "bad-cursor")]
    {
        assert_eq!(page(&mut http, query)["code"], code, "{query}");
    }
}

#[test]
fn the_load_generator_counts_what_it_gets() {
    let rig = rig();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let load = |path: &str, block| clonegate::bench::http::HttpLoad {
        url: format!("http://{}{path}", rig.address).parse().unwrap(),
        connections: 4,
        block,
        duration: std::time::Duration::from_millis(200),
        threads: 2,
    };
    let report = runtime.block_on(clonegate::bench::http::run(load(DISK, 4096), &Clock::system())).unwrap();
    assert!(report.requests > 0 && report.errors == 0 && report.p50_us <= report.p99_us, "{report:?}");
    let error = runtime.block_on(clonegate::bench::http::run(load("/v1/clones/nobody/disk", 4096), &Clock::system()));
    assert_eq!(error.unwrap_err().code(), "bad-object");
}
