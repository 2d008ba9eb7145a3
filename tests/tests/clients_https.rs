//! The gateway under TLS, as curl and its own command line see it.

use std::io::Read;
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use clonegate_tests::certificates::Certificates;
use clonegate_tests::curl::curl;
use clonegate_tests::gateway::{command, free_address};
use clonegate_tests::serve::Serve;
use clonegate_tests::{cases, images};

cases! {
    "curl" => disks_and_commands_go_through_tls_by_the_token_of_the_caller;
    "curl" => a_plain_client_and_a_silent_one_get_nothing_from_the_port_of_tls;
    "curl" => https_without_a_certificate_is_refused_at_start;
}

const TOKEN: &str = "b3a1c0d4e5f60718293a4b5c6d7e8f90";

fn tls(certificates: &Certificates) -> String {
    let (certificate, key) = (certificates.path("server.pem"), certificates.path("server.key"));
    format!("[tls]\ncertificate = {certificate:?}\nkey = {key:?}\n")
}

/// A gateway on a directory, and its HTTPS address.
fn serve(dir: &Path, certificates: &Certificates) -> (Serve, String) {
    let https = free_address().to_string();
    let tokens = dir.join("tokens");
    std::fs::write(&tokens, format!("alice {TOKEN}\n")).unwrap();
    let config = format!(
        "home = \"file://{0}/home\"\n[[datastore]]\nname = \"local\"\nurl = \"file://{0}/store\"\n[auth]\ntokens = {tokens:?}\n{1}",
        dir.display(),
        tls(certificates)
    );
    let gateway = Serve::start(&dir.join("gateway"), &config, &[("CLONEGATE_LISTEN_HTTPS", https.clone())]);
    assert!(gateway.output().contains(&format!("HTTPS on https://{https}")), "{}", gateway.output());
    (gateway, format!("https://{https}"))
}

fn disks_and_commands_go_through_tls_by_the_token_of_the_caller() {
    let (dir, certificates) = (tempfile::tempdir().unwrap(), Certificates::new());
    let (gateway, url) = serve(dir.path(), &certificates);
    let authority = certificates.path("ca.pem");
    let authority = authority.to_str().unwrap();
    let image = dir.path().join("image.raw");
    images::patterned(&image, 9 << 20).unwrap();
    let cli = |arguments: &[&str]| {
        let mut cli = command(arguments);
        let output = cli.args(["--server", &url, "--ca", authority, "--token", TOKEN]).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    cli(&["template", "import", "lab", image.to_str().unwrap(), "--format", "raw"]);
    cli(&["clone", "create", "pc", "--template", "lab"]);
    assert!(cli(&["clone", "list"]).contains("pc"));

    let disk = format!("{url}/v1/clones/pc/disk");
    let whole = curl(&["--cacert", authority, &disk]);
    assert_eq!(whole.status, 200);
    assert!(whole.body == std::fs::read(&image).unwrap(), "the image comes through TLS byte by byte");
    let list = format!("{url}/v1/clones");
    assert_eq!(curl(&["--cacert", authority, &list]).status, 401);
    let bearer = format!("Authorization: Bearer {TOKEN}");
    assert_eq!(curl(&["--cacert", authority, "--header", &bearer, &list]).status, 200);
    assert_eq!(curl(&[&list]).status, 0, "an authority that curl does not know");
    // Boot scripts go on by the way that they were asked for.
    let chain =
        |url: &str| String::from_utf8(curl(&["--cacert", authority, &format!("{url}/boot.ipxe")]).body).unwrap();
    assert!(chain(&url).contains(&format!("chain --autofree {url}/boot.ipxe?")), "{}", chain(&url));
    let plain = format!("http://{}", gateway.http());
    assert!(chain(&plain).contains(&format!("chain --autofree {plain}/boot.ipxe?")), "{}", chain(&plain));
    // One volume, whichever way it is reached.
    let plain = format!("http://{}/v1/clones/pc/disk", gateway.http());
    assert_eq!(curl(&["--range", "0-511", &plain]).body, whole.body[..512]);

    let stranger = command(["clone", "list", "--server", &url, "--token", TOKEN]).output().unwrap();
    let said = String::from_utf8_lossy(&stranger.stderr).into_owned();
    assert!(!stranger.status.success() && said.contains("certificate"), "{said}");
}

fn a_plain_client_and_a_silent_one_get_nothing_from_the_port_of_tls() {
    let (dir, certificates) = (tempfile::tempdir().unwrap(), Certificates::new());
    let (gateway, url) = serve(dir.path(), &certificates);
    assert_eq!(curl(&[&url.replace("https", "http")]).status, 0);
    let mut silent = TcpStream::connect(url.trim_start_matches("https://")).unwrap();
    silent.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
    assert_eq!(silent.read(&mut [0; 16]).unwrap(), 0, "whoever says nothing is cut off");
    assert_eq!(curl(&[&format!("http://{}/healthz", gateway.http())]).status, 200);
}

fn https_without_a_certificate_is_refused_at_start() {
    let dir = tempfile::tempdir().unwrap();
    let start = |config: &str| {
        let file = dir.path().join("clonegate.toml");
        let base = format!("home = \"file://{0}/home\"\n[journal]\npath = \"{0}/journal\"\n", dir.path().display());
        std::fs::write(&file, format!("{base}[listen]\nhttps = \"{}\"\n{config}", free_address())).unwrap();
        let output = command(["serve", "--config", file.to_str().unwrap()]).output().unwrap();
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let none = start("");
    assert!(none.contains("listen.https") && none.contains("[tls]"), "{none}");
    let wrong = start("[tls]\ncertificate = \"/nowhere.pem\"\nkey = \"/nowhere.key\"\n");
    assert!(wrong.contains("/nowhere"), "{wrong}");
}
