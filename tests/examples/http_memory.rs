//! Serves a volume in memory by the real HTTP server, to measure the server alone: `http_memory FILE PORT [WORKERS]`.

use std::io::Read;

use clonegate::clock::Clock;
use clonegate::http::HttpSettings;
use clonegate::metrics::Metrics;
use clonegate_tests::memory_disk::{MemoryDevice, MemoryExports};

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, file, port, rest @ ..] = arguments.as_slice() else { panic!("http_memory FILE PORT [WORKERS]") };
    let size = std::fs::metadata(file).expect("the file is there").len();
    let disk = MemoryDevice::new("disk", size, true);
    let mut source = std::fs::File::open(file).expect("the file is there");
    let mut part = vec![0; 1024 * 1024];
    let mut at = 0;
    loop {
        let count = source.read(&mut part).expect("the file can be read");
        if count == 0 {
            break;
        }
        disk.store(at, &part[..count]);
        at += count as u64;
    }
    let exports = MemoryExports::of(&[("disk", &disk)]);
    let settings = HttpSettings {
        listen: ([127, 0, 0, 1], port.parse().expect("a port")).into(),
        workers: rest.first().map_or(0, |workers| workers.parse().expect("a number of workers")),
        ..HttpSettings::default()
    };
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let _inside = runtime.enter();
    let server =
        clonegate::http::serve(&settings, exports, None, &Metrics::new(), &Clock::system()).expect("it can listen");
    println!("http://{}/v1/clones/disk/disk", server.local_addr());
    loop {
        std::thread::park();
    }
}
