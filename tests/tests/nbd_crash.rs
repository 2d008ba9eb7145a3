//! The real gateway is killed under NBD: what a machine that comes back is told, and what one that starts finds.

use std::io::{Read, Write};

use clonegate::nbd::client::{Connection, Wish};
use clonegate_core::nbd::{Command, Style, errno};
use clonegate_tests::Gateway;

fn up(arguments: &[&str]) -> Gateway {
    let gateway = Gateway::up(&["--clones", "0"]);
    let mut create = vec!["clone", "create", "desk", "--template", "demo"];
    create.extend(arguments);
    gateway.cli_ok(&create);
    gateway
}

async fn open(gateway: &Gateway) -> Connection {
    let uri = format!("nbd://{}/desk", gateway.nbd()).parse().unwrap();
    Connection::open(&uri, &Wish { style: Style::Structured, ..Wish::default() }).await.unwrap()
}

async fn call(disk: &mut Connection, command: Command, offset: u64, data: &[u8]) -> u32 {
    let length = if command == Command::Read { 4096 } else { data.len() as u64 };
    disk.call(command, 0, offset, length, data).await.unwrap().errno
}

const AT: u64 = 64 << 10;

/// Kills the gateway while a machine writes `byte` and flushes nothing: accepted writes are lost, however busy this host is. Of one write
/// that came long enough before the kill nothing would be, for it is stored within a second.
async fn kill_while_it_writes(gateway: &mut Gateway, mut disk: Connection, byte: u8) {
    assert_eq!(call(&mut disk, Command::Write, AT, &[byte; 4096]).await, 0, "accepted, not flushed");
    let writing = tokio::spawn(async move {
        while let Ok(answer) = disk.call(Command::Write, 0, AT, 4096, &[byte; 4096]).await {
            assert_eq!(answer.errno, 0);
        }
    });
    gateway.kill();
    writing.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_lost_by_a_kill_are_never_told_flushed_and_a_fresh_start_goes_on() {
    // With a journal, without one, and with a disk that forgets.
    for durability in ["local", "object", "ephemeral"] {
        let mut gateway = up(&["--durability", durability]);
        let mut disk = open(&gateway).await;
        assert_eq!(call(&mut disk, Command::Write, AT, &[1; 4096]).await, 0);
        assert_eq!(call(&mut disk, Command::Flush, 0, &[]).await, 0);
        kill_while_it_writes(&mut gateway, disk, 2).await;
        gateway.start();
        for _ in 0..2 {
            let mut back = open(&gateway).await;
            assert_eq!(call(&mut back, Command::Flush, 0, &[]).await, errno::EIO, "{durability}: told flushed");
            assert_eq!(call(&mut back, Command::Write, AT, &[3; 4096]).await, errno::EIO, "{durability}");
        }
        // Neither an orderly restart nor another kill makes the lost writes come back.
        gateway.interrupt();
        gateway.start();
        assert_eq!(
            call(&mut open(&gateway).await, Command::Flush, 0, &[]).await,
            errno::EIO,
            "{durability}: restarted"
        );
        gateway.kill();
        gateway.start();
        let mut fresh = open(&gateway).await;
        assert_eq!(call(&mut fresh, Command::Flush, 0, &[]).await, errno::EIO, "{durability}: killed again");
        assert_eq!(call(&mut fresh, Command::Read, 0, &[]).await, 0);
        assert_eq!(call(&mut fresh, Command::Write, AT, &[4; 4096]).await, 0, "{durability}: begun anew");
        assert_eq!(call(&mut fresh, Command::Flush, 0, &[]).await, 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_lost_nothing_goes_on_after_a_kill() {
    for durability in ["local", "object"] {
        let mut gateway = up(&["--durability", durability]);
        let mut disk = open(&gateway).await;
        for round in 1..=3u8 {
            assert_eq!(call(&mut disk, Command::Write, AT, &[round; 4096]).await, 0);
            assert_eq!(call(&mut disk, Command::Flush, 0, &[]).await, 0, "{durability} {round}");
            gateway.kill();
            gateway.start();
            disk = open(&gateway).await;
            assert_eq!(call(&mut disk, Command::Flush, 0, &[]).await, 0, "{durability} {round}: all was flushed");
            let read = disk.call(Command::Read, 0, AT, 4096, &[]).await.unwrap();
            assert!(read.bytes() == [round; 4096]);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_orderly_restart_loses_nothing_and_power_on_says_that_a_machine_begins_anew() {
    let mut gateway = up(&[]);
    let mut disk = open(&gateway).await;
    assert_eq!(call(&mut disk, Command::Write, AT, &[1; 4096]).await, 0);
    gateway.interrupt();
    gateway.start();
    disk = open(&gateway).await;
    assert_eq!(call(&mut disk, Command::Flush, 0, &[]).await, 0);
    assert!(disk.call(Command::Read, 0, AT, 4096, &[]).await.unwrap().bytes() == [1; 4096]);
    kill_while_it_writes(&mut gateway, disk, 2).await;
    gateway.start();
    disk = open(&gateway).await;
    assert_eq!(call(&mut disk, Command::Flush, 0, &[]).await, errno::EIO);
    gateway.cli_ok(&["clone", "power", "on", "desk"]);
    assert_eq!(call(&mut disk, Command::Flush, 0, &[]).await, 0);
}

fn metrics(gateway: &Gateway) -> String {
    let mut stream = std::net::TcpStream::connect(gateway.http()).unwrap();
    write!(stream, "GET /metrics HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn the_nbd_server_is_seen_at_metrics() {
    let gateway = up(&[]);
    let mut disk = open(&gateway).await;
    assert_eq!(call(&mut disk, Command::Write, AT, &[1; 4096]).await, 0);
    assert_eq!(call(&mut disk, Command::Read, AT, &[]).await, 0);
    assert_ne!(call(&mut disk, Command::Read, 1 << 50, &[]).await, 0, "past the end");
    let wanted = [
        "clonegate_nbd_connections_opened_total 1",
        "clonegate_nbd_connections 1",
        "clonegate_nbd_connections_lost_total 0",
        "clonegate_nbd_requests_total 3",
        "clonegate_nbd_errors_total 1",
        "clonegate_nbd_read_bytes_total 4096",
        "clonegate_nbd_written_bytes_total 4096",
    ];
    let mut text = String::new();
    // A connection tells what it counted when it has nothing else to do.
    for _ in 0..100 {
        text = metrics(&gateway);
        if wanted.iter().all(|line| text.lines().any(|have| have == *line)) {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    panic!("{}", text.lines().filter(|line| line.contains("nbd")).collect::<Vec<_>>().join("\n"));
}
