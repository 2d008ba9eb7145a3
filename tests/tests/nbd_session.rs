//! Sessions over NBD: commands in every style, order, errors, time limits, and the end.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use clonegate::nbd::client::{Connection, NbdUri, Piece, Wish};
use clonegate_core::nbd::meta::Run;
use clonegate_core::nbd::{Command, Style, command_flags, errno, export_flags};
use clonegate_core::{Error, ErrorKind};
use clonegate_tests::nbd::{NbdHost, NbdHouse, NbdVolume, until, wish};

const SIZE: u64 = 8 << 20;
const STYLES: [Style; 3] = [Style::Simple, Style::Structured, Style::Extended];

#[test]
fn every_command_works_in_every_style() {
    for style in STYLES {
        let volume = NbdVolume::new("disk", SIZE, SIZE / 2);
        let host = NbdHost::of(&volume);
        host.run(async {
            let mut disk = host.open(style).await;
            assert_eq!(disk.size(), SIZE);
            // Sizes around every threshold of the server: copied payloads, received payloads, large ones.
            for (offset, length) in [(0, 1), (511, 2), (4095, 4098), (8192, 16384), (3, 16385), (65536, 3 << 20)] {
                let data: Vec<u8> = (0..length).map(|byte: u64| (byte * 7 + offset).to_le_bytes()[0]).collect();
                let wrote = disk.call(Command::Write, 0, offset, length, &data).await.unwrap();
                assert_eq!(wrote.errno, 0, "{}", wrote.message);
                let read = disk.call(Command::Read, 0, offset, length, &[]).await.unwrap();
                assert!(read.bytes() == data, "{style:?} {offset} {length}");
                volume.slow.store(true, Ordering::Relaxed);
                let read = disk.call(Command::Read, 0, offset, length, &[]).await.unwrap();
                assert!(read.bytes() == data, "{style:?} {offset} {length} slowly");
                let wrote = disk.call(Command::Write, command_flags::FUA, offset, length, &data).await.unwrap();
                assert_eq!(wrote.errno, 0);
                volume.slow.store(false, Ordering::Relaxed);
            }
            for (command, flags) in [
                (Command::WriteZeroes, command_flags::NO_HOLE | command_flags::FAST_ZERO | command_flags::FUA),
                (Command::Trim, command_flags::FUA),
            ] {
                let done = disk.call(command, flags, 8000, 100_000, &[]).await.unwrap();
                assert_eq!(done.errno, 0);
                let read = disk.call(Command::Read, 0, 8000, 100_000, &[]).await.unwrap();
                assert!(read.bytes().iter().all(|byte| *byte == 0));
            }
            assert_eq!(disk.call(Command::Flush, 0, 0, 0, &[]).await.unwrap().errno, 0);
            assert_eq!(volume.flushes.load(Ordering::SeqCst), 1);
            assert_eq!(disk.call(Command::Cache, 0, 4096, 8192, &[]).await.unwrap().errno, 0);
            assert_eq!(format!("{:?}", volume.prefetched.lock().unwrap()), "[4096..12288]");
            disk.disconnect().await.unwrap();
        });
    }
}

#[test]
fn zeroes_are_told_as_a_hole_and_not_sent() {
    let host = NbdHost::of(&NbdVolume::new("disk", SIZE, 0));
    host.run(async {
        for style in [Style::Structured, Style::Extended] {
            let mut disk = host.open(style).await;
            for flags in [0, command_flags::DF] {
                let read = disk.call(Command::Read, flags, 4096, 1 << 20, &[]).await.unwrap();
                assert_eq!(read.pieces, [(4096, Piece::Hole(1 << 20))]);
            }
        }
        let read = host.open(Style::Simple).await.call(Command::Read, 0, 0, 4096, &[]).await.unwrap();
        assert_eq!(read.bytes(), vec![0; 4096]);
    });
}

#[test]
fn status_tells_what_is_delta_base_and_zero() {
    let volume = NbdVolume::new("disk", SIZE, 1 << 20);
    let host = NbdHost::of(&volume);
    let contexts = vec!["base:allocation".to_owned(), "clonegate:source".to_owned()];
    host.run(async {
        for style in [Style::Structured, Style::Extended] {
            let uri: NbdUri = host.uri("disk").parse().unwrap();
            let wish = Wish { style, contexts: contexts.clone(), tls: None };
            let mut disk = Connection::open(&uri, &wish).await.unwrap();
            assert_eq!(disk.flags() & export_flags::BLOCK_STATUS_PAYLOAD != 0, style == Style::Extended);
            disk.call(Command::Write, 0, 2 << 20, 4096, &[1; 4096]).await.unwrap();
            disk.call(Command::Write, 0, 0, 4096, &[1; 4096]).await.unwrap();
            let runs = |list: &[(u64, u32)]| -> Vec<Run> {
                list.iter().map(|&(length, status)| Run { length, status }).collect()
            };
            let mib = 1 << 20;
            let all = disk.call(Command::BlockStatus, 0, 0, SIZE, &[]).await.unwrap();
            let expect = [
                (1, runs(&[(mib, 0), (mib, 3), (4096, 0), (SIZE - 2 * mib - 4096, 3)])),
                (2, runs(&[(4096, 1), (mib - 4096, 2), (mib, 0), (4096, 1), (SIZE - 2 * mib - 4096, 0)])),
            ];
            assert_eq!(all.status, expect);
            let one = disk.call(Command::BlockStatus, command_flags::REQ_ONE, 4096, SIZE - 4096, &[]).await.unwrap();
            assert_eq!(one.status, [(1, runs(&[(mib - 4096, 0)])), (2, runs(&[(mib - 4096, 2)]))]);
            if style == Style::Extended {
                // One context of the two, by a payload.
                let chosen = [&SIZE.to_be_bytes()[..], &2u32.to_be_bytes()].concat();
                let some = disk.call(Command::BlockStatus, 0, 0, chosen.len() as u64, &chosen).await.unwrap();
                assert_eq!(some.status, expect[1..]);
                for wrong in [
                    [&SIZE.to_be_bytes()[..], &3u32.to_be_bytes()].concat(),
                    [&(SIZE + 1).to_be_bytes()[..], &1u32.to_be_bytes()].concat(),
                    [&SIZE.to_be_bytes()[..], &1u32.to_be_bytes(), &1u32.to_be_bytes()].concat(),
                    [&0u64.to_be_bytes()[..], &1u32.to_be_bytes()].concat(),
                    vec![0; 5],
                ] {
                    let answer = disk.call(Command::BlockStatus, 0, 0, wrong.len() as u64, &wrong).await.unwrap();
                    assert_eq!(answer.errno, errno::EINVAL, "{wrong:?}");
                }
                // Lengths beyond 32 bits work where there is no payload.
                let far = disk.call(Command::Trim, 0, 0, 1 << 33, &[]).await.unwrap();
                assert_eq!(far.errno, errno::EINVAL);
            }
        }
    });
}

#[test]
fn contexts_chosen_for_another_export_do_not_count() {
    let volumes = [NbdVolume::new("disk", SIZE, SIZE), NbdVolume::new("other", SIZE, SIZE)];
    let host = NbdHost::start(&NbdHouse::of(&[&volumes[0], &volumes[1]]), |_| {});
    let mut stream = TcpStream::connect(("127.0.0.1", host.port())).unwrap();
    use clonegate_core::nbd::{OptionRequest, Request};
    let mut out = 3u32.to_be_bytes().to_vec();
    OptionRequest::StructuredReply.encode(&mut out);
    OptionRequest::SetMetaContext("disk".into(), vec!["base:allocation".into()]).encode(&mut out);
    OptionRequest::Go("other".into(), vec![]).encode(&mut out);
    let ask = Request { flags: 0, command: Command::BlockStatus, cookie: 1, offset: 0, length: 4096 };
    ask.encode(Style::Structured, &mut out);
    Request { command: Command::Disconnect, ..ask }.encode(Style::Structured, &mut out);
    stream.write_all(&out).unwrap();
    let mut all = Vec::new();
    stream.read_to_end(&mut all).unwrap();
    let error = [&0x668e_33efu32.to_be_bytes()[..], &1u16.to_be_bytes(), &0x8001u16.to_be_bytes()].concat();
    assert!(all.windows(error.len()).any(|window| window == error), "the status is refused");
}

#[test]
fn requests_overtake_one_that_waits() {
    let volume = NbdVolume::new("disk", SIZE, SIZE);
    let host = NbdHost::of(&volume);
    host.run(async {
        let mut disk = host.open(Style::Structured).await;
        volume.hold_writes.store(true, Ordering::SeqCst);
        let held = disk.queue(Command::Write, 0, 0, 4096, &[9; 4096]);
        let read = disk.queue(Command::Read, 0, 65536, 4096, &[]);
        let flush = disk.queue(Command::Flush, 0, 0, 0, &[]);
        disk.send().await.unwrap();
        let (first, second) = (disk.receive().await.unwrap(), disk.receive().await.unwrap());
        let mut overtook = [first.cookie, second.cookie];
        overtook.sort_unstable();
        assert_eq!(overtook, [read, flush]);
        volume.writes.add_permits(1);
        assert_eq!(disk.receive().await.unwrap().cookie, held);
    });
}

#[test]
fn a_thousand_requests_in_flight_are_each_answered_once() {
    let volume = NbdVolume::new("disk", SIZE, SIZE);
    let host = NbdHost::of(&volume);
    host.run(async {
        for style in STYLES {
            for delay_us in [0, 200] {
                volume.slow.store(delay_us > 0, Ordering::Relaxed);
                volume.read_delay_us.store(delay_us, Ordering::Relaxed);
                let mut disk = host.open(style).await;
                let mut asked = std::collections::HashMap::new();
                for number in 0..1000u64 {
                    let (offset, length) = (number * 8123 % (SIZE - 70_000), 1 + number * 311 % 65_536);
                    asked.insert(disk.queue(Command::Read, 0, offset, length, &[]), (offset, length));
                }
                disk.send().await.unwrap();
                while !asked.is_empty() {
                    let answer = disk.receive().await.unwrap();
                    let (offset, length) = asked.remove(&answer.cookie).expect("asked and not answered before");
                    let bytes = answer.bytes();
                    assert_eq!(bytes.len() as u64, length);
                    for (at, byte) in (offset..).zip(&bytes) {
                        assert_eq!(*byte, (at / 8 * 8).to_be_bytes()[usize::try_from(at % 8).unwrap()]);
                    }
                }
            }
        }
    });
}

#[test]
fn errors_of_the_device_have_their_errno_and_their_sentence() {
    let volume = NbdVolume::new("disk", SIZE, SIZE);
    let host = NbdHost::of(&volume);
    volume.slow.store(true, Ordering::Relaxed);
    host.run(async {
        let mut disk = host.open(Style::Structured).await;
        for (kind, expect) in [
            (ErrorKind::Corrupt, errno::EIO),
            (ErrorKind::Unavailable, errno::EIO),
            (ErrorKind::Exhausted, errno::ENOSPC),
            (ErrorKind::Denied, errno::EPERM),
            (ErrorKind::Unsupported, errno::ENOTSUP),
        ] {
            for command in [Command::Read, Command::Write, Command::Flush] {
                let error = Error::new(kind, "test-error", "the chunk is damaged").on("packs/p_1").hint("run fsck");
                volume.failures.lock().unwrap().push(error);
                let length = if command == Command::Flush { 0 } else { 512 };
                let payload = if command == Command::Write { &[1; 512][..] } else { &[] };
                let answer = disk.call(command, 0, 0, length, payload).await.unwrap();
                assert_eq!(answer.errno, expect, "{kind} {command:?}");
                assert_eq!(answer.message, "packs/p_1: the chunk is damaged (run fsck)");
            }
        }
        assert_eq!(disk.call(Command::Read, 0, 0, 512, &[]).await.unwrap().errno, 0, "the connection goes on");
        // But not for one that lost the volume: the client has to look for the new owner.
        volume.failures.lock().unwrap().push(Error::fenced("fenced", "another gateway owns it"));
        assert_eq!(disk.call(Command::Write, 0, 0, 512, &[1; 512]).await.unwrap().errno, errno::ESHUTDOWN);
        assert!(disk.call(Command::Read, 0, 0, 512, &[]).await.is_err());
    });
}

#[test]
fn half_a_request_and_half_a_handshake_time_out() {
    let volume = NbdVolume::new("disk", SIZE, SIZE);
    // Each has one of the limits only, so that no other step is held to it on a busy machine.
    let shakes = NbdHost::start(&NbdHouse::of(&[&volume]), |settings| {
        settings.handshake_timeout = Duration::from_millis(300);
    });
    let host = NbdHost::start(&NbdHouse::of(&[&volume]), |settings| {
        settings.request_timeout = Duration::from_millis(300);
    });
    let greeting = [3u32.to_be_bytes().to_vec(), b"IHAVEOPT\0\0\0\x01\0\0\0\x04disk".to_vec()].concat();
    for (what, host, bytes) in [
        ("no client flags", &shakes, vec![]),
        ("half an option", &shakes, greeting[..10].to_vec()),
        ("half a request", &host, [&greeting[..], &[0x25, 0x60, 0x95]].concat()),
        (
            "half a payload",
            &host,
            [&greeting[..], b"\x25\x60\x95\x13\0\0\0\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x10\0half"].concat(),
        ),
    ] {
        let mut stream = TcpStream::connect(("127.0.0.1", host.port())).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.write_all(&bytes).unwrap();
        let mut rest = Vec::new();
        let ended = stream.read_to_end(&mut rest);
        let waits = ended.is_err_and(|error| matches!(error.kind(), std::io::ErrorKind::WouldBlock));
        assert!(!waits, "{what}: still open");
    }
    // A whole request and silence is no reason.
    host.run(async {
        let mut disk = host.open(Style::Simple).await;
        tokio::time::sleep(Duration::from_millis(900)).await;
        assert_eq!(disk.call(Command::Read, 0, 0, 512, &[]).await.unwrap().errno, 0);
    });
}

#[test]
fn a_client_that_takes_no_replies_is_cut_and_its_writes_are_kept() {
    let volume = NbdVolume::new("disk", SIZE, SIZE);
    let host = NbdHost::start(&NbdHouse::of(&[&volume]), |settings| {
        settings.reply_timeout = Duration::from_millis(300);
    });
    host.run(async {
        let mut deaf = host.open(Style::Simple).await;
        deaf.queue(Command::Write, 0, 0, 4096, &[7; 4096]);
        for _ in 0..64 {
            deaf.queue(Command::Read, 0, 0, 4 << 20, &[]);
        }
        deaf.send().await.unwrap();
        until(|| host.house.events().iter().any(|event| event == "detach disk Lost")).await;
        assert_eq!(volume.bytes()[..4096], [7; 4096]);
    });
}

#[test]
fn shutdown_finishes_what_is_in_flight() {
    let volume = NbdVolume::new("disk", SIZE, SIZE);
    let mut host = NbdHost::of(&volume);
    let mut disk = host.run(host.open(Style::Simple));
    volume.hold_writes.store(true, Ordering::SeqCst);
    host.run(async {
        disk.queue(Command::Write, 0, 0, 4096, &[3; 4096]);
        disk.send().await.unwrap();
        until(|| volume.held.load(Ordering::SeqCst) == 1).await;
    });
    let release = Arc::clone(&volume);
    let releaser = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(200));
        release.writes.add_permits(1);
    });
    host.stop();
    releaser.join().unwrap();
    let answer = host.run(disk.receive());
    assert_eq!(answer.unwrap().errno, 0, "it was done, so it is said");
    assert_eq!(volume.bytes()[..4096], [3; 4096]);
    assert_eq!(host.house.events().last().unwrap(), "detach disk Lost");
}

#[test]
fn a_unix_socket_serves_alike_and_replaces_a_stale_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("nbd.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let volume = NbdVolume::new("disk", SIZE, SIZE);
    let mut host = NbdHost::start(&NbdHouse::of(&[&volume]), |settings| settings.unix = Some(path.clone()));
    let uri: NbdUri = format!("nbd+unix:///disk?socket={}", path.display()).parse().unwrap();
    host.run(async {
        let mut disk = Connection::open(&uri, &wish(Style::Extended)).await.unwrap();
        assert_eq!(disk.call(Command::Read, 0, 8, 8, &[]).await.unwrap().bytes(), 8u64.to_be_bytes());
    });
    assert!(host.house.events().contains(&"attach disk unix".to_owned()));
    host.stop();
    assert!(!path.exists());
}
