//! The OpenAPI document and the router are one: what is documented exists, and what exists is documented.

use clonegate::clock::Clock;
use clonegate::http::HttpSettings;
use clonegate::metrics::Metrics;
use clonegate_tests::memory_disk::{MemoryDevice, MemoryExports};
use clonegate_tests::raw_http::RawHttp;
use serde_json::Value;

fn document() -> Value {
    serde_json::from_str(&clonegate::http::openapi()).unwrap()
}

/// Every method that a path could have.
const METHODS: [&str; 6] = ["GET", "HEAD", "PUT", "POST", "DELETE", "PATCH"];

#[test]
fn every_documented_route_exists_and_no_other_method_does() {
    let base = MemoryDevice::holding("x", &[7; 4096], false);
    let exports = MemoryExports::of(&[
        ("x", &base),
        ("x@identity", &base),
        ("disk/x", &base),
        ("base/b_00000000000000000000000000", &base),
        ("template/x", &base),
    ]);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let settings = HttpSettings { listen: ([127, 0, 0, 1], 0).into(), workers: 1, ..HttpSettings::default() };
    let server = {
        let _inside = runtime.enter();
        clonegate::http::serve(&settings, exports, None, &Metrics::new(), &Clock::system()).unwrap()
    };
    let fetched = RawHttp::connect(server.local_addr()).request("GET", "/openapi.json", &[]);
    let document: Value = serde_json::from_slice(&fetched.body).unwrap();
    let paths = document["paths"].as_object().unwrap();
    assert!(paths.len() >= 10, "{} paths", paths.len());
    for (path, item) in paths {
        let concrete = path.replace("{base}", "b_00000000000000000000000000");
        let concrete = concrete.split('/').map(|part| if part.starts_with('{') { "x" } else { part });
        let concrete = concrete.collect::<Vec<_>>().join("/");
        for method in METHODS {
            let documented = item.get(method.to_lowercase()).is_some();
            // axum answers HEAD wherever there is GET.
            let documented = documented || (method == "HEAD" && item.get("get").is_some());
            let mut http = RawHttp::connect(server.local_addr());
            http.send(format!("{method} {concrete} HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n")).unwrap();
            let reply = http.reply(method == "HEAD").unwrap();
            let there = reply.status != 405 && reply.code() != "no-such-route";
            assert_eq!(there, documented, "{method} {path} answers {}", reply.status);
        }
    }
}

#[test]
fn every_route_is_described() {
    for (path, item) in document()["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let summary = operation["summary"].as_str().or_else(|| operation["description"].as_str());
            assert!(summary.is_some_and(|text| !text.is_empty()), "{method} {path} says nothing about itself");
            assert!(operation["tags"].is_array(), "{method} {path} has no tag");
        }
    }
}

#[test]
fn every_change_can_be_tried() {
    // Bytes of disks, what has a trial of its own, and what changes nothing that anybody has.
    let others = ["put /v1/clones/{clone}/disk", "put /v1/disks/{disk}", "post /v1/datastores/{datastore}/probe"];
    let mut wrong = Vec::new();
    for (path, item) in document()["paths"].as_object().unwrap() {
        for method in ["post", "put", "patch", "delete"] {
            let Some(operation) = item.get(method) else { continue };
            let parameters = operation["parameters"].as_array().cloned().unwrap_or_default();
            let known = parameters.iter().any(|parameter| parameter["name"] == "dry_run");
            let name = format!("{method} {path}");
            if known == others.contains(&name.as_str()) {
                wrong.push(name);
            }
        }
    }
    assert!(wrong.is_empty(), "without `dry_run`, or with one though it is said to have none: {wrong:?}");
}
