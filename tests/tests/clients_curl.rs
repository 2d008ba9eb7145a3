//! What a newcomer sees: `clonegate up`, then curl.

use clonegate_tests::curl::{curl, put, range};
use clonegate_tests::{Gateway, cases, images};

cases! {
    "curl" => two_clones_of_the_demo_image_give_its_boot_sector;
    "curl" => ranges_of_every_form_give_those_bytes_of_the_image;
    "curl" => a_put_changes_that_clone_alone_and_outlives_kill_9;
    "curl" => ctrl_c_ends_it_cleanly_and_the_clones_are_there_next_time;
    "curl" => a_wrong_request_changes_nothing_and_says_why;
    "curl" => a_start_that_cannot_work_is_one_clear_line;
}

const MIB: u64 = 1 << 20;

/// The names of all clones.
fn clones(gateway: &Gateway) -> Vec<String> {
    let list = curl(&[&gateway.url("/v1/clones")]).json();
    let items = list["items"].as_array().cloned().unwrap_or_default();
    items.iter().filter_map(|clone| Some(clone["name"].as_str()?.to_owned())).collect()
}

fn size_of(url: &str) -> u64 {
    let head = curl(&["--head", url]);
    head.header("content-length").and_then(|value| value.parse().ok()).expect("HEAD gives a length")
}

fn two_clones_of_the_demo_image_give_its_boot_sector() {
    let gateway = Gateway::up(&["--clones", "2"]);
    let clones = clones(&gateway);
    assert_eq!(clones.len(), 2, "{clones:?}");
    for clone in &clones {
        let sector = range(&gateway.disk_url(clone), 0, 512);
        assert_eq!(sector[510..], [0x55, 0xaa], "{clone} begins with a boot sector");
    }
    // What it printed is enough to go on.
    let output = gateway.output();
    assert!(output.contains(&gateway.disk_url(&clones[0])), "the URL of a clone is printed:\n{output}");
}

fn ranges_of_every_form_give_those_bytes_of_the_image() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image.raw");
    let size = 9 * MIB + 512;
    images::patterned(&image, size).unwrap();
    let whole = std::fs::read(&image).unwrap();
    let gateway = Gateway::up(&[image.to_str().unwrap(), "--clones", "1"]);
    let url = gateway.disk_url(&clones(&gateway)[0]);
    assert_eq!(size_of(&url), size);

    let check = |range: &str, from: u64, to: u64| {
        let reply = curl(&["--range", range, &url]);
        assert_eq!(reply.status, 206, "{range}: {}", reply.text());
        assert_eq!(reply.header("content-range"), Some(format!("bytes {from}-{to}/{size}").as_str()), "{range}");
        assert!(reply.body == whole[from as usize..=to as usize], "{range}: wrong bytes");
    };
    check("0-0", 0, 0);
    check("0-511", 0, 511);
    check("65535-65536", 65535, 65536);
    check("1048570-5000000", 1_048_570, 5_000_000);
    check("9000000-", 9_000_000, size - 1);
    check("-512", size - 512, size - 1);
    check(&format!("{}-99999999999", size - 1), size - 1, size - 1);

    let all = curl(&[&url]);
    assert_eq!((all.status, all.body == whole), (200, true), "the whole image");
    let beyond = curl(&["--range", &format!("{size}-"), &url]);
    assert_eq!((beyond.status, beyond.header("content-range")), (416, Some(format!("bytes */{size}").as_str())));
    let several = curl(&["--range", "0-9,100-109", &url]);
    assert!(several.header("content-type").is_some_and(|kind| kind.starts_with("multipart/byteranges")));
    for part in [&whole[0..10], &whole[100..110]] {
        assert!(several.body.windows(10).any(|window| window == part), "a part of several ranges is missing");
    }
    let etag = all.header("etag").expect("a strong ETag").to_owned();
    assert!(etag.starts_with('"'), "{etag} is not strong");
    assert_eq!(curl(&["--header", &format!("If-None-Match: {etag}"), &url]).status, 304);
}

fn a_put_changes_that_clone_alone_and_outlives_kill_9() {
    let mut gateway = Gateway::up(&["--clones", "2"]);
    let clones = clones(&gateway);
    let (changed, other) = (gateway.disk_url(&clones[0]), gateway.disk_url(&clones[1]));
    let size = size_of(&changed);
    let before = curl(&[&other]).body;
    let (offset, data) = (4096 + 17, images::pattern(1 << 40, 10_000));

    let etag = |url: &str| curl(&["--head", url]).header("etag").map(str::to_owned);
    let first_etag = etag(&changed);
    put(&changed, offset, &data, size);
    assert_ne!(etag(&changed), first_etag, "a write changes the ETag");
    let check = |when: &str| {
        let mut expected = before.clone();
        expected[offset as usize..][..data.len()].copy_from_slice(&data);
        assert!(curl(&[&changed]).body == expected, "{when}: the written clone");
        assert!(curl(&[&other]).body == before, "{when}: its sibling");
    };
    check("after the write");
    gateway.kill();
    gateway.start();
    check("after kill -9 and a restart");
    put(&changed, offset, &data[..512], size);
    check("after a write of the same bytes");
}

fn ctrl_c_ends_it_cleanly_and_the_clones_are_there_next_time() {
    let mut gateway = Gateway::up(&["--clones", "3"]);
    let names = clones(&gateway);
    assert_eq!(names.len(), 3);
    let url = gateway.disk_url(&names[2]);
    put(&url, 0, b"written before", size_of(&url));
    let status = gateway.interrupt();
    assert_eq!(status.code(), Some(0), "Ctrl-C is a clean end:\n{}", gateway.output());
    gateway.start();
    assert_eq!(clones(&gateway), names, "the same clones, and no more");
    assert_eq!(range(&url, 0, 14), b"written before");
}

fn a_wrong_request_changes_nothing_and_says_why() {
    let gateway = Gateway::up(&["--clones", "1"]);
    let name = clones(&gateway)[0].clone();
    let url = gateway.disk_url(&name);
    let size = size_of(&url);
    let before = curl(&[&url]);
    let put = |range: &str| curl(&["--request", "PUT", "--header", range, "--data-binary", "four", &url]);
    assert_eq!(curl(&["--request", "PUT", "--data-binary", "four", &url]).status, 400, "no Content-Range");
    assert_eq!(put(&format!("Content-Range: bytes 0-9/{size}")).status, 400, "a length that does not match");
    assert_eq!(put(&format!("Content-Range: bytes {size}-{}/{size}", size + 3)).status, 416, "beyond the end");
    assert_eq!(put(&format!("Content-Range: bytes 0-3/{}", size + 512)).status, 400, "another size");
    let guarded = ["--header", "If-Match: \"no-such-version\"", "--header"];
    let content = format!("Content-Range: bytes 0-3/{size}");
    let stale = curl(&[&guarded[..], &[&content, "--request", "PUT", "--data-binary", "four", &url]].concat());
    assert_eq!(stale.status, 412, "If-Match with another version");
    let after = curl(&[&url]);
    assert!(after.body == before.body, "nothing was written");
    assert_eq!(after.header("etag"), before.header("etag"), "nothing changed");

    let unknown = curl(&[&gateway.disk_url("no-such-clone")]);
    assert_eq!(unknown.status, 404);
    assert!(!unknown.problem().is_empty(), "{}", unknown.text());
    assert_eq!(unknown.header("content-type"), Some("application/problem+json"));
}

fn a_start_that_cannot_work_is_one_clear_line() {
    use clonegate_tests::gateway::{command, free_address};
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data").display().to_string();
    let check = |arguments: &[&str], says: &str| {
        let output = command(arguments).args(["--data", &data]).current_dir(dir.path()).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{arguments:?} should not have worked");
        let lines = errors.lines().filter(|line| !line.trim().is_empty()).count();
        assert!(errors.contains(says) && lines <= 2, "{arguments:?} said:\n{errors}");
    };
    let (http, nbd) = (free_address().to_string(), free_address().to_string());
    check(&["up", "no-such-image.raw", "--listen", &http, "--nbd", &nbd], "no-such-image.raw");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    check(&["up", "--listen", &address, "--nbd", &nbd], &address);
}
