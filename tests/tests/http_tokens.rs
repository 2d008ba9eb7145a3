//! With tokens, whoever has none can boot a machine and nothing else: every route of the interface, with no token, a wrong one, and
//! one of a caller, whose name is in the audit log.

use std::process::Output;
use std::sync::Arc;

use clonegate::clock::Clock;
use clonegate::http::{HttpSettings, Tokens};
use clonegate::metrics::Metrics;
use clonegate_tests::gateway::{Gateway, command};
use clonegate_tests::memory_disk::{MemoryDevice, MemoryExports};
use clonegate_tests::raw_http::RawHttp;
use serde_json::Value;

const TOKEN: &str = "b3a1c0d4e5f60718293a4b5c6d7e8f90";

/// What a machine reads to boot, what says whether the gateway is well, and the pages that ask for a token themselves.
const OPEN: [&str; 16] = [
    "/",
    "/console.css",
    "/console.js",
    "/openapi.json",
    "/healthz",
    "/readyz",
    "/boot.ipxe",
    "/boot/{script}",
    "/boot/mac/{script}",
    "/efi/{*file}",
    "/seed/{clone}/{file}",
    "/v1/clones/{clone}/disk",
    "/v1/clones/{clone}/identity",
    "/v1/clones/{clone}/files",
    "/v1/clones/{clone}/files/{partition}",
    "/v1/clones/{clone}/files/{partition}/{*path}",
];

#[test]
fn whoever_has_no_token_can_boot_a_machine_and_nothing_else() {
    let base = MemoryDevice::holding("x", &[7; 4096], false);
    let exports = MemoryExports::of(&[("x", &base), ("x@identity", &base), ("disk/x", &base), ("template/x", &base)]);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let tokens = Tokens::parse(&format!("alice {TOKEN}\n")).unwrap();
    let settings = HttpSettings {
        listen: ([127, 0, 0, 1], 0).into(),
        workers: 1,
        tokens: Some(Arc::new(tokens)),
        ..HttpSettings::default()
    };
    let server = {
        let _inside = runtime.enter();
        clonegate::http::serve(&settings, exports, None, &Metrics::new(), &Clock::system()).unwrap()
    };
    let status = |method: &str, path: &str, token: Option<&str>| {
        let mut http = RawHttp::connect(server.local_addr());
        let header = token.map_or_else(String::new, |token| format!("Authorization: Bearer {token}\r\n"));
        http.send(format!("{method} {path} HTTP/1.1\r\nHost: a\r\n{header}Content-Length: 0\r\n\r\n")).unwrap();
        http.reply(method == "HEAD").unwrap().status
    };
    let document: Value = serde_json::from_str(&clonegate::http::openapi()).unwrap();
    let mut closed = 0;
    for (path, item) in document["paths"].as_object().unwrap() {
        let concrete = path.split('/').map(|part| if part.starts_with('{') { "x" } else { part });
        let concrete = concrete.collect::<Vec<_>>().join("/");
        for method in item.as_object().unwrap().keys().map(|method| method.to_uppercase()) {
            let open = OPEN.contains(&path.as_str()) && matches!(method.as_str(), "GET" | "HEAD");
            closed += usize::from(!open);
            assert_eq!(status(&method, &concrete, None) == 401, !open, "{method} {path} without a token");
            assert_eq!(status(&method, &concrete, Some("b3a1c0d4e5f60718293a4b5c6d7e8f91")), 401, "{method} {path}");
            assert_eq!(status(&method, &concrete, Some("")), 401, "{method} {path} with an empty token");
            assert_ne!(status(&method, &concrete, Some(TOKEN)), 401, "{method} {path} with a token");
        }
    }
    assert!(closed > 70, "{closed} routes want a token");
    let mut http = RawHttp::connect(server.local_addr());
    let refused = http.request("GET", "/v1/clones", &[]);
    assert_eq!(refused.field("www-authenticate"), Some("Bearer realm=\"clonegate\""));
    assert_eq!(refused.code(), "no-token");
    assert_eq!(http.request("GET", "/healthz", &[]).status, 200, "the connection goes on");
}

#[test]
fn the_command_line_takes_a_token_whose_name_is_in_the_audit_log() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tokens");
    std::fs::write(&file, format!("# who has which\nalice {TOKEN}\n")).unwrap();
    let gateway = Gateway::up_with(&[], &[("CLONEGATE_AUTH_TOKENS", file.to_str().unwrap())]);
    let said = |output: &Output| String::from_utf8_lossy(&output.stderr).into_owned();
    let refused = gateway.cli(&["clone", "list"]);
    assert!(!refused.status.success());
    assert!(said(&refused).contains("--token"), "{}", said(&refused));
    let refused = gateway.cli(&["clone", "list", "--token", "nobody-has-this-one-here"]);
    assert!(!refused.status.success());
    gateway.cli_ok(&["clone", "reset", "demo-001", "--token", TOKEN]);
    let audit = gateway.cli_ok(&["audit", "list", "--token", TOKEN, "--output", "json"]);
    let audit: Value = serde_json::from_str(&audit).unwrap();
    let reset = audit.as_array().unwrap().iter().find(|entry| entry["action"] == "clone reset").unwrap();
    assert_eq!(reset["by"], "alice");
    let disk =
        RawHttp::connect(gateway.http()).request("GET", "/v1/clones/demo-001/disk", &[("Range", "bytes=510-511")]);
    assert_eq!(disk.body, [0x55, 0xaa], "a machine boots without one");
}

#[test]
fn a_file_of_tokens_that_is_wrong_is_refused_at_start() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tokens");
    let start = || {
        let mut up = command(["up", "--data", folder.path().join("data").to_str().unwrap()]);
        let output = up.env("CLONEGATE_AUTH_TOKENS", &file).output().unwrap();
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let missing = start();
    assert!(missing.contains("the file of tokens cannot be read") && missing.contains("NAME TOKEN"), "{missing}");
    std::fs::write(&file, "alice 1234\n").unwrap();
    let short = start();
    assert!(short.contains("line 1") && short.contains("openssl rand"), "{short}");
}
