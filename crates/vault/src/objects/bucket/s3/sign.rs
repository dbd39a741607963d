//! The signature of a request, version 4: who asks, and that nothing of it was changed on the way.

use super::Credentials;
use crate::hex;
use ring::digest::{SHA256, digest};
use ring::hmac::{HMAC_SHA256, Key, sign};

/// A request, as it is signed.
pub(super) struct Signed<'a> {
    pub(super) method: &'a str,
    /// Encoded already.
    pub(super) path: &'a str,
    /// Encoded already, sorted by name.
    pub(super) query: &'a str,
    /// Names in small letters, sorted.
    pub(super) headers: &'a [(&'a str, String)],
    /// SHA-256 of the body, hexadecimal.
    pub(super) body: &'a str,
    /// `YYYYMMDDThhmmssZ`.
    pub(super) time: &'a str,
    pub(super) region: &'a str,
}

pub(super) fn sum(bytes: &[u8]) -> String {
    hex::encode(digest(&SHA256, bytes).as_ref())
}

fn mac(key: &[u8], text: &str) -> Vec<u8> {
    sign(&Key::new(HMAC_SHA256, key), text.as_bytes()).as_ref().to_vec()
}

impl Signed<'_> {
    /// The header `authorization`.
    pub(super) fn authorization(&self, who: &Credentials) -> String {
        let lines: String = self.headers.iter().map(|(name, value)| format!("{name}:{}\n", value.trim())).collect();
        let names: Vec<&str> = self.headers.iter().map(|(name, _)| *name).collect();
        let names = names.join(";");
        let request = [self.method, self.path, self.query, &lines, &names, self.body].join("\n");
        let day = self.time.get(..8).unwrap_or_default();
        let scope = format!("{day}/{}/s3/aws4_request", self.region);
        let text = format!("AWS4-HMAC-SHA256\n{}\n{scope}\n{}", self.time, sum(request.as_bytes()));
        let mut key = format!("AWS4{}", who.secret).into_bytes();
        for part in [day, self.region, "s3", "aws4_request"] {
            key = mac(&key, part);
        }
        let signature = hex::encode(&mac(&key, &text));
        format!("AWS4-HMAC-SHA256 Credential={}/{scope}, SignedHeaders={names}, Signature={signature}", who.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The examples of the signature's own documentation.
    #[test]
    fn published_examples_are_signed_as_published() {
        let who = Credentials {
            id: "AKIAIOSFODNN7EXAMPLE".into(),
            secret: "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY".into(),
            token: None,
        };
        let (empty, time) = (sum(b""), "20130524T000000Z");
        let host = ("host", "examplebucket.s3.amazonaws.com".to_owned());
        let (content, date) = (("x-amz-content-sha256", empty.clone()), ("x-amz-date", time.to_owned()));
        let plain = vec![host.clone(), content.clone(), date.clone()];
        let ranged = vec![host, ("range", "bytes=0-9".to_owned()), content, date];
        for (path, query, headers, signature) in [
            ("/test.txt", "", &ranged, "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"),
            ("/", "lifecycle=", &plain, "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543"),
            ("/", "max-keys=2&prefix=J", &plain, "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"),
        ] {
            let signed = Signed { method: "GET", path, query, headers, body: &empty, time, region: "us-east-1" };
            assert!(signed.authorization(&who).ends_with(&format!("Signature={signature}")), "{path} {query}");
        }
    }
}
