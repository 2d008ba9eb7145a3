//! The real program: `up`, the command line over REST, restarts, `kill -9`, and what it says when something is wrong.

use std::fs;
use std::net::TcpListener;
use std::process::Output;

use clonegate_tests::gateway::{Gateway, command, free_address, until};
use clonegate_tests::raw_http::RawHttp;
use clonegate_tests::serve::Serve;

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The exit code and the one line that a refused command prints.
fn check_refused(output: &Output, exit: i32, words: &[&str]) {
    let text = said(output);
    assert_eq!(output.status.code(), Some(exit), "{text}");
    assert_eq!(text.trim_end().lines().count(), 1, "one clear line: {text}");
    for word in words {
        assert!(text.contains(word), "{word:?} is not in {text}");
    }
}

fn read(gateway: &Gateway, clone: &str, range: &str) -> Vec<u8> {
    let path = format!("/v1/clones/{clone}/disk");
    let reply = RawHttp::connect(gateway.http()).request("GET", &path, &[("Range", range)]);
    assert_eq!(reply.status, 206, "{clone}");
    reply.body
}

fn write(gateway: &Gateway, clone: &str, offset: u64, data: &[u8]) {
    let path = format!("/v1/clones/{clone}/disk");
    let range = format!("bytes {offset}-{}/{}", offset + data.len() as u64 - 1, 16 << 20);
    let reply = RawHttp::connect(gateway.http()).request_with("PUT", &path, &[("Content-Range", &range)], data);
    assert_eq!(reply.status, 204, "{}", String::from_utf8_lossy(&reply.body));
}

#[test]
fn up_serves_clones_that_survive_kill_and_restart() {
    let mut gateway = Gateway::up(&[]);
    for clone in ["demo-001", "demo-002"] {
        assert_eq!(&read(&gateway, clone, "bytes=510-511"), &[0x55, 0xaa], "the boot sector of {clone}");
    }
    write(&gateway, "demo-001", 8 << 20, b"acknowledged");
    gateway.kill();
    gateway.start();
    assert_eq!(read(&gateway, "demo-001", "bytes=8388608-8388619"), b"acknowledged");
    assert_eq!(read(&gateway, "demo-002", "bytes=8388608-8388619"), [0; 12], "a write to one changes that one alone");
    assert!(gateway.interrupt().success(), "Ctrl-C ends it well");
    gateway.start();
    assert_eq!(read(&gateway, "demo-001", "bytes=8388608-8388619"), b"acknowledged");
    let clones: serde_json::Value =
        serde_json::from_str(&gateway.cli_ok(&["clone", "list", "--output", "json"])).unwrap();
    assert_eq!(clones.as_array().unwrap().len(), 2, "started again it finds its clones");
    assert_eq!(gateway.output().matches("imported").count(), 1, "it does not import again");
}

#[test]
fn the_command_line_does_the_whole_life_of_a_clone() {
    let gateway = Gateway::up(&["--clones", "0"]);
    let image = gateway.dir().join("other.raw");
    let mut bytes = vec![0; 1 << 20];
    bytes[..4].copy_from_slice(b"boot");
    fs::write(&image, &bytes).unwrap();
    gateway.cli_ok(&["template", "import", "other", image.to_str().unwrap(), "--format", "raw"]);
    assert!(gateway.cli_ok(&["template", "list"]).contains("other"));
    gateway.cli_ok(&["clone", "create", "desk", "--template", "other", "--count", "3"]);
    let listed = gateway.cli_ok(&["clone", "list"]);
    for name in ["desk-001", "desk-002", "desk-003"] {
        assert!(listed.contains(name), "{listed}");
    }
    assert_eq!(read(&gateway, "desk-003", "bytes=0-3"), b"boot");
    assert!(gateway.cli_ok(&["clone", "show", "desk-002"]).contains("other:1"));
    assert!(gateway.cli_ok(&["clone", "delete", "desk-001", "--dry-run"]).contains("would be deleted"));
    gateway.cli_ok(&["clone", "delete", "desk-001"]);
    check_refused(&gateway.cli(&["clone", "show", "desk-001"]), 3, &["desk-001", "there is no clone of this name"]);
    assert!(gateway.cli_ok(&["base", "list"]).contains("2/128"));
    assert!(gateway.cli_ok(&["datastore", "list"]).contains("local"));
    gateway.cli_ok(&["cache", "show"]);
}

#[test]
fn bad_input_is_refused_with_a_sentence_and_nothing_is_half_done() {
    let gateway = Gateway::up(&["--clones", "1"]);
    let file = |name: &str, bytes: &[u8]| {
        let path = gateway.dir().join(name);
        fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (odd, text, qcow) = (
        file("odd.raw", &[1; 1000]),
        file("text.qcow2", &[b'x'; 4096]),
        file("cut.qcow2", b"QFI\xfb\0\0\0\x03\0\0\0\0"),
    );
    let disguised = file("disguised.raw", &[b"QFI\xfb".as_slice(), &[0; 508]].concat());
    let long = "a".repeat(64);
    for (arguments, exit, words) in [
        (vec!["clone", "create", "x", "--template", "nothing"], 3, vec!["nothing", "no template of this name"]),
        (vec!["clone", "create", "demo-001", "--template", "demo"], 4, vec!["demo-001", "there already"]),
        (vec!["clone", "create", "Desk_1", "--template", "demo"], 2, vec!["not a valid name", "1 to 63"]),
        (vec!["clone", "create", &long, "--template", "demo"], 2, vec!["not a valid name"]),
        (vec!["clone", "create", "x", "--template", "demo:9"], 3, vec!["no version 9"]),
        (vec!["clone", "create", "x-{n", "--template", "demo", "--count", "2"], 2, vec!["no pattern for names"]),
        (vec!["clone", "create", "x", "--template", "demo", "--count", "0"], 2, vec!["1 to 10000"]),
        (vec!["clone", "delete", "nobody"], 3, vec!["nobody"]),
        (vec!["template", "delete", "demo"], 4, vec!["demo-001", "need it"]),
        (vec!["template", "import", "t", &odd, "--format", "raw"], 2, vec!["512", "truncate -s"]),
        (vec!["template", "import", "t", &text, "--format", "qcow2"], 2, vec!["qcow2"]),
        (vec!["template", "import", "t", &qcow, "--format", "qcow2"], 2, vec!["qcow2"]),
        (vec!["template", "import", "t", &disguised, "--format", "raw"], 2, vec!["--format qcow2"]),
        (vec!["template", "import", "t", "no-such-file", "--format", "raw"], 3, vec!["no-such-file", "no such image"]),
        (vec!["template", "import", "t", "thing"], 2, vec!["--format raw or --format qcow2"]),
        (vec!["template", "import", "t", "thing.vmdk"], 2, vec!["vmdk", "qemu-img convert -O qcow2"]),
        (vec!["template", "publish", "demo:x"], 2, vec!["NAME:VERSION"]),
        (vec!["datastore", "show", "nowhere"], 3, vec!["nowhere"]),
        (vec!["base", "show", "b_1"], 2, vec!["not an id"]),
    ] {
        check_refused(&gateway.cli(&arguments), exit, &words);
    }
    for (method, path, status) in [
        ("GET", "/v1/clones/nobody/disk", 404),
        ("PUT", "/v1/templates/demo/disk", 405),
        ("GET", "/v1/clones/demo-001", 200),
        ("GET", "/v1/nothing", 404),
    ] {
        let reply = RawHttp::connect(gateway.http()).request(method, path, &[]);
        assert_eq!(reply.status, status, "{method} {path}");
    }
    let templates = gateway.cli_ok(&["template", "list", "--output", "json"]);
    let templates: serde_json::Value = serde_json::from_str(&templates).unwrap();
    assert_eq!(templates.as_array().unwrap().len(), 1, "no refused import left a template");
    assert!(gateway.cli_ok(&["base", "list"]).contains("1/128"), "no refused create left a slot");
}

#[test]
fn up_says_in_one_line_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let up = |arguments: &[&str]| {
        let mut command = command(["up", "--data", data.to_str().unwrap()]);
        command.args(arguments).output().unwrap()
    };
    let (http, nbd) = (free_address().to_string(), free_address().to_string());
    let busy = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = busy.local_addr().unwrap().to_string();
    check_refused(&up(&["--listen", &taken, "--nbd", &nbd]), 6, &[&taken, "another program listens there"]);
    check_refused(&up(&["--listen", &http, "--nbd", &taken]), 6, &[&taken, "another program listens there"]);
    check_refused(&up(&["missing.raw", "--listen", &http]), 3, &["missing.raw", "no such image"]);
    check_refused(&up(&["--listen", "nowhere"]), 2, &["nowhere", "HOST:PORT"]);
    let file = dir.path().join("file");
    fs::write(&file, b"").unwrap();
    let mut below_a_file = command(["up", "--data", file.join("data").to_str().unwrap()]);
    check_refused(&below_a_file.output().unwrap(), 6, &["data directory cannot be made"]);
}

/// What it printed when it was started for the last of `times`.
fn greeting(gateway: &Gateway, times: usize) -> String {
    until("it says where everything is", || gateway.output().matches("Ctrl-C ends it").count() == times);
    let output = gateway.output();
    output[output.rfind("clonegate serves").expect("it serves")..].to_owned()
}

#[test]
fn up_without_an_image_imports_the_demo_only_into_a_name_that_is_free() {
    let mut gateway = Gateway::up(&["--clones", "1", "--template", "zz"]);
    let file = gateway.dir().join("x.raw");
    fs::write(&file, [1; 4096]).unwrap();
    let path = file.to_str().unwrap();
    // So that `zz` is not among the first hundred.
    for number in 0..101 {
        gateway.cli_ok(&["template", "import", &format!("a-{number:03}"), path]);
    }
    gateway.cli_ok(&["template", "import", "win11", path, "--draft"]);
    let versions = |gateway: &Gateway, name: &str| {
        let shown = gateway.cli_ok(&["template", "show", name, "--output", "json"]);
        serde_json::from_str::<serde_json::Value>(&shown).unwrap()["versions"].as_array().unwrap().len()
    };
    assert!(gateway.interrupt().success());
    gateway.start();
    assert_eq!(versions(&gateway, "zz"), 1, "it was there already");
    assert!(gateway.interrupt().success());
    let (data, http, nbd) = (gateway.data(), free_address().to_string(), free_address().to_string());
    let up = ["up", "--data", data.to_str().unwrap(), "--listen", &http, "--nbd", &nbd, "--template", "win11"];
    check_refused(
        &command(up).output().unwrap(),
        4,
        &["win11", "published", "give an image", "template publish win11"],
    );
    gateway.start();
    assert_eq!(versions(&gateway, "win11"), 1, "nothing was imported into it");
}

#[test]
fn up_shows_the_clones_of_the_template_that_was_asked_for_and_counts_the_others() {
    let mut gateway = Gateway::up(&["--clones", "2", "--template", "win11"]);
    gateway.cli_ok(&["clone", "create", "win11-x", "--template", "win11", "--count", "6"]);
    let file = gateway.dir().join("x.raw");
    fs::write(&file, [1; 4096]).unwrap();
    gateway.cli_ok(&["template", "import", "demo", file.to_str().unwrap()]);
    gateway.cli_ok(&["clone", "create", "demo", "--template", "demo", "--count", "3"]);
    assert!(gateway.interrupt().success());
    gateway.start();
    let said = greeting(&gateway, 2);
    assert!(!said.contains("demo-0"), "{said}");
    assert!(said.contains("and 3 more"), "eight clones, five are shown: {said}");
    assert!(said.contains("/v1/clones/win11-001/disk | xxd"), "{said}");
}

#[test]
fn a_second_up_on_the_same_data_is_told() {
    let gateway = Gateway::up(&["--clones", "0"]);
    let (http, nbd) = (free_address().to_string(), free_address().to_string());
    let data = gateway.data();
    let second = command(["up", "--data", data.to_str().unwrap(), "--listen", &http, "--nbd", &nbd]).output().unwrap();
    check_refused(&second, 4, &["another clonegate runs on this data directory"]);
}

#[test]
fn a_gateway_that_is_not_there_is_said_and_so_is_a_server_that_is_none() {
    let nobody = format!("http://{}", free_address());
    let output = command(["clone", "list", "--server", &nobody]).output().unwrap();
    check_refused(&output, 6, &["no gateway answers there", "clonegate up"]);
    let output = command(["clone", "list", "--server", "ftp://x"]).output().unwrap();
    check_refused(&output, 2, &["http://HOST:PORT"]);
}

#[test]
fn the_example_configuration_is_right_and_every_verb_has_an_example() {
    let example = clonegate_tests::tree::root().join("examples/clonegate.toml");
    let output = command(["config", "check", "--config", example.to_str().unwrap()]).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    let wrong = tempfile::NamedTempFile::new().unwrap();
    fs::write(wrong.path(), "[listen]\nhtpp = 'x'\n").unwrap();
    let output = command(["config", "check", "--config", wrong.path().to_str().unwrap()]).output().unwrap();
    check_refused(&output, 2, &["listen.htpp", "did you mean `http`?"]);
    let mut command = command(["config", "print"]);
    let printed = command.env("CLONEGATE_ICACHE_MEMORY", "\"64MiB\"").output().unwrap();
    assert!(String::from_utf8_lossy(&printed.stdout).contains("64"), "{printed:?}");
}

#[test]
fn log_lines_are_as_the_configuration_says() {
    let dir = tempfile::tempdir().unwrap();
    let config = |log: &str| {
        format!(
            "home = \"file://{0}/home\"\n[[datastore]]\nname = \"a\"\nurl = \"file://{0}/a\"\n{log}",
            dir.path().display()
        )
    };
    let mut gateway =
        Serve::start(&dir.path().join("gateway"), &config("[log]\nlevel = \"info\"\nformat = \"json\"\n"), &[]);
    assert!(gateway.terminate());
    let output = gateway.output();
    let stopping = output.lines().find(|line| line.contains("stopping")).unwrap_or_else(|| panic!("{output}"));
    let line: serde_json::Value = serde_json::from_str(stopping).unwrap();
    assert_eq!(line["level"], "INFO", "{stopping}");

    let file = dir.path().join("loud.toml");
    fs::write(&file, config("[log]\nlevel = \"loud\"\n")).unwrap();
    check_refused(
        &command(["serve", "--config", file.to_str().unwrap()]).output().unwrap(),
        2,
        &["loud", "clonegate=debug"],
    );
}

#[test]
fn a_wrong_store_is_refused_before_anything_is_entered_and_its_secret_not_repeated() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("clonegate.toml");
    for url in ["s3://KEY:HIDDENSECRET@bucket/x", "ftp://x"] {
        let home = dir.path().join("home");
        let text = format!(
            "home = \"file://{}\"\n[[datastore]]\nname = \"a\"\nurl = \"{url}\"\n[journal]\npath = \"{}/j\"\n",
            home.display(),
            dir.path().display()
        );
        fs::write(&file, text).unwrap();
        for verb in [&["serve"][..], &["config", "check"]] {
            let mut command = command(verb);
            let output = command.arg("--config").arg(&file).output().unwrap();
            check_refused(&output, 2, &["not the url of a store"]);
            assert!(!said(&output).contains("HIDDENSECRET"), "{}", said(&output));
        }
        assert!(!home.exists(), "nothing was entered");
    }
}

#[test]
fn up_takes_from_the_environment_what_it_has_no_flag_for() {
    use std::io::Read as _;
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("nbd.sock");
    let _gateway = Gateway::up_with(&["--clones", "1"], &[("CLONEGATE_LISTEN_NBD_UNIX", socket.to_str().unwrap())]);
    assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    let mut greeting = [0; 8];
    std::os::unix::net::UnixStream::connect(&socket).unwrap().read_exact(&mut greeting).unwrap();
    assert_eq!(&greeting, b"NBDMAGIC");
}
