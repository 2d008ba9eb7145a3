//! What is fuzzed: each function takes any bytes, and panics when a reader breaks a promise.
//!
//! `cargo test -p clonegate --test damaged_input` runs the same functions over damaged samples without libFuzzer.

use std::fs::File;
use std::io::Write;

use clonegate::config::{from_text, to_text};
use clonegate::import::qcow2::Image;

/// Most runs of an image that are read, and most bytes of each.
const RUNS: usize = 32;
const READ_BYTES: u64 = 64 * 1024;

fn file_of(data: &[u8]) -> File {
    let mut file = tempfile::tempfile().expect("a file for the image");
    file.write_all(data).expect("the image is small");
    file
}

/// A qcow2 image: whatever it says, its runs ascend and lie within its disk, and to read them ends, well or with an error.
pub fn qcow2(data: &[u8]) {
    // With the magic number that it needs to come any further.
    let mut image = data.to_vec();
    image.splice(..image.len().min(4), *b"QFI\xfb");
    let Ok(image) = Image::open(file_of(&image), image.len() as u64) else { return };
    let (mut runs, mut reached) = (Vec::new(), 0);
    let walked = image.for_each_run(|start, end| {
        assert!(reached <= start && start < end && end <= image.size(), "runs overlap, or lie outside of the disk");
        reached = end;
        if runs.len() < RUNS {
            runs.push((start, end));
        }
        Ok(())
    });
    assert!(walked.is_ok(), "its tables were checked: {walked:?}");
    for (start, end) in runs {
        let mut bytes = vec![0; usize::try_from((end - start).min(READ_BYTES)).expect("a small number")];
        // A compressed cluster may turn out to be none.
        drop(image.read(start, &mut bytes));
    }
}

/// A configuration: what is taken is printed as something that is taken, and says the same.
pub fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(config) = from_text(text) else { return };
    let printed = to_text(&config).expect("what was read can be printed");
    let again =
        from_text(&printed).unwrap_or_else(|error| panic!("what was printed cannot be read: {error}\n{printed}"));
    let reprinted = to_text(&again).expect("what was read can be printed");
    assert_eq!(printed, reprinted, "read and printed again, a configuration differs");
}
