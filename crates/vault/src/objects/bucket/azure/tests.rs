//! What Azure's answers mean, and signatures beside published and verified ones.

use super::*;
use crate::objects::Entry;
use ureq::http::HeaderValue;

fn azure() -> Azure {
    Azure { account: "acme".into(), in_path: false }
}

fn answer(status: u16, code: &str) -> Answer {
    Answer { status, headers: HeaderMap::new(), body: Vec::new(), tries: 1, code: code.into() }
}

/// The example of the protocol's own documentation.
#[test]
fn the_published_example_is_signed_as_published() {
    let headers =
        [("x-ms-date", "Fri, 26 Jun 2015 23:39:12 GMT".to_owned()), ("x-ms-version", "2015-02-21".to_owned())];
    let query = [("comp", "metadata".to_owned()), ("restype", "container".to_owned()), ("timeout", "20".to_owned())];
    let signed = Signed {
        method: "GET",
        account: "myaccount",
        path: "/mycontainer",
        query: &query,
        headers: &headers,
        length: 0,
    };
    assert_eq!(
        signed.text(),
        "GET\n\n\n\n\n\n\n\n\n\n\n\nx-ms-date:Fri, 26 Jun 2015 23:39:12 GMT\nx-ms-version:2015-02-21\n/myaccount/mycontainer\ncomp:metadata\nrestype:container\ntimeout:20"
    );
    assert_eq!(signed.authorization("no base64!"), None);
}

/// As the emulator verified it, with its published key: the account stands in the path, and twice in what is signed.
#[test]
fn a_write_is_signed_as_the_emulator_verified_it() {
    let headers = [
        ("if-none-match", "*".to_owned()),
        ("x-ms-blob-type", "BlockBlob".to_owned()),
        ("x-ms-date", "Sat, 28 Nov 2026 05:43:49 GMT".to_owned()),
        ("x-ms-version", "2021-12-02".to_owned()),
    ];
    let signed = Signed {
        method: "PUT",
        account: "devstoreaccount1",
        path: "/devstoreaccount1/orders-vault/main/.mainstay-probe",
        query: &[],
        headers: &headers,
        length: 5,
    };
    let key = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";
    let verified = "SharedKey devstoreaccount1:XNyT8tsI5UbRdIfgW/mbbIvgFIjtaDDrYHjIkZ9J0TY=";
    assert_eq!(signed.authorization(key).as_deref(), Some(verified));
}

#[test]
fn pages_are_read_and_half_of_one_is_none() {
    let text = "\u{feff}<?xml version=\"1.0\"?><EnumerationResults ServiceEndpoint=\"x\"><Prefix>p/</Prefix><Blobs>\
                <Blob><Name>p/log</Name><Properties><ResourceType>directory</ResourceType><Content-Length>0</Content-Length></Properties></Blob>\
                <Blob><Name>p/log/one</Name><Properties><Content-Length>7</Content-Length></Properties></Blob>\
                <Blob><Name Encoded=\"true\">p/%EF</Name><Properties><Content-Length>7</Content-Length></Properties></Blob>\
                <Blob><Name>p/.probe</Name><Properties><Content-Length>1</Content-Length></Properties></Blob>\
                </Blobs><NextMarker>a&amp;b</NextMarker></EnumerationResults>";
    let read = azure().page(text.as_bytes(), "p/").unwrap();
    assert_eq!(read.next.as_deref(), Some("a&b"));
    assert_eq!(read.entries, [Entry { key: Key::new("log/one").unwrap(), size: 7 }]);
    for cut in 0..text.len() {
        assert_eq!(azure().page(&text.as_bytes()[..cut], "p/"), None, "{cut}");
    }
    for last in ["<NextMarker />", "<NextMarker/>", "<NextMarker></NextMarker>"] {
        let text = text.replace("<NextMarker>a&amp;b</NextMarker>", last);
        assert_eq!(azure().page(text.as_bytes(), "p/").unwrap().next, None, "{last}");
    }
    assert_eq!(azure().page(text.replace("NextMarker", "Other").as_bytes(), "p/"), None, "a listing without its end");
    assert_eq!(azure().page(b"<html>not found</html>", ""), None);
}

#[test]
fn missing_and_there_are_said_by_the_stores_own_codes_only() {
    let azure = azure();
    assert!(azure.says_missing(&answer(404, "BlobNotFound")));
    for other in [
        answer(404, ""),
        answer(404, "ContainerNotFound"),
        answer(404, "ResourceNotFound"),
        answer(403, "BlobNotFound"),
    ] {
        assert!(!azure.says_missing(&other), "{other:?}");
        assert!(!matches!(azure.refusal(&other, String::new()), ObjectError::Missing(_)));
    }
    assert!(azure.says_exists(&answer(409, "BlobAlreadyExists")) && azure.says_exists(&answer(412, "ConditionNotMet")));
    for other in [answer(409, "ContainerBeingDeleted"), answer(412, "LeaseIdMissing"), answer(412, ""), answer(409, "")]
    {
        assert!(!azure.says_exists(&other), "{other:?}");
    }
    let mut headers = HeaderMap::new();
    assert_eq!(azure.code(&headers, b"<Error><Code>BlobNotFound</Code></Error>"), "BlobNotFound");
    headers.insert("x-ms-error-code", HeaderValue::from_static("ContainerNotFound"));
    assert_eq!(azure.code(&headers, b""), "ContainerNotFound");
    for (status, again) in
        [(500, true), (503, true), (429, true), (408, true), (501, false), (409, false), (403, false)]
    {
        assert_eq!(azure.again(&answer(status, "")), again, "{status}");
    }
}

#[test]
fn blocks_of_all_writers_are_named_alike_in_length_and_in_order() {
    let (first, last) = (block(&"a".repeat(32), 1), block(&"b".repeat(32), azure().parts_max()));
    assert!(first.len() == last.len() && STANDARD.decode(&first).unwrap().len() <= 64, "{first} {last}");
    assert_ne!(block("a", 1), block("a", 2));
}

#[test]
fn a_token_is_not_sent_in_clear_and_a_missing_one_is_named() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("keys");
    let write = |text: &str| {
        std::fs::write(&file, text).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    };
    let credentials = |endpoint: &str| {
        let text = format!("azure://logs?account=acme&endpoint={endpoint}&credentials={}", file.display());
        azure().credentials(&Address::parse(&text).unwrap()).map(drop).map_err(|error| error.to_string())
    };
    write("azure_storage_sas_token = sv=1&sig=secret\n");
    let refused = credentials("http://stack.example").unwrap_err();
    assert!(refused.contains("in clear") && refused.contains("https://") && !refused.contains("secret"), "{refused}");
    for fits in ["https://stack.example", "http://127.0.0.1:10421", "http://localhost:1", "http://[::1]:1"] {
        assert_eq!(credentials(fits), Ok(()), "{fits}");
    }
    write("azure_storage_key = c2VjcmV0\n");
    assert_eq!(credentials("http://stack.example"), Ok(()), "a key signs, and is not sent");
    write("\n");
    let missing = credentials("https://stack.example").unwrap_err();
    assert!(missing.contains(KEY) && missing.contains(SAS), "{missing}");
}
