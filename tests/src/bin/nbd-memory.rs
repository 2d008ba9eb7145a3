//! Serves one volume in memory over NBD, for measuring the protocol side alone: `nbd-memory PORT MIB [THREADS]`.

use clonegate_tests::nbd::{NbdHost, NbdHouse, NbdVolume};

fn main() {
    let mut arguments = std::env::args().skip(1).filter_map(|text| text.parse::<u64>().ok());
    let port = arguments.next().and_then(|port| u16::try_from(port).ok()).unwrap_or(10809);
    let size = arguments.next().unwrap_or(1024) << 20;
    let threads = arguments.next().and_then(|threads| usize::try_from(threads).ok()).unwrap_or(0);
    let volume = NbdVolume::new("disk", size, size);
    let host = NbdHost::start(&NbdHouse::of(&[&volume]), |settings| {
        settings.listen = Some(([127, 0, 0, 1], port).into());
        settings.threads = threads;
    });
    println!("{}", host.uri("disk"));
    // Ends with its standard input.
    let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
}
