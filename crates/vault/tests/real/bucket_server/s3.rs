//! The store's side of S3.

use super::versions::{self, needs_sum};
use super::{Answer, Object, Request, State, answer};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use std::collections::BTreeMap;

pub(super) const MARK: &str = "x-amz-meta-mainstay-write";
pub(super) const LOCKED_UNTIL: &str = "x-amz-object-lock-retain-until-date";
pub(super) const SUM: &str = "x-amz-checksum-sha256";
pub(super) const KEYS: &str = "aws_access_key_id = id\naws_secret_access_key = secret\n";

/// The key, what becomes of it, and the parts by number.
pub(super) type Upload = (String, Object, BTreeMap<usize, Vec<u8>>);

pub(super) fn error(status: u16, code: &str) -> Answer {
    answer(
        status,
        format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>as this test wants it</Message></Error>"),
    )
}

fn list(state: &State, query: &BTreeMap<String, String>) -> Answer {
    let prefix = &query["prefix"];
    let after = query.get("continuation-token").cloned().unwrap_or_default();
    // Small pages: there are many.
    let most = query["max-keys"].parse::<usize>().unwrap().min(3);
    let all: Vec<_> =
        state.objects.iter().filter(|(name, _)| name.starts_with(prefix.as_str()) && **name > after).collect();
    let shown = &all[..all.len().min(most)];
    let contents: String = shown
        .iter()
        .map(|(name, object)| format!("<Contents><Key>{name}</Key><Size>{}</Size></Contents>", object.bytes.len()))
        .collect();
    let next = if all.len() > most {
        format!("<NextContinuationToken>{}</NextContinuationToken>", shown[most - 1].0)
    } else {
        String::new()
    };
    let cut = all.len() > most;
    answer(200, format!("<ListBucketResult><IsTruncated>{cut}</IsTruncated>{next}{contents}</ListBucketResult>"))
}

pub(super) fn act(state: &mut State, request: &Request, keeps: bool) -> Answer {
    let Some(rest) = request.path.strip_prefix("/vault") else { return error(404, "NoSuchBucket") };
    let name = rest.trim_start_matches('/').to_owned();
    let keeps = keeps && !(state.joins_blindly && request.method == "POST");
    let only_new = keeps && request.headers.get("if-none-match").is_some_and(|value| value == "*");
    let mark = request.headers.get(MARK).cloned().unwrap_or_default();
    let upload = request.query.get("uploadId").cloned();
    if let Some(done) = versions::act(state, &name, request) {
        return done;
    }
    let until = match versions::until(state, request) {
        Ok(until) => until,
        Err(refused) => return refused,
    };
    if request.method == "PUT" && needs_sum(state, request, upload.as_deref()) && !request.headers.contains_key(SUM) {
        return error(400, "InvalidRequest");
    }
    match (request.method.as_str(), upload) {
        ("GET", _) if name.is_empty() => list(state, &request.query),
        ("GET" | "HEAD", _) => state.get(&name, request),
        ("POST", None) => {
            let id = format!("upload-{}", state.counted);
            state.uploads.insert(id.clone(), (name, Object { mark, until, ..Object::default() }, BTreeMap::new()));
            answer(
                200,
                format!("<InitiateMultipartUploadResult><UploadId>{id}</UploadId></InitiateMultipartUploadResult>"),
            )
        }
        ("PUT", Some(id)) => {
            let Some((_, _, parts)) = state.uploads.get_mut(&id) else { return error(404, "NoSuchUpload") };
            parts.insert(request.query["partNumber"].parse().unwrap(), request.body.clone());
            let mut headers = vec![("etag", "\"part\"".to_owned())];
            // One that keeps sums says so; an older one does not know what they are.
            if state.versions.is_some() {
                headers.extend(request.headers.get(SUM).map(|sum| (SUM, sum.clone())));
            }
            Answer { headers, ..answer(200, "") }
        }
        ("POST", Some(id)) => {
            let Some((name, object, parts)) = state.uploads.get(&id).cloned() else {
                return error(404, "NoSuchUpload");
            };
            assert!(parts.values().rev().skip(1).all(|part| part.len() >= 5 << 20), "a part is too small");
            let text = String::from_utf8(request.body.clone()).unwrap();
            let named = |part: &Vec<u8>| text.contains(&format!("<ChecksumSHA256>{}</ChecksumSHA256>", sum64(part)));
            if !parts.values().all(|part| named(part) == state.versions.is_some()) {
                return error(400, "InvalidPart");
            }
            let bytes = parts.into_values().flatten().collect();
            let done = state.store(&name, Object { bytes, ..object }, only_new);
            if done.status != 200 {
                return done;
            }
            state.uploads.remove(&id);
            answer(200, "<CompleteMultipartUploadResult></CompleteMultipartUploadResult>")
        }
        ("PUT", None) => state.store(&name, Object { bytes: request.body.clone(), mark, until }, only_new),
        ("DELETE", Some(id)) => {
            state.uploads.remove(&id);
            answer(204, "")
        }
        ("DELETE", None) => {
            if let Some(versions) = &mut state.versions {
                versions.add(&name, None);
            }
            state.objects.remove(&name);
            answer(204, "")
        }
        _ => error(501, "NotImplemented"),
    }
}

fn sum64(bytes: &[u8]) -> String {
    STANDARD.encode(ring::digest::digest(&ring::digest::SHA256, bytes))
}

/// Why it is not let in.
pub(super) fn refused(request: &Request) -> Option<Answer> {
    let authorization = request.headers.get("authorization").map_or("", String::as_str);
    if !authorization.starts_with("AWS4-HMAC-SHA256 Credential=id/") {
        return Some(error(403, "InvalidAccessKeyId"));
    }
    let signed =
        authorization.split("SignedHeaders=").nth(1).and_then(|rest| rest.split(',').next()).unwrap_or_default();
    let named: Vec<&str> = signed.split(';').collect();
    let all =
        request.headers.keys().filter(|name| name.starts_with("x-amz-") || *name == "host" || *name == "if-none-match");
    let sum = ring::digest::digest(&ring::digest::SHA256, &request.body);
    let sum: String = sum.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    let whole = request.headers.get("x-amz-content-sha256") == Some(&sum);
    if request.headers.get(SUM).is_some_and(|own| *own != sum64(&request.body)) {
        return Some(error(400, "BadDigest"));
    }
    if all.into_iter().any(|name| !named.contains(&name.as_str())) || !whole {
        return Some(error(403, "SignatureDoesNotMatch"));
    }
    None
}
