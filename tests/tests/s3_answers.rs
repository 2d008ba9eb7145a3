//! What a `Store` makes of the answers that S3 services, proxies and networks give; each is given by a small server here.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use clonegate::clock::Clock;
use clonegate::store::{Key, PutNew, Secret, Store, StoreConfig, keys, tls};
use clonegate_core::units::ByteRange;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;

/// Answers each request with the next of a list, whatever it asks, and keeps what was asked.
struct Service {
    address: String,
    asked: Arc<Mutex<Vec<String>>>,
}

type Answers = Arc<Mutex<VecDeque<String>>>;

async fn converse(mut stream: impl AsyncRead + AsyncWrite + Unpin, answers: Answers, asked: Arc<Mutex<Vec<String>>>) {
    let mut buffer = Vec::new();
    loop {
        let head_end = loop {
            if let Some(at) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
                break at + 4;
            }
            match stream.read_buf(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
        };
        let head = String::from_utf8_lossy(&buffer[..head_end]).into_owned();
        let length =
            head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
        while buffer.len() < head_end + length.unwrap_or(0) {
            if stream.read_buf(&mut buffer).await.unwrap_or(0) == 0 {
                return;
            }
        }
        buffer.drain(..head_end + length.unwrap_or(0));
        asked.lock().unwrap().push(head);
        let Some(answer) = answers.lock().unwrap().pop_front() else { return };
        // An answer that says so ends the connection with it.
        let (text, close) = answer.strip_suffix("<close>").map_or((answer.as_str(), false), |text| (text, true));
        if stream.write_all(text.as_bytes()).await.is_err() || close {
            return;
        }
    }
}

impl Service {
    async fn start(answers: &[String], tls: Option<tokio_rustls::TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let answers: Answers = Arc::new(Mutex::new(answers.iter().cloned().collect()));
        let asked = Arc::new(Mutex::new(Vec::new()));
        let told = Arc::clone(&asked);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (answers, asked, tls) = (Arc::clone(&answers), Arc::clone(&told), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        None => converse(stream, answers, asked).await,
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                converse(stream, answers, asked).await;
                            }
                        }
                    }
                });
            }
        });
        Self { address, asked }
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

fn config(endpoint: String) -> StoreConfig {
    StoreConfig {
        endpoint: Some(endpoint),
        region: Some("us-east-1".into()),
        access_key_id: Some("key".into()),
        secret_access_key: Some(Secret::new("hunter2")),
        request_timeout: Duration::from_secs(2),
        retry_for: Duration::from_secs(2),
        ..StoreConfig::new("s3://vdi/fast")
    }
}

fn status(line: &str, body: &str) -> String {
    format!("HTTP/1.1 {line}\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

fn created() -> String {
    "HTTP/1.1 200 OK\r\nETag: \"e1\"\r\nContent-Length: 0\r\n\r\n".into()
}

fn object(body: &str) -> String {
    let date = "Thu, 01 Jan 2026 00:00:00 GMT";
    let length = body.len();
    format!("HTTP/1.1 200 OK\r\nETag: \"e1\"\r\nLast-Modified: {date}\r\nContent-Length: {length}\r\n\r\n{body}")
}

fn part(body: &str, range: &str, etag: &str) -> String {
    let length = body.len();
    format!(
        "HTTP/1.1 206 Partial Content\r\nETag: {etag}\r\nLast-Modified: Thu, 01 Jan 2026 00:00:00 GMT\r\n\
         Content-Range: bytes {range}\r\nContent-Length: {length}\r\n\r\n{body}"
    )
}

async fn with(answers: &[String]) -> (Store, Service) {
    let service = Service::start(answers, None).await;
    let store = Store::open(&config(format!("http://{}", service.address)), &Clock::system()).unwrap();
    (store, service)
}

fn key() -> Key {
    keys::foreign("a").unwrap()
}

#[tokio::test]
async fn a_busy_service_is_asked_again() {
    let slow_down = "<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>";
    let answers = [status("503 Slow Down", slow_down), status("500 Internal Server Error", ""), created()];
    let (store, service) = with(&answers).await;
    assert_eq!(store.put_new(&key(), "mine".into()).await.unwrap(), PutNew::Created);
    let asked = service.asked();
    assert_eq!(asked.len(), 3);
    assert!(asked.iter().all(|head| head.starts_with("PUT /vdi/fast/a ")), "{asked:?}");
    assert!(asked.iter().all(|head| head.to_ascii_lowercase().contains("if-none-match: *")), "{asked:?}");
}

#[tokio::test]
async fn a_conflict_with_nothing_there_is_tried_again() {
    let conflict = "<Error><Code>ConditionalRequestConflict</Code></Error>";
    let gone = "<Error><Code>NoSuchKey</Code></Error>";
    let (store, service) = with(&[status("409 Conflict", conflict), status("404 Not Found", gone), created()]).await;
    assert_eq!(store.put_new(&key(), "mine".into()).await.unwrap(), PutNew::Created);
    assert_eq!(service.asked().len(), 3);
}

#[tokio::test]
async fn a_reply_that_was_lost_is_found_out() {
    let lost = "<close>".to_owned();
    let (store, _service) = with(&[lost, status("412 Precondition Failed", ""), object("mine")]).await;
    assert_eq!(store.put_new(&key(), "mine".into()).await.unwrap(), PutNew::Created);
    let (store, _service) =
        with(&["<close>".to_owned(), status("412 Precondition Failed", ""), object("theirs")]).await;
    assert_eq!(store.put_new(&key(), "mine".into()).await.unwrap(), PutNew::Exists("theirs".into()));
}

#[tokio::test]
async fn a_body_that_breaks_off_is_fetched_again() {
    let broken = object("0123456789").replace("0123456789", "01234<close>");
    let (store, _service) = with(&[broken, object("0123456789")]).await;
    assert_eq!(store.get(&key()).await.unwrap(), "0123456789");
    let broken = part("2345", "2-5/10", "\"e1\"").replace("2345", "23<close>");
    let (store, _service) = with(&[broken, part("2345", "2-5/10", "\"e1\"")]).await;
    assert_eq!(store.get_range(&key(), ByteRange::new(2, 6), None).await.unwrap(), "2345");
}

#[tokio::test]
async fn a_service_that_ignores_if_match_does_not_get_other_bytes_past_us() {
    let (store, service) = with(&[part("2345", "2-5/10", "\"e2\"")]).await;
    let error = store.get_range(&key(), ByteRange::new(2, 6), Some("\"e1\"")).await.unwrap_err();
    assert_eq!(error.code(), "source-changed");
    assert!(service.asked()[0].to_ascii_lowercase().contains("if-match: \"e1\""));
}

#[tokio::test]
async fn a_service_that_takes_etags_only_without_quotes_is_learnt() {
    let precondition = status("412 Precondition Failed", "");
    let head = object("0123456789").split_inclusive("\r\n\r\n").next().unwrap().to_owned();
    let right = part("2345", "2-5/10", "\"e1\"");
    let (store, service) = with(&[precondition, head, right.clone(), right]).await;
    for _ in 0..2 {
        assert_eq!(store.get_range(&key(), ByteRange::new(2, 6), Some("\"e1\"")).await.unwrap(), "2345");
    }
    let asked: Vec<String> = service.asked().iter().map(|head| head.to_ascii_lowercase()).collect();
    assert!(asked[1].starts_with("head "));
    assert!(asked[2].contains("if-match: e1\r") && asked[3].contains("if-match: e1\r"), "{asked:?}");
    assert_eq!(asked.len(), 4);
}

#[tokio::test]
async fn a_range_that_something_on_the_way_strips_is_an_error() {
    let (store, _service) = with(&[object("0123456789")]).await;
    let error = store.get_range(&key(), ByteRange::new(2, 6), None).await.unwrap_err();
    assert_eq!(error.code(), "store-ignores-range", "{error}");
    let (store, _service) = with(&[part("0123", "0-3/10", "\"e1\"")]).await;
    let error = store.get_range(&key(), ByteRange::new(2, 6), None).await.unwrap_err();
    assert_eq!(error.code(), "store-ignores-range", "{error}");
}

#[tokio::test]
async fn what_the_service_complains_of_is_said_with_what_to_do() {
    let region = "<Error><Code>AuthorizationHeaderMalformed</Code><Message>the region 'us-east-1' is wrong; expecting \
                  'eu-west-1'</Message><Region>eu-west-1</Region></Error>";
    let document = |code: &str| format!("<Error><Code>{code}</Code><Message>no</Message></Error>");
    for (answer, code, hint) in [
        (status("400 Bad Request", region), "wrong-region", "eu-west-1"),
        (status("301 Moved Permanently", ""), "wrong-region", "region"),
        (status("403 Forbidden", &document("RequestTimeTooSkewed")), "clock-skew", "NTP"),
        (status("400 Bad Request", &document("ExpiredToken")), "credentials-expired", "renew"),
        (status("403 Forbidden", &document("InvalidAccessKeyId")), "bad-credentials", "access_key_id"),
        (status("403 Forbidden", &document("AccessDenied")), "access-denied", "list the bucket"),
        (status("404 Not Found", &document("NoSuchBucket")), "no-such-bucket", "create the bucket"),
        (status("403 Forbidden", &document("QuotaExceeded")), "store-full", "quota"),
        (status("507 Insufficient Storage", &document("XMinioStorageFull")), "store-full", "room"),
        (status("403 Forbidden", &document("InvalidObjectState")), "archived", "restore"),
        (status("501 Not Implemented", &document("NotImplemented")), "store-cannot", "exclusive = true"),
    ] {
        let (store, service) = with(&[answer]).await;
        let error = store.get(&key()).await.unwrap_err();
        assert_eq!(error.code(), code, "{error}");
        assert!(error.what_to_do().unwrap().contains(hint), "{error}");
        assert_eq!(error.object(), Some("s3://vdi/fast/a"));
        assert!(!format!("{error:?}").contains("hunter2"));
        assert_eq!(service.asked().len(), 1, "{code} does not pass by asking again");
    }
}

#[tokio::test]
async fn a_missing_bucket_is_never_taken_for_a_missing_object() {
    let missing = status("404 Not Found", "<Error><Code>NoSuchBucket</Code></Error>");
    let (store, _service) = with(&[missing.clone(), missing]).await;
    assert_eq!(store.find(&key()).await.unwrap_err().code(), "no-such-bucket");
    assert_eq!(store.delete(&key()).await.unwrap_err().code(), "no-such-bucket");
}

#[tokio::test]
async fn a_proxy_is_gone_through_when_it_is_set_and_only_then() {
    let proxy = Service::start(&[object("by proxy")], None).await;
    let service = Service::start(&[object("direct")], None).await;
    let direct = StoreConfig { proxy: Some("none".into()), ..config(format!("http://{}", service.address)) };
    let store = Store::open(&direct, &Clock::system()).unwrap();
    assert_eq!(store.get(&key()).await.unwrap(), "direct");
    let proxied = StoreConfig {
        proxy: Some(format!("http://{}", proxy.address)),
        ..config("http://store.invalid:9000".to_owned())
    };
    let store = Store::open(&proxied, &Clock::system()).unwrap();
    assert_eq!(store.get(&key()).await.unwrap(), "by proxy");
    assert!(proxy.asked()[0].starts_with("GET http://store.invalid:9000/vdi/fast/a "), "{:?}", proxy.asked());
}

#[tokio::test]
async fn a_certificate_authority_of_ones_own_is_trusted_when_it_is_named() {
    tls::install_provider();
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned(), "localhost".to_owned()]).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let ca_file = directory.path().join("ca.pem");
    std::fs::write(&ca_file, made.cert.pem()).unwrap();
    let key_der = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let server = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key_der)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(server));
    let service = Service::start(&[object("secret things")], Some(acceptor)).await;
    let strange = config(format!("https://{}", service.address));
    let store = Store::open(&strange, &Clock::system()).unwrap();
    let error = store.get(&key()).await.unwrap_err();
    assert_eq!(error.code(), "tls-untrusted", "{error}");
    assert!(error.what_to_do().unwrap().contains("ca_file"));
    let known = StoreConfig { ca_file: Some(ca_file), ..strange };
    let store = Store::open(&known, &Clock::system()).unwrap();
    assert_eq!(store.get(&key()).await.unwrap(), "secret things");
}
