//! Who may begin on an NBD export and when, and what the control layer is told.

use std::sync::atomic::Ordering;
use std::time::Duration;

use clonegate::nbd::client::{Connection, NbdUri};
use clonegate_core::Error;
use clonegate_core::nbd::{Command, Style, errno, export_flags};
use clonegate_tests::nbd::{NbdHost, NbdHouse, NbdVolume, until, wish};

const SIZE: u64 = 8 << 20;

#[test]
fn the_control_layer_is_told_how_each_connection_ended() {
    let volume = NbdVolume::new("disk", SIZE, SIZE);
    let host = NbdHost::of(&volume);
    host.run(async {
        host.open(Style::Simple).await.disconnect().await.unwrap();
        until(|| host.house.events().iter().any(|event| event == "detach disk Clean")).await;
        drop(host.open(Style::Simple).await);
        until(|| host.house.events().iter().any(|event| event == "detach disk Lost")).await;
        assert!(host.house.events().contains(&"attach disk 127.0.0.1".to_owned()));
        // Asking about an export is no power-on.
        let before = host.house.events().len();
        Connection::list(&host.uri("disk").parse::<NbdUri>().unwrap().place).await.unwrap();
        assert!(host.house.events()[before..].iter().all(|event| !event.starts_with("attach")));
    });
}

#[test]
fn who_said_good_bye_has_left_when_the_client_sees_the_end() {
    let host = NbdHost::of(&NbdVolume::new("disk", SIZE, SIZE));
    host.run(async {
        for _ in 0..50 {
            host.open(Style::Simple).await.disconnect().await.unwrap();
            // So another machine may write at once, as the target of a migration does.
            assert_eq!(host.house.events().last().unwrap(), "detach disk Clean");
        }
    });
}

#[test]
fn a_refused_attach_says_why() {
    let host = NbdHost::of(&NbdVolume::new("disk", SIZE, SIZE));
    *host.house.refuse.lock().unwrap() =
        Some(Error::conflict("attached-elsewhere", "the machine 10.0.0.7 writes to it").on("disk"));
    host.run(async {
        let refused = Connection::open(&host.uri("disk").parse().unwrap(), &wish(Style::Simple)).await;
        assert!(refused.unwrap_err().to_string().contains("10.0.0.7 writes to it"));
        *host.house.refuse.lock().unwrap() = None;
        host.open(Style::Simple).await;
    });
}

#[test]
fn a_new_connection_waits_for_the_writes_of_a_lost_one() {
    let volume = NbdVolume::new("disk", SIZE, SIZE);
    let host = NbdHost::of(&volume);
    host.run(async {
        volume.hold_writes.store(true, Ordering::SeqCst);
        let mut old = host.open(Style::Simple).await;
        old.queue(Command::Write, 0, 0, 4096, &[1; 4096]);
        old.send().await.unwrap();
        drop(old);
        let mut new = Box::pin(host.open(Style::Simple));
        let early = tokio::time::timeout(Duration::from_millis(300), &mut new).await;
        assert!(early.is_err(), "admitted while a write of the lost connection was in flight");
        volume.hold_writes.store(false, Ordering::SeqCst);
        volume.writes.add_permits(1);
        let mut new = new.await;
        assert_eq!(new.call(Command::Read, 0, 0, 4096, &[]).await.unwrap().bytes(), vec![1; 4096]);
        assert_eq!(new.call(Command::Write, 0, 0, 4096, &[2; 4096]).await.unwrap().errno, 0);
        assert_eq!(volume.bytes()[..4096], [2; 4096]);
    });
}

#[test]
fn writes_left_in_the_socket_of_a_dead_connection_are_done_before_a_new_one_begins() {
    let volume = NbdVolume::new("disk", SIZE, SIZE);
    let host = NbdHost::of(&volume);
    host.run(async {
        for round in 0..50u8 {
            let mut old = host.open(Style::Simple).await;
            for block in 0..64 {
                old.queue(Command::Write, 0, block * 4096, 4096, &[round; 4096]);
            }
            old.send().await.unwrap();
            drop(old);
            let mut new = host.open(Style::Simple).await;
            let fresh = round.wrapping_add(100);
            assert_eq!(new.call(Command::Write, 0, 63 * 4096, 4096, &[fresh; 4096]).await.unwrap().errno, 0);
            new.disconnect().await.unwrap();
            assert_eq!(volume.bytes()[63 * 4096..64 * 4096], [fresh; 4096], "an older write came later");
        }
    });
}

#[test]
fn admission_that_takes_too_long_is_refused_and_can_be_tried_again() {
    let volume = NbdVolume::new("disk", SIZE, SIZE);
    let host = NbdHost::start(&NbdHouse::of(&[&volume]), |settings| {
        settings.admission_timeout = Duration::from_millis(200);
    });
    host.run(async {
        volume.hold_writes.store(true, Ordering::SeqCst);
        let mut old = host.open(Style::Simple).await;
        old.queue(Command::Write, 0, 0, 4096, &[1; 4096]);
        old.send().await.unwrap();
        drop(old);
        let refused = Connection::open(&host.uri("disk").parse().unwrap(), &wish(Style::Simple)).await;
        assert!(refused.unwrap_err().to_string().contains("not finished"));
        volume.hold_writes.store(false, Ordering::SeqCst);
        volume.writes.add_permits(1);
        until(|| volume.bytes()[..4096] == [1; 4096]).await;
        // The write is done a moment before its connection has ended.
        let uri = host.uri("disk").parse().unwrap();
        while let Err(refused) = Connection::open(&uri, &wish(Style::Simple)).await {
            assert!(refused.to_string().contains("not finished"), "{refused}");
        }
    });
}

#[test]
fn many_connections_share_one_device_and_one_flush_covers_them() {
    let volume = NbdVolume::new("disk", SIZE, SIZE);
    let host = NbdHost::start(&NbdHouse::of(&[&volume]), |settings| settings.threads = 2);
    host.run(async {
        let mut connections = Vec::new();
        for _ in 0..8 {
            connections.push(host.open(Style::Structured).await);
        }
        assert!(connections.iter().all(|disk| disk.flags() & export_flags::CAN_MULTI_CONN != 0));
        for (number, disk) in (0..).zip(connections.iter_mut()) {
            disk.call(Command::Write, 0, u64::from(number) * 4096, 4096, &[number; 4096]).await.unwrap();
        }
        // What one wrote every other reads at once.
        for disk in &mut connections {
            for number in 0..8u8 {
                let read = disk.call(Command::Read, 0, u64::from(number) * 4096, 4096, &[]).await.unwrap();
                assert_eq!(read.bytes(), vec![number; 4096]);
            }
        }
    });
}

#[test]
fn whoever_may_not_write_reads_and_is_told_who_writes() {
    let volume = NbdVolume::new("disk", SIZE, SIZE);
    let host = NbdHost::of(&volume);
    let why = Error::denied("attached-elsewhere", "10.0.0.7 writes to it").on("disk");
    *host.house.refuse_writes.lock().unwrap() = Some(why);
    host.run(async {
        let mut disk = host.open(Style::Structured).await;
        assert_eq!(disk.call(Command::Read, 0, 8, 8, &[]).await.unwrap().bytes(), 8u64.to_be_bytes());
        assert_eq!(disk.call(Command::Flush, 0, 0, 0, &[]).await.unwrap().errno, 0);
        for (command, data) in [(Command::Write, &[1; 512][..]), (Command::Trim, &[]), (Command::WriteZeroes, &[])] {
            let refused = disk.call(command, 0, 0, 512, data).await.unwrap();
            assert_eq!(refused.errno, errno::EPERM);
            assert!(refused.message.contains("10.0.0.7 writes to it"), "{}", refused.message);
        }
        assert_eq!(volume.bytes()[..8], 0u64.to_be_bytes());
        disk.disconnect().await.unwrap();
    });
}

#[test]
fn only_a_connection_that_writes_is_told_of_as_one() {
    let volume = NbdVolume::new("disk", SIZE, SIZE);
    let host = NbdHost::of(&volume);
    host.run(async {
        let mut disk = host.open(Style::Simple).await;
        disk.call(Command::Read, 0, 0, 4096, &[]).await.unwrap();
        disk.call(Command::Cache, 0, 0, 4096, &[]).await.unwrap();
        assert!(!host.house.events().contains(&"write disk".to_owned()));
        for _ in 0..2 {
            disk.call(Command::Write, 0, 0, 512, &[1; 512]).await.unwrap();
        }
        assert_eq!(host.house.events().iter().filter(|event| *event == "write disk").count(), 1);
    });
}

#[test]
fn a_machine_whose_writes_were_lost_is_not_told_that_they_are_flushed() {
    for style in [Style::Simple, Style::Structured, Style::Extended] {
        let volume = NbdVolume::new("disk", SIZE, SIZE);
        let host = NbdHost::of(&volume);
        host.run(async {
            volume.torn.store(true, Ordering::SeqCst);
            // One that goes on: it neither starts anew nor reads the first sector.
            let mut old = host.open(style).await;
            assert_eq!(old.call(Command::Read, 0, 4096, 8, &[]).await.unwrap().bytes(), 4096u64.to_be_bytes());
            for (command, data) in [
                (Command::Flush, &[][..]),
                (Command::Write, &[1; 512]),
                (Command::Trim, &[]),
                (Command::WriteZeroes, &[]),
            ] {
                let (offset, length) = if command == Command::Flush { (0, 0) } else { (512 * 9, 512) };
                let refused = old.call(command, 0, offset, length, data).await.unwrap();
                assert_eq!(refused.errno, errno::EIO, "{command:?}");
            }
            assert_eq!(volume.flushes.load(Ordering::SeqCst), 0);
            // It goes on being told so, on a new connection too.
            let mut again = host.open(style).await;
            assert_eq!(again.call(Command::Flush, 0, 0, 0, &[]).await.unwrap().errno, errno::EIO);
            // Reset, it reads the first sector, as every machine that starts does.
            again.call(Command::Read, 0, 0, 512, &[]).await.unwrap();
            assert_eq!(again.call(Command::Write, 0, 512, 512, &[1; 512]).await.unwrap().errno, 0);
            assert_eq!(again.call(Command::Flush, 0, 0, 0, &[]).await.unwrap().errno, 0);
        });
    }
}
