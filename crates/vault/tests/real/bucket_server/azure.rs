//! The store's side of Azure's Blob Storage, with the account in the path as emulators have it. Signatures are computed here from what arrived, by the
//! protocol's documentation and not by the client's code.

use super::{Answer, Object, Request, State, answer};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

pub(super) const MARK: &str = "x-ms-meta-mainstaywrite";
pub(super) const ACCOUNT: &str = "acme";
/// Thirty-two bytes.
pub(super) const KEY: &str = "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0ISE=";
/// Who has this needs no key.
pub(crate) const TOKEN: &str = "sv=2021-12-02&sp=rcwdl&sig=s3cret%2Fsignature%3D";

pub(super) fn error(status: u16, code: &str) -> Answer {
    let code = match code {
        "SlowDown" => "ServerBusy",
        "NoSuchKey" => "BlobNotFound",
        "NoSuchBucket" => "ContainerNotFound",
        "AccessDenied" => "AuthorizationFailure",
        "RequestTimeTooSkewed" => "AuthenticationFailed",
        "XMinioStorageFull" => "InsufficientStorage",
        code => code,
    };
    let body = format!(
        "\u{feff}<?xml version=\"1.0\" encoding=\"utf-8\"?><Error><Code>{code}</Code><Message>as this test wants it\nTime:now</Message></Error>"
    );
    Answer { headers: vec![("x-ms-error-code", code.to_owned())], ..answer(status, body) }
}

fn list(state: &State, request: &Request) -> Answer {
    let prefix = request.query.get("prefix").cloned().unwrap_or_default();
    let after = request.query.get("marker").cloned().unwrap_or_default();
    // Small pages: there are many.
    let most = request.query["maxresults"].parse::<usize>().unwrap().min(3);
    let all: Vec<_> = state.objects.iter().filter(|(name, _)| name.starts_with(&prefix) && **name > after).collect();
    let shown = &all[..all.len().min(most)];
    let blobs: String = shown
        .iter()
        .map(|(name, object)| {
            let size = object.bytes.len();
            format!("<Blob><Name>{name}</Name><Properties><Etag>tag</Etag><Content-Length>{size}</Content-Length></Properties></Blob>")
        })
        .collect();
    let next = if all.len() > most {
        format!("<NextMarker>{}</NextMarker>", shown[most - 1].0)
    } else {
        "<NextMarker />".to_owned()
    };
    let text = format!(
        "\u{feff}<?xml version=\"1.0\" encoding=\"utf-8\"?><EnumerationResults ContainerName=\"vault\"><Prefix>{prefix}</Prefix><Blobs>{blobs}</Blobs>{next}</EnumerationResults>"
    );
    answer(200, text)
}

/// Joins the blocks that are named; all others of this name are gone then.
fn join(state: &mut State, name: &str, request: &Request, only_new: bool) -> Answer {
    if only_new && state.objects.contains_key(name) {
        return error(409, "BlobAlreadyExists");
    }
    let text = String::from_utf8(request.body.clone()).unwrap();
    let staged = state.blocks.get(name).cloned().unwrap_or_default();
    let mut bytes = Vec::new();
    for part in text.split("<Latest>").skip(1) {
        let Some(block) = staged.get(part.split_once("</Latest>").unwrap().0) else {
            return error(400, "InvalidBlockList");
        };
        bytes.extend_from_slice(block);
    }
    assert!(!bytes.is_empty(), "{text}");
    let mark = request.headers.get(MARK).cloned().unwrap_or_default();
    let done = state.store(name, Object { bytes, mark, until: None }, only_new);
    if done.status == 201 {
        state.blocks.remove(name);
    }
    done
}

pub(super) fn act(state: &mut State, request: &Request, keeps: bool) -> Answer {
    let Some(rest) = request.path.strip_prefix("/acme/vault") else { return error(404, "ContainerNotFound") };
    let name = rest.trim_start_matches('/').to_owned();
    let word = request.query.get("comp").cloned().unwrap_or_default();
    let keeps = keeps && !(state.joins_blindly && word == "blocklist");
    let only_new = keeps && request.headers.get("if-none-match").is_some_and(|value| value == "*");
    match (request.method.as_str(), word.as_str()) {
        ("GET", "list") if name.is_empty() && request.query["restype"] == "container" => list(state, request),
        ("GET" | "HEAD", "") => state.get(&name, request),
        ("PUT", "block") => {
            let id = request.query["blockid"].clone();
            let blocks = state.blocks.entry(name).or_default();
            if STANDARD.decode(&id).is_err() || blocks.keys().any(|other| other.len() != id.len()) {
                return error(400, "InvalidBlobOrBlock");
            }
            blocks.insert(id, request.body.clone());
            answer(201, "")
        }
        ("PUT", "blocklist") => join(state, &name, request, only_new),
        ("PUT", "") => {
            if request.headers.get("x-ms-blob-type").is_none_or(|kind| kind != "BlockBlob") {
                return error(400, "MissingRequiredHeader");
            }
            let mark = request.headers.get(MARK).cloned().unwrap_or_default();
            let done = state.store(&name, Object { bytes: request.body.clone(), mark, until: None }, only_new);
            if done.status == 201 {
                state.blocks.remove(&name);
            }
            done
        }
        ("DELETE", "") => match state.objects.remove(&name) {
            Some(_) => answer(202, ""),
            None => error(404, "BlobNotFound"),
        },
        _ => error(400, "InvalidQueryParameterValue"),
    }
}

/// Why it is not let in.
pub(super) fn refused(request: &Request) -> Option<Answer> {
    let header = |name: &str| request.headers.get(name).map_or("", String::as_str);
    if header("x-ms-version") != "2021-12-02" || !header("x-ms-date").ends_with(" GMT") {
        return Some(error(400, "MissingRequiredHeader"));
    }
    if request.method == "PUT" && header("content-length").is_empty() {
        return Some(error(411, "MissingContentLengthHeader"));
    }
    if header("authorization").is_empty() && request.query.get("sig").is_some_and(|sig| sig == "s3cret/signature=") {
        return None;
    }
    let length = if header("content-length") == "0" { "" } else { header("content-length") };
    let mut text =
        format!("{}\n{}\n{}\n{length}\n", request.method, header("content-encoding"), header("content-language"));
    for name in [
        "content-md5",
        "content-type",
        "date",
        "if-modified-since",
        "if-match",
        "if-none-match",
        "if-unmodified-since",
        "range",
    ] {
        text.push_str(&format!("{}\n", header(name)));
    }
    for (name, value) in request.headers.iter().filter(|(name, _)| name.starts_with("x-ms-")) {
        text.push_str(&format!("{name}:{value}\n"));
    }
    text.push_str(&format!("/{ACCOUNT}{}", request.path));
    for (name, value) in &request.query {
        text.push_str(&format!("\n{name}:{value}"));
    }
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &STANDARD.decode(KEY).unwrap());
    let signature = STANDARD.encode(ring::hmac::sign(&key, text.as_bytes()));
    let right = header("authorization") == format!("SharedKey {ACCOUNT}:{signature}");
    (!right).then(|| error(403, "AuthenticationFailed"))
}
