//! Encryption of NBD: nothing is told before it, nothing agreed on before it holds after it.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use clonegate::nbd::NbdSettings;
use clonegate::nbd::client::{Connection, NbdUri, Wish};
use clonegate::tls::Tls;
use clonegate_core::Result;
use clonegate_core::nbd::{Command, Style};
use clonegate_tests::certificates::Certificates;
use clonegate_tests::nbd::{NbdHost, NbdHouse, NbdVolume, until, wish};

const SIZE: u64 = 8 << 20;
const STYLES: [Style; 3] = [Style::Simple, Style::Structured, Style::Extended];

fn tls_host(tls: Tls) -> NbdHost {
    let house = NbdHouse::of(&[&NbdVolume::new("disk", SIZE, SIZE)]);
    NbdHost::start(&house, |settings: &mut NbdSettings| settings.tls = Some(tls))
}

async fn encrypted(host: &NbdHost, wish: &Wish) -> Result<Connection> {
    let uri = host.uri("disk").replace("nbd://", "nbds://").parse().unwrap();
    let mut disk = Connection::open(&uri, wish).await?;
    // With TLS 1.3 a refused certificate shows when something is read.
    let read = disk.call(Command::Read, 0, 8, 8, &[]).await?;
    assert_eq!(read.bytes(), 8u64.to_be_bytes());
    Ok(disk)
}

#[test]
fn an_encrypted_session_does_all_that_a_plain_one_does() {
    let certificates = Certificates::new();
    let host = tls_host(certificates.settings(false, true));
    host.run(async {
        let mut disk = encrypted(&host, &certificates.client(false)).await.unwrap();
        let data: Vec<u8> = (0..3_000_000u32).map(|number| number.to_le_bytes()[1]).collect();
        let length = data.len() as u64;
        assert_eq!(disk.call(Command::Write, 0, 5, length, &data).await.unwrap().errno, 0);
        assert!(disk.call(Command::Read, 0, 5, length, &[]).await.unwrap().bytes() == data);
        disk.disconnect().await.unwrap();
        until(|| host.house.events().iter().any(|event| event == "detach disk Clean")).await;
    });
}

#[test]
fn nothing_is_told_or_opened_before_encryption() {
    let certificates = Certificates::new();
    let host = tls_host(certificates.settings(false, true));
    host.run(async {
        let uri: NbdUri = host.uri("disk").parse().unwrap();
        for style in STYLES {
            let refused = Connection::open(&uri, &wish(style)).await.unwrap_err();
            assert!(refused.to_string().contains("STARTTLS"), "{refused}");
        }
        assert!(Connection::list(&uri.place).await.is_err());
    });
    // The option that cannot be refused is hung up on.
    let mut stream = TcpStream::connect(("127.0.0.1", host.port())).unwrap();
    stream.write_all(b"\0\0\0\x03IHAVEOPT\0\0\0\x01\0\0\0\x04disk").unwrap();
    let mut all = Vec::new();
    let _ = stream.read_to_end(&mut all);
    assert_eq!(all.len(), 18);
    assert_eq!(host.house.events(), Vec::<String>::new(), "nothing was opened, attached or listed");
}

#[test]
fn starttls_with_data_is_refused_for_that_and_may_be_sent_again() {
    use clonegate_core::nbd::option::{OptionHeader, OptionReply, code, reply};
    let certificates = Certificates::new();
    let host = tls_host(certificates.settings(false, true));
    let mut stream = TcpStream::connect(("127.0.0.1", host.port())).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.read_exact(&mut [0; 18]).unwrap();
    stream.write_all(&3u32.to_be_bytes()).unwrap();
    for (code, data, expect) in [
        (code::STARTTLS, &[7; 5][..], reply::ERR_INVALID),
        (code::LIST, &[7; 5], reply::ERR_TLS_REQD),
        (code::STARTTLS, &[], reply::ACK),
    ] {
        let mut out = Vec::new();
        OptionHeader { code, length: u32::try_from(data.len()).unwrap() }.encode(&mut out);
        stream.write_all(&[&out, data].concat()).unwrap();
        let mut head = [0; OptionReply::HEADER_BYTES];
        stream.read_exact(&mut head).unwrap();
        let (_, got, length) = OptionReply::decode_header(&head).unwrap();
        assert_eq!(got, expect);
        stream.read_exact(&mut vec![0; length as usize]).unwrap();
    }
}

#[test]
fn a_client_without_a_certificate_gets_nothing_when_one_is_asked_for() {
    let certificates = Certificates::new();
    let host = tls_host(certificates.settings(true, true));
    host.run(async {
        assert!(encrypted(&host, &certificates.client(false)).await.is_err());
        assert!(encrypted(&host, &Certificates::new().client(true)).await.is_err(), "of another authority");
        assert_eq!(host.house.events(), Vec::<String>::new(), "nothing was opened, attached or listed");
        encrypted(&host, &certificates.client(true)).await.unwrap();
    });
}

#[test]
fn what_was_agreed_on_in_the_clear_is_void_under_encryption() {
    let certificates = Certificates::new();
    let host = tls_host(certificates.settings(false, false));
    let config = certificates.client(false).tls.unwrap();
    // Structured replies and contexts are chosen in the clear, then TLS begins, then the export is taken.
    use clonegate_core::nbd::{OptionRequest, Request};
    let mut stream = TcpStream::connect(("127.0.0.1", host.port())).unwrap();
    let skip = |stream: &mut TcpStream, count: usize| stream.read_exact(&mut vec![0; count]).unwrap();
    skip(&mut stream, 18);
    let mut out = 3u32.to_be_bytes().to_vec();
    OptionRequest::StructuredReply.encode(&mut out);
    OptionRequest::SetMetaContext("disk".into(), vec!["base:allocation".into()]).encode(&mut out);
    OptionRequest::StartTls.encode(&mut out);
    stream.write_all(&out).unwrap();
    skip(&mut stream, 20 + (20 + 4 + 15) + 20 + 20);
    let name = rustls::pki_types::ServerName::try_from("127.0.0.1").unwrap();
    let mut session = rustls::ClientConnection::new(config, name).unwrap();
    let mut tls = rustls::Stream::new(&mut session, &mut stream);
    out.clear();
    OptionRequest::SetMetaContext("disk".into(), vec!["base:allocation".into()]).encode(&mut out);
    OptionRequest::StartTls.encode(&mut out);
    OptionRequest::Go("disk".into(), vec![]).encode(&mut out);
    Request { flags: 0, command: Command::Read, cookie: 6, offset: 8, length: 8 }.encode(Style::Simple, &mut out);
    Request { flags: 0, command: Command::Disconnect, cookie: 7, offset: 0, length: 0 }.encode(Style::Simple, &mut out);
    tls.write_all(&out).unwrap();
    let mut all = Vec::new();
    let _ = tls.read_to_end(&mut all);
    let invalid = 0x8000_0003u32.to_be_bytes();
    assert_eq!(all[12..16], invalid, "contexts want structured replies anew");
    let simple = [&0x6744_6698u32.to_be_bytes()[..], &[0; 4], &6u64.to_be_bytes(), &8u64.to_be_bytes()].concat();
    assert!(all.ends_with(&simple), "replies are simple again");
}

#[test]
fn bytes_smuggled_in_before_encryption_are_not_taken_for_encrypted_ones() {
    let certificates = Certificates::new();
    let host = tls_host(certificates.settings(false, true));
    let mut stream = TcpStream::connect(("127.0.0.1", host.port())).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    use clonegate_core::nbd::OptionRequest;
    let mut out = 3u32.to_be_bytes().to_vec();
    OptionRequest::StartTls.encode(&mut out);
    OptionRequest::Go("disk".into(), vec![]).encode(&mut out);
    stream.write_all(&out).unwrap();
    let mut all = Vec::new();
    let _ = stream.read_to_end(&mut all);
    assert!(host.house.events().is_empty());
    assert!(all.len() < 18 + 20 + 64, "an alert at most follows");
}
