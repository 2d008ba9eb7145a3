//! Malformed NBD by raw sockets: every wrong byte has the answer of the specification, and the connection survives where
//! that says so.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use clonegate_core::nbd::option::{code, reply};
use clonegate_core::nbd::{
    Command, INIT_MAGIC, OPTION_MAGIC, OPTION_REPLY_MAGIC, Reply, Request, Style, command_flags, errno,
};
use clonegate_tests::nbd::{NbdHost, NbdHouse, NbdVolume};

const SIZE: u64 = 8 << 20;
const PATIENCE: Duration = Duration::from_secs(20);

/// A connection that says whatever it is told to.
struct Raw(TcpStream);

impl Raw {
    fn new(port: u16) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        let mut raw = Self(stream);
        let greeting = raw.take(18);
        assert_eq!(greeting[..8], INIT_MAGIC.to_be_bytes());
        assert_eq!(greeting[8..16], OPTION_MAGIC.to_be_bytes());
        assert_eq!(greeting[16..], [0, 3]);
        raw
    }

    /// With fixed newstyle and no padding.
    fn fixed(port: u16) -> Self {
        let mut raw = Self::new(port);
        raw.say(&3u32.to_be_bytes());
        raw
    }

    fn say(&mut self, bytes: &[u8]) {
        // The server may hang up while this is on its way; the answer tells.
        let _ = self.0.write_all(bytes);
    }

    fn take(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.0.read_exact(&mut bytes).unwrap();
        bytes
    }

    fn is_closed(&mut self) -> bool {
        let mut rest = [0; 4096];
        loop {
            match self.0.read(&mut rest) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) => return !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
            }
        }
    }

    /// Sends an option; gives the code of the last reply.
    fn option(&mut self, code: u32, data: &[u8]) -> u32 {
        self.say(&option(code, data));
        self.last_reply(code)
    }

    fn last_reply(&mut self, option: u32) -> u32 {
        loop {
            let head = self.take(20);
            let number = |at: usize| u32::from_be_bytes(head[at..at + 4].try_into().unwrap());
            assert_eq!(head[..8], OPTION_REPLY_MAGIC.to_be_bytes());
            assert_eq!(number(8), option);
            self.take(number(16) as usize);
            if number(12) == reply::ACK || number(12) & reply::ERROR != 0 {
                return number(12);
            }
        }
    }

    fn go(&mut self) {
        assert_eq!(self.option(code::GO, &go("disk", &[])), reply::ACK);
    }

    /// Whether a read of the second 8 bytes of the base is answered rightly.
    fn reads(&mut self, style: Style) -> bool {
        let mut out = Vec::new();
        let request = Request { flags: 0, command: Command::Read, cookie: 4711, offset: 8, length: 8 };
        request.encode(style, &mut out);
        self.say(&out);
        let (errno, cookie, data) = self.reply(style, 8);
        (errno, cookie) == (0, 4711) && data == 8u64.to_be_bytes()
    }

    /// One reply that is one chunk: errno, cookie, and the bytes of a read of `length`.
    fn reply(&mut self, style: Style, length: usize) -> (u32, u64, Vec<u8>) {
        let head = self.take(match style {
            Style::Simple => 16,
            Style::Structured => 4,
            Style::Extended => 32,
        });
        // With structured replies those without data are simple.
        let head = if style == Style::Structured {
            let simple = head[..] == 0x6744_6698u32.to_be_bytes();
            [head, self.take(if simple { 12 } else { 16 })].concat()
        } else {
            head
        };
        match Reply::decode(&head).unwrap().unwrap().0 {
            Reply::Simple { errno, cookie } => {
                let data = if errno == 0 && style == Style::Simple { self.take(length) } else { Vec::new() };
                (errno, cookie, data)
            }
            Reply::Chunk { kind, cookie, length, flags, .. } => {
                assert_eq!(flags, 1);
                let payload = self.take(usize::try_from(length).unwrap());
                if kind & 0x8000 != 0 {
                    (u32::from_be_bytes(payload[..4].try_into().unwrap()), cookie, Vec::new())
                } else {
                    (0, cookie, payload.get(8..).unwrap_or_default().to_vec())
                }
            }
        }
    }
}

fn option(code: u32, data: &[u8]) -> Vec<u8> {
    let length = u32::try_from(data.len()).unwrap();
    [&OPTION_MAGIC.to_be_bytes()[..], &code.to_be_bytes(), &length.to_be_bytes(), data].concat()
}

fn counted(text: &[u8]) -> Vec<u8> {
    [&u32::try_from(text.len()).unwrap().to_be_bytes()[..], text].concat()
}

fn go(name: &str, kinds: &[u16]) -> Vec<u8> {
    let mut data = counted(name.as_bytes());
    data.extend_from_slice(&u16::try_from(kinds.len()).unwrap().to_be_bytes());
    kinds.iter().for_each(|kind| data.extend_from_slice(&kind.to_be_bytes()));
    data
}

fn meta(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = counted(name.as_bytes());
    data.extend_from_slice(&u32::try_from(queries.len()).unwrap().to_be_bytes());
    queries.iter().for_each(|query| data.extend_from_slice(&counted(query.as_bytes())));
    data
}

fn host() -> NbdHost {
    NbdHost::start(
        &NbdHouse::of(&[&NbdVolume::new("disk", SIZE, SIZE), &NbdVolume::sealed("seal", SIZE, SIZE)]),
        |_| {},
    )
}

/// Options that are refused with a code, after which the same connection works.
fn refused_options() -> Vec<(String, u32, Vec<u8>, u32)> {
    let mut cases: Vec<(String, u32, Vec<u8>, u32)> = Vec::new();
    let mut add = |what: &str, code: u32, data: Vec<u8>, expect: u32| cases.push((what.to_owned(), code, data, expect));
    for unknown in [0, 4, 12, 13, 99, 0x7fff_ffff, 0x8000_0001, u32::MAX] {
        add("unknown option", unknown, vec![], reply::ERR_UNSUP);
        add("unknown option with data", unknown, vec![7; 100], reply::ERR_UNSUP);
    }
    for bare in [code::LIST, code::STARTTLS, code::STRUCTURED_REPLY, code::EXTENDED_HEADERS] {
        for length in [1, 8, 1000] {
            add("data where none belongs", bare, vec![0; length], reply::ERR_INVALID);
        }
    }
    add("TLS without a certificate", code::STARTTLS, vec![], reply::ERR_POLICY);
    for which in [code::GO, code::INFO] {
        let whole = go("disk", &[1, 2]);
        for cut in 0..whole.len() {
            add("cut short", which, whole[..cut].to_vec(), reply::ERR_INVALID);
        }
        add("data after the end", which, [&whole[..], &[0]].concat(), reply::ERR_INVALID);
        for length in [4097, 5000, 0x7fff_ffff, u32::MAX] {
            let lie = [&length.to_be_bytes()[..], b"disk\0\0"].concat();
            add("length of the name lies", which, lie, reply::ERR_TOO_BIG);
        }
        add("name is not UTF-8", which, [&counted(&[0xff, 0xfe])[..], &[0, 0]].concat(), reply::ERR_INVALID);
        add("name has a NUL", which, [&counted(b"di\0sk")[..], &[0, 0]].concat(), reply::ERR_INVALID);
        add(
            "more facts than there are",
            which,
            [&counted(b"disk")[..], &[0xff, 0xff, 0, 0]].concat(),
            reply::ERR_INVALID,
        );
        let long = "a".repeat(4096);
        for name in ["nosuch", "Bad Name", "../etc/passwd", "a/b", "disk/../seal", "disk@", "@", "base/x", "é", &long]
        {
            add("no such export", which, go(name, &[]), reply::ERR_UNKNOWN);
        }
        add("no default export among several", which, go("", &[]), reply::ERR_UNKNOWN);
    }
    for which in [code::SET_META_CONTEXT, code::LIST_META_CONTEXT] {
        add("contexts before structured replies", which, meta("disk", &["base:allocation"]), reply::ERR_INVALID);
        let whole = meta("disk", &["base:allocation"]);
        for cut in 0..whole.len() {
            add("cut short", which, whole[..cut].to_vec(), reply::ERR_INVALID);
        }
        add("data after the end", which, [&whole[..], &[0]].concat(), reply::ERR_INVALID);
        let many = [&counted(b"disk")[..], &u32::MAX.to_be_bytes()].concat();
        add("more queries than there are", which, many, reply::ERR_INVALID);
        let lie = [&counted(b"disk")[..], &1u32.to_be_bytes(), &u32::MAX.to_be_bytes()].concat();
        add("length of a query lies", which, lie, reply::ERR_TOO_BIG);
    }
    add("too long", code::LIST, vec![0; 65_537], reply::ERR_TOO_BIG);
    add("too long", code::GO, vec![0; 1 << 20], reply::ERR_TOO_BIG);
    add("too long and unknown", 77, vec![0; 1 << 20], reply::ERR_TOO_BIG);
    cases
}

#[test]
fn a_refused_option_has_its_code_and_the_connection_goes_on() {
    let host = host();
    let cases = refused_options();
    assert!(cases.len() >= 100, "{} cases", cases.len());
    for (what, code, data, expect) in cases {
        let mut raw = Raw::fixed(host.port());
        let got = raw.option(code, &data);
        assert_eq!(got, expect, "{what}: option {code} with {} bytes: {got:#x} is not {expect:#x}", data.len());
        raw.go();
        assert!(raw.reads(Style::Simple), "{what}: the connection does not read after it");
    }
}

#[test]
fn after_structured_replies_contexts_have_their_own_refusals() {
    let host = host();
    for (which, data, expect) in [
        (code::SET_META_CONTEXT, meta("nosuch", &["base:allocation"]), reply::ERR_UNKNOWN),
        (code::SET_META_CONTEXT, meta("disk", &["allocation"]), reply::ERR_INVALID),
        (code::SET_META_CONTEXT, meta("disk", &[""]), reply::ERR_INVALID),
        (code::LIST_META_CONTEXT, meta("disk", &["base"]), reply::ERR_INVALID),
        (code::LIST_META_CONTEXT, meta("nosuch", &[]), reply::ERR_UNKNOWN),
        (code::SET_META_CONTEXT, meta("disk", &["x-foreign:thing", "qemu:dirty-bitmap:b"]), reply::ACK),
        (code::LIST_META_CONTEXT, meta("disk", &["x-foreign:"]), reply::ACK),
        (code::STRUCTURED_REPLY, vec![], reply::ERR_INVALID),
        (code::EXTENDED_HEADERS, vec![], reply::ACK),
    ] {
        let mut raw = Raw::fixed(host.port());
        assert_eq!(raw.option(code::STRUCTURED_REPLY, &[]), reply::ACK);
        assert_eq!(raw.option(which, &data), expect, "{which} {data:?}");
        let style = if which == code::EXTENDED_HEADERS { Style::Extended } else { Style::Structured };
        raw.go();
        assert!(raw.reads(style));
    }
    let mut raw = Raw::fixed(host.port());
    assert_eq!(raw.option(code::EXTENDED_HEADERS, &[]), reply::ACK);
    assert_eq!(raw.option(code::EXTENDED_HEADERS, &[]), reply::ERR_INVALID);
    assert_eq!(raw.option(code::STRUCTURED_REPLY, &[]), reply::ERR_EXT_HEADER_REQD);
    raw.go();
    assert!(raw.reads(Style::Extended));
}

#[test]
fn a_choice_of_contexts_that_fails_undoes_the_one_before() {
    let host = host();
    let good = meta("disk", &["base:allocation"]);
    for wrong in
        [meta("nosuch", &["base:allocation"]), meta("disk", &["allocation"]), good[..7].to_vec(), vec![0; 65_537]]
    {
        let mut raw = Raw::fixed(host.port());
        assert_eq!(raw.option(code::STRUCTURED_REPLY, &[]), reply::ACK);
        assert_eq!(raw.option(code::SET_META_CONTEXT, &good), reply::ACK);
        assert_ne!(raw.option(code::SET_META_CONTEXT, &wrong), reply::ACK);
        raw.go();
        let mut out = Vec::new();
        let ask = Request { flags: 0, command: Command::BlockStatus, cookie: 9, offset: 0, length: 4096 };
        ask.encode(Style::Structured, &mut out);
        raw.say(&out);
        assert_eq!(raw.reply(Style::Structured, 0), (errno::EINVAL, 9, vec![]), "{} bytes", wrong.len());
        assert!(raw.reads(Style::Structured));
    }
}

#[test]
fn what_cannot_be_answered_is_hung_up_on_and_the_server_goes_on() {
    let host = host();
    let flags = |flags: u32| flags.to_be_bytes().to_vec();
    let fixed = |rest: &[u8]| [&flags(3)[..], rest].concat();
    let mut cases: Vec<(&str, Vec<u8>)> = vec![
        ("HTTP", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec()),
        ("TLS at once", [&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3][..], &[0; 64]].concat()),
        ("option without fixed newstyle", [flags(0), option(code::LIST, &[])].concat()),
        ("option without fixed newstyle", [flags(2), option(code::GO, &go("disk", &[]))].concat()),
        ("export name unknown", fixed(&option(code::EXPORT_NAME, b"nosuch"))),
        ("export name empty", fixed(&option(code::EXPORT_NAME, b""))),
        ("export name no UTF-8", fixed(&option(code::EXPORT_NAME, &[0xff; 8]))),
        ("export name with NUL", fixed(&option(code::EXPORT_NAME, b"disk\0"))),
        ("export name too long", fixed(&option(code::EXPORT_NAME, &[b'a'; 4097]))),
        ("export name far too long", fixed(&option(code::EXPORT_NAME, &[b'a'; 70_000]))),
        (
            "export name with extended headers",
            fixed(&[option(code::EXTENDED_HEADERS, &[]), option(code::EXPORT_NAME, b"disk")].concat()),
        ),
        ("abort", fixed(&option(code::ABORT, &[]))),
        ("abort with data", fixed(&option(code::ABORT, &[1; 50]))),
        ("an option of 4 MiB and one", fixed(&[&option(99, &[])[..12], &0x0040_0001u32.to_be_bytes()].concat())),
        ("an option of 4 GiB", fixed(&[&option(code::GO, &[])[..12], &u32::MAX.to_be_bytes()].concat())),
        ("1001 options", fixed(&option(99, &[]).repeat(1001))),
        ("many long options", fixed(&option(99, &[0; 60_000]).repeat(80))),
    ];
    for bit in [2, 3, 7, 15, 16, 31] {
        cases.push(("unknown client flag", [flags(3 | 1 << bit), option(code::GO, &go("disk", &[]))].concat()));
    }
    for wrong in [0, 1, INIT_MAGIC, OPTION_REPLY_MAGIC, OPTION_MAGIC.swap_bytes(), u64::MAX] {
        cases.push(("wrong option magic", fixed(&[&wrong.to_be_bytes()[..], &[0; 8]].concat())));
    }
    for (what, bytes) in cases {
        let mut raw = Raw::new(host.port());
        raw.say(&bytes);
        assert!(raw.is_closed(), "{what}: not hung up on");
    }
    // Cut off in the middle of everything.
    let whole = fixed(&option(code::GO, &go("disk", &[3])));
    for cut in 0..whole.len() {
        Raw::new(host.port()).say(&whole[..cut]);
    }
    let mut raw = Raw::fixed(host.port());
    raw.go();
    assert!(raw.reads(Style::Simple));
}

/// A request, what follows it, and its errno; `None` is hung up on.
type Wrong = (Style, &'static str, u16, u16, u64, u64, usize, Option<u32>);

const WRONG_REQUESTS: &[Wrong] = {
    use Style::{Extended, Simple, Structured};
    use command_flags::{DF, FAST_ZERO, FUA, NO_HOLE, PAYLOAD_LEN, REQ_ONE};
    use errno::{EINVAL, ENOSPC, EOVERFLOW, EPERM};
    &[
        (Simple, "disk", 0, 0, SIZE, 1, 0, Some(EINVAL)),
        (Simple, "disk", 0, 0, SIZE - 1, 2, 0, Some(EINVAL)),
        (Simple, "disk", 0, 0, u64::MAX, 1, 0, Some(EINVAL)),
        (Simple, "disk", 0, 0, u64::MAX - 7, 8, 0, Some(EINVAL)),
        (Simple, "disk", 0, 0, 0, 0, 0, Some(EINVAL)),
        (Simple, "disk", 0, 0, 0, 33_554_433, 0, Some(EINVAL)),
        (Simple, "disk", 0, 0, 0, 0xffff_ffff, 0, Some(EINVAL)),
        (Structured, "disk", 0, 0, 0, 33_554_433, 0, Some(EOVERFLOW)),
        (Extended, "disk", 0, 0, 0, 1 << 40, 0, Some(EOVERFLOW)),
        (Simple, "disk", 0, DF, 0, 512, 0, Some(EINVAL)),
        (Simple, "disk", 0, NO_HOLE, 0, 512, 0, Some(EINVAL)),
        (Simple, "disk", 0, REQ_ONE, 0, 512, 0, Some(EINVAL)),
        (Simple, "disk", 0, FAST_ZERO, 0, 512, 0, Some(EINVAL)),
        (Simple, "disk", 0, PAYLOAD_LEN, 0, 512, 0, Some(EINVAL)),
        (Simple, "disk", 0, 1 << 6, 0, 512, 0, Some(EINVAL)),
        (Simple, "disk", 0, 1 << 15, 0, 512, 0, Some(EINVAL)),
        (Structured, "disk", 0, 0xfffe, 0, 512, 0, Some(EINVAL)),
        (Extended, "disk", 0, PAYLOAD_LEN, 0, 512, 512, Some(EINVAL)),
        (Extended, "disk", 0, PAYLOAD_LEN, 0, 100_000, 100_000, Some(EINVAL)),
        (Simple, "disk", 1, 0, SIZE, 512, 512, Some(ENOSPC)),
        (Simple, "disk", 1, 0, SIZE - 1, 512, 512, Some(ENOSPC)),
        (Simple, "disk", 1, 0, u64::MAX - 100, 512, 512, Some(ENOSPC)),
        (Simple, "disk", 1, 0, SIZE, 100_000, 100_000, Some(ENOSPC)),
        (Simple, "disk", 1, 0, 0, 0, 0, Some(EINVAL)),
        (Simple, "disk", 1, 0, 0, 33_554_433, 33_554_433, Some(EINVAL)),
        (Simple, "disk", 1, 0, 0, 67_108_865, 0, None),
        (Simple, "disk", 1, 0, 0, 0xffff_ffff, 0, None),
        (Simple, "disk", 1, NO_HOLE, 0, 512, 512, Some(EINVAL)),
        (Simple, "disk", 1, DF, 0, 512, 512, Some(EINVAL)),
        (Simple, "disk", 1, 1 << 14, 0, 20_000, 20_000, Some(EINVAL)),
        (Extended, "disk", 1, 0, 0, 512, 0, Some(EINVAL)),
        (Extended, "disk", 1, 0, 0, u64::MAX, 0, Some(EINVAL)),
        (Extended, "disk", 1, PAYLOAD_LEN, 0, u64::MAX, 0, None),
        (Extended, "disk", 1, PAYLOAD_LEN, 0, 1 << 32, 0, None),
        (Extended, "disk", 1, PAYLOAD_LEN, SIZE, 512, 512, Some(ENOSPC)),
        (Simple, "seal", 1, 0, 0, 512, 512, Some(EPERM)),
        (Simple, "seal", 1, FUA, 0, 50_000, 50_000, Some(EPERM)),
        (Structured, "seal", 1, 0, SIZE, 512, 512, Some(EPERM)),
        (Extended, "seal", 1, PAYLOAD_LEN, 0, 512, 512, Some(EPERM)),
        (Simple, "disk", 3, 0, 1, 0, 0, Some(EINVAL)),
        (Simple, "disk", 3, 0, 0, 1, 0, Some(EINVAL)),
        (Simple, "disk", 3, DF, 0, 0, 0, Some(EINVAL)),
        (Extended, "disk", 3, PAYLOAD_LEN, 0, 16, 16, Some(EINVAL)),
        (Simple, "disk", 4, 0, SIZE, 512, 0, Some(EINVAL)),
        (Simple, "disk", 4, 0, 0, 0, 0, Some(EINVAL)),
        (Simple, "disk", 4, NO_HOLE, 0, 512, 0, Some(EINVAL)),
        (Simple, "disk", 4, FAST_ZERO, 0, 512, 0, Some(EINVAL)),
        (Simple, "disk", 4, 0, 0, 0xffff_ffff, 0, Some(EINVAL)),
        (Simple, "seal", 4, 0, 0, 512, 0, Some(EPERM)),
        (Simple, "disk", 5, 0, SIZE, 1, 0, Some(EINVAL)),
        (Simple, "disk", 5, 0, 0, 0, 0, Some(EINVAL)),
        (Simple, "disk", 5, REQ_ONE, 0, 512, 0, Some(EINVAL)),
        (Simple, "disk", 6, 0, SIZE, 512, 0, Some(ENOSPC)),
        (Simple, "disk", 6, 0, 0, SIZE + 1, 0, Some(ENOSPC)),
        (Simple, "disk", 6, 0, 0, 0, 0, Some(EINVAL)),
        (Simple, "disk", 6, DF, 0, 512, 0, Some(EINVAL)),
        (Simple, "disk", 6, REQ_ONE, 0, 512, 0, Some(EINVAL)),
        (Simple, "seal", 6, 0, 0, 512, 0, Some(EPERM)),
        (Extended, "disk", 6, 0, 0, 1 << 50, 0, Some(ENOSPC)),
        (Extended, "disk", 4, 0, 4096, u64::MAX, 0, Some(EINVAL)),
        (Simple, "disk", 7, 0, 0, 512, 0, Some(EINVAL)),
        (Structured, "disk", 7, 0, 0, 512, 0, Some(EINVAL)),
        (Structured, "disk", 7, REQ_ONE, 0, 512, 0, Some(EINVAL)),
        (Extended, "disk", 7, PAYLOAD_LEN, 0, 12, 12, Some(EINVAL)),
        (Simple, "disk", 8, 0, 0, SIZE * 2, 0, Some(EINVAL)),
        (Extended, "disk", 8, 0, 0, 0, 0, Some(EINVAL)),
        (Simple, "disk", 9, 0, 0, 0, 0, Some(EINVAL)),
        (Simple, "disk", 100, 0, 0, 512, 0, Some(EINVAL)),
        (Simple, "disk", 0xffff, 0xffff, u64::MAX, 0xffff_ffff, 0, Some(EINVAL)),
        (Structured, "disk", 0x8000, 0, 0, 0, 0, Some(EINVAL)),
        (Extended, "disk", 77, PAYLOAD_LEN, 0, 5000, 5000, Some(EINVAL)),
        (Extended, "disk", 77, 0, 0, u64::MAX, 0, Some(EINVAL)),
    ]
};

#[test]
fn a_wrong_request_has_its_errno_and_the_connection_goes_on() {
    let host = host();
    assert!(WRONG_REQUESTS.len() >= 60);
    for case in WRONG_REQUESTS {
        let (style, export, command, flags, offset, length, payload, expect) = *case;
        let mut raw = Raw::fixed(host.port());
        match style {
            Style::Simple => {}
            Style::Structured => assert_eq!(raw.option(code::STRUCTURED_REPLY, &[]), reply::ACK),
            Style::Extended => assert_eq!(raw.option(code::EXTENDED_HEADERS, &[]), reply::ACK),
        }
        assert_eq!(raw.option(code::GO, &go(export, &[])), reply::ACK);
        let mut out = Vec::new();
        let request = Request { flags, command: Command::from_code(command), cookie: 99, offset, length };
        request.encode(style, &mut out);
        out.resize(out.len() + payload, 0x5a);
        raw.say(&out);
        match expect {
            None => assert!(raw.is_closed(), "{case:?}: not hung up on"),
            Some(errno) => {
                assert_eq!(raw.reply(style, 0), (errno, 99, vec![]), "{case:?}");
                assert!(raw.reads(style), "{case:?}: the connection does not read after it");
            }
        }
    }
    // None of it changed anything.
    let mut raw = Raw::fixed(host.port());
    raw.go();
    assert!(raw.reads(Style::Simple));
}

#[test]
fn a_request_that_is_none_ends_the_connection_and_no_other() {
    let host = host();
    for (style, magic) in [
        (Style::Simple, 0),
        (Style::Simple, 0x21e4_1c71),
        (Style::Simple, 0x6744_6698),
        (Style::Structured, u32::MAX),
        (Style::Extended, 0x2560_9513),
        (Style::Extended, 0x6e8a_278c),
    ] {
        let mut raw = Raw::fixed(host.port());
        match style {
            Style::Simple => {}
            Style::Structured => drop(raw.option(code::STRUCTURED_REPLY, &[])),
            Style::Extended => drop(raw.option(code::EXTENDED_HEADERS, &[])),
        }
        raw.go();
        raw.say(&[&magic.to_be_bytes()[..], &[0; 28]].concat());
        assert!(raw.is_closed(), "{magic:#x}");
    }
    // A request cut off at every byte, and a write cut off in its payload: none of it is done.
    let mut whole = Vec::new();
    Request { flags: 0, command: Command::Write, cookie: 1, offset: 0, length: 4096 }.encode(Style::Simple, &mut whole);
    whole.resize(whole.len() + 4096, 0xee);
    for cut in (0..28).chain([28, 29, 1000, whole.len() - 1]) {
        let mut raw = Raw::fixed(host.port());
        raw.go();
        raw.say(&whole[..cut]);
    }
    let mut raw = Raw::fixed(host.port());
    raw.go();
    assert!(raw.reads(Style::Simple));
}

#[test]
fn requests_before_the_answer_to_go_and_after_the_good_bye_are_handled() {
    let host = host();
    // Everything in one packet: flags, option, request, good-bye, and garbage that nobody may read.
    let mut raw = Raw::new(host.port());
    let mut all = [3u32.to_be_bytes().to_vec(), option(code::GO, &go("disk", &[]))].concat();
    let read = Request { flags: 0, command: Command::Read, cookie: 5, offset: 8, length: 8 };
    read.encode(Style::Simple, &mut all);
    Request { command: Command::Disconnect, ..read }.encode(Style::Simple, &mut all);
    all.extend_from_slice(&[0xff; 100]);
    raw.say(&all);
    assert_eq!(raw.last_reply(code::GO), reply::ACK);
    assert_eq!(raw.reply(Style::Simple, 8), (0, 5, 8u64.to_be_bytes().to_vec()));
    assert!(raw.is_closed());
}

#[test]
fn the_old_way_in_pads_or_not_as_the_client_says() {
    let host = host();
    for (flags, length) in [(0u32, 134), (1, 134), (2, 10), (3, 10)] {
        let mut raw = Raw::new(host.port());
        raw.say(&[&flags.to_be_bytes()[..], &option(code::EXPORT_NAME, b"disk")].concat());
        let answer = raw.take(length);
        assert_eq!(answer[..8], SIZE.to_be_bytes());
        assert!(answer[10..].iter().all(|byte| *byte == 0));
        assert!(raw.reads(Style::Simple));
    }
}

#[test]
fn memory_stays_bounded_under_liars() {
    let host = host();
    let resident = || {
        let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
        statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
    };
    let before = resident();
    // Each says that 32 MiB follow, and sends some of it; and each asks for more than it ever reads.
    let mut open = Vec::new();
    for number in 0..200u64 {
        let mut raw = Raw::fixed(host.port());
        raw.go();
        let mut out = Vec::new();
        if number % 2 == 0 {
            let write = Request { flags: 0, command: Command::Write, cookie: 1, offset: 0, length: 32 << 20 };
            write.encode(Style::Simple, &mut out);
            out.resize(out.len() + 10_000, 1);
        } else {
            let read = Request { flags: 0, command: Command::Read, cookie: 1, offset: 0, length: SIZE };
            (0..100).for_each(|_| read.encode(Style::Simple, &mut out));
        }
        raw.say(&out);
        open.push(raw);
    }
    let mut raw = Raw::fixed(host.port());
    raw.go();
    assert!(raw.reads(Style::Simple), "an honest client is served beside them");
    let grown = resident().saturating_sub(before);
    assert!(grown < 256 << 20, "{} MiB more are in use", grown >> 20);
}
