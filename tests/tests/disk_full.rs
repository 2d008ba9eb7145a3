//! Real disks that are full: that of the journal, and that of the store. Nothing that was acknowledged is lost, and with room it goes on.

use std::path::Path;

use clonegate::nbd::client::{Connection, Wish};
use clonegate_core::nbd::{Command, Style, errno};
use clonegate_tests::serve::Serve;
use clonegate_tests::small_disk::SmallDisk;

const BLOCK: usize = 64 << 10;

fn config(home: &Path, store: &Path) -> String {
    format!(
        "home = \"file://{}\"\n[[datastore]]\nname = \"main\"\nurl = \"file://{}\"\n",
        home.display(),
        store.display()
    )
}

/// A gateway with an empty disk `d` of 64 MiB.
fn start(dir: &Path, config: &str, durability: &str) -> Serve {
    let gateway = Serve::start(dir, config, &[]);
    gateway.cli_ok(&["disk", "create", "d", "64MiB", "--durability", durability]);
    gateway
}

async fn open(gateway: &Serve) -> Connection {
    let uri = format!("nbd://{}/disk/d", gateway.nbd()).parse().unwrap();
    let wish = Wish { style: Style::Structured, ..Wish::default() };
    Connection::open(&uri, &wish).await.unwrap()
}

async fn call(disk: &mut Connection, command: Command, block: u64, data: &[u8]) -> u32 {
    let length = if command == Command::Read { BLOCK as u64 } else { data.len() as u64 };
    let offset = if command == Command::Flush { 0 } else { block * BLOCK as u64 };
    disk.call(command, 0, offset, length, data).await.unwrap().errno
}

async fn holds(disk: &mut Connection, block: u64, fill: u8) -> bool {
    let read = disk.call(Command::Read, 0, block * BLOCK as u64, BLOCK as u64, &[]).await.unwrap();
    read.bytes() == vec![fill; BLOCK]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_journal_without_room_loses_nothing_and_is_used_again_when_there_is_some() {
    // Too small for one file of the journal.
    let Some(disk) = SmallDisk::mount(8) else { return };
    let dir = tempfile::tempdir().unwrap();
    let (home, store, own) = (dir.path().join("home"), dir.path().join("store"), disk.path().join("gateway"));
    let mut gateway = start(&own, &config(&home, &store), "local");
    let mut connection = open(&gateway).await;
    assert_eq!(call(&mut connection, Command::Read, 0, &[]).await, 0);
    for block in 0..20u8 {
        assert_eq!(call(&mut connection, Command::Write, block.into(), &[block + 1; BLOCK]).await, 0);
        assert_eq!(call(&mut connection, Command::Flush, 0, &[]).await, 0, "a flush waits for the store instead");
    }
    let journal = own.join("journal");
    let files = || {
        let listed = std::fs::read_dir(&journal).unwrap().flatten();
        listed.filter(|entry| entry.file_name().to_string_lossy().starts_with("journal-")).count()
    };
    assert_eq!(files(), 0, "a part of a file that there was no room for is left");
    gateway.kill();
    gateway.restart();
    let mut connection = open(&gateway).await;
    for block in 0..20u8 {
        assert!(holds(&mut connection, block.into(), block + 1).await, "block {block} was acknowledged");
    }
    disk.resize(256);
    let mut round = 0;
    while files() == 0 && round < 100 {
        round += 1;
        assert_eq!(call(&mut connection, Command::Write, 30, &[round; BLOCK]).await, 0);
        assert_eq!(call(&mut connection, Command::Flush, 0, &[]).await, 0);
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    assert!(files() > 0, "with room the journal is used again:\n{}", gateway.output());
    assert_eq!(call(&mut connection, Command::Write, 31, &[77; BLOCK]).await, 0);
    assert_eq!(call(&mut connection, Command::Flush, 0, &[]).await, 0);
    gateway.kill();
    gateway.restart();
    let mut connection = open(&gateway).await;
    assert!(holds(&mut connection, 31, 77).await && holds(&mut connection, 30, round).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_without_room_says_so_and_goes_on_when_there_is_some() {
    let Some(disk) = SmallDisk::mount(8) else { return };
    let dir = tempfile::tempdir().unwrap();
    let (home, store) = (dir.path().join("home"), disk.path().join("store"));
    let mut gateway = start(&dir.path().join("gateway"), &config(&home, &store), "object");
    let mut connection = open(&gateway).await;
    assert_eq!(call(&mut connection, Command::Read, 0, &[]).await, 0);
    let mut acknowledged = 0;
    let refused = loop {
        let fill = acknowledged + 1;
        assert_eq!(call(&mut connection, Command::Write, acknowledged.into(), &[fill; BLOCK]).await, 0);
        match call(&mut connection, Command::Flush, 0, &[]).await {
            0 => acknowledged += 1,
            refused => break refused,
        }
        assert!(acknowledged < 250, "8 MiB never fill up");
    };
    assert_eq!(refused, errno::ENOSPC);
    assert!(acknowledged > 20, "{acknowledged}");
    for block in 0..acknowledged {
        assert!(holds(&mut connection, block.into(), block + 1).await, "block {block} while it is full");
    }
    disk.resize(128);
    let mut flushed = errno::ENOSPC;
    for _ in 0..100 {
        flushed = call(&mut connection, Command::Flush, 0, &[]).await;
        if flushed == 0 {
            break;
        }
    }
    assert_eq!(flushed, 0, "with room it goes on by itself, on the same connection");
    gateway.kill();
    gateway.restart();
    let mut connection = open(&gateway).await;
    for block in 0..=acknowledged {
        assert!(holds(&mut connection, block.into(), block + 1).await, "block {block} after a kill");
    }
    let text = gateway.cli_ok(&["fsck"]);
    assert!(text.contains("clean"), "{text}");
}

/// Takes the last free page of a disk.
fn take_the_rest(disk: &SmallDisk, file: &mut std::fs::File) {
    use std::io::Write as _;
    while file.write_all(&[7; 4096]).is_ok() {}
    let stat = rustix::fs::statvfs(disk.path()).unwrap();
    assert_eq!(stat.f_bavail, 0, "there is room left");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_without_one_free_byte_is_opened_and_emptied_by_deleting() {
    let Some(disk) = SmallDisk::mount(64) else { return };
    let dir = tempfile::tempdir().unwrap();
    let mut filler = std::fs::File::create(disk.path().join("filler")).unwrap();
    let config = config(&disk.path().join("home"), &disk.path().join("store"));
    let mut gateway = Serve::start(&dir.path().join("gateway"), &config, &[]);
    for name in ["d", "e"] {
        gateway.cli_ok(&["disk", "create", name, "64MiB", "--durability", "object"]);
    }
    let mut connection = open(&gateway).await;
    assert_eq!(call(&mut connection, Command::Read, 0, &[]).await, 0);
    let mut block = 0;
    loop {
        assert!(block < 1000, "64 MiB never fill up");
        assert_eq!(call(&mut connection, Command::Write, block, &[1; BLOCK]).await, 0);
        if call(&mut connection, Command::Flush, 0, &[]).await != 0 {
            break;
        }
        block += 1;
    }
    take_the_rest(&disk, &mut filler);
    // A stop does not wait for room that nobody makes; a start needs some itself.
    drop(connection);
    assert!(gateway.terminate(), "{}", gateway.output());
    gateway.restart();
    take_the_rest(&disk, &mut filler);
    let shown = gateway.cli_ok(&["datastore", "show", "main"]);
    assert!(shown.contains("online"), "{shown}");
    gateway.cli_ok(&["disk", "delete", "d"]);
    assert_eq!(gateway.cli(&["disk", "show", "d"]).status.code(), Some(3));
    // What it held goes in the background, and is room for others.
    let mut free = 0;
    for _ in 0..600 {
        free = rustix::fs::statvfs(disk.path()).unwrap().f_bavail * 4096;
        if free > 16 << 20 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    assert!(free > 16 << 20, "{free} bytes are free:\n{}", gateway.output());
    gateway.cli_ok(&["disk", "create", "f", "1MiB", "--durability", "object"]);
    let text = gateway.cli_ok(&["fsck"]);
    assert!(text.contains("clean"), "{text}");
}
