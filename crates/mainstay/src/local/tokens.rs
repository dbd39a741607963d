//! Join tokens on the authority's side: what each allows, kept with the hash of its secret; used once, and not after its time.

use super::keys::{Keys, Member};
use crate::failure::{Failure, Outcome};
use mainstay_net::join::{Answers, Question, Refusal, Welcome};
use mainstay_net::token::{self, Token};
use mainstay_net::{pki, write_file};
use mainstay_ports::clock::wall_now_ms;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Files of tokens that are looked at; more are not there in a cluster of ours.
const TOKENS_MAX: usize = 10_000;

/// What is kept of a token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Kept {
    /// Its public part.
    pub(crate) id: String,
    /// The hash of its secret part.
    hash: String,
    /// For whom.
    pub(crate) member: Member,
    /// Until when, milliseconds since 1970.
    pub(crate) until_ms: u64,
}

/// The directory of tokens.
pub(crate) struct Tokens<'a> {
    keys: &'a Keys,
}

impl<'a> Tokens<'a> {
    /// Those of this authority.
    pub(crate) fn of(keys: &'a Keys) -> Self {
        Self { keys }
    }

    fn path(&self, id: &str, state: &str) -> PathBuf {
        self.keys.layout().tokens().join(format!("{id}.{state}"))
    }

    /// Makes a token for a member. Older open ones for the same member no longer count.
    ///
    /// # Errors
    /// When the disk refuses or randomness is missing.
    pub(crate) fn issue(&self, member: &Member, valid: Duration) -> Outcome<(Token, Kept)> {
        let dir = self.keys.layout().tokens();
        if !dir.is_dir() {
            super::node_dir::make_dir(&dir, 0o700, None)?;
        }
        let fingerprint = pki::fingerprint(self.keys.authority().cert_pem()).map_err(super::keys::net)?;
        let token = Token::create(fingerprint).map_err(super::keys::net)?;
        let until_ms = wall_now_ms().saturating_add(u64::try_from(valid.as_millis()).unwrap_or(u64::MAX));
        let kept = Kept { id: token.id.clone(), hash: token::hash(&token.secret), member: member.clone(), until_ms };
        let bytes = serde_json::to_vec(&kept).map_err(|error| Failure::failed(error.to_string()))?;
        for older in
            self.open().into_iter().filter(|older| older.member.role == member.role && older.member.name == member.name)
        {
            let path = self.path(&older.id, "open");
            std::fs::remove_file(&path).map_err(|error| Failure::failed(format!("{}: {error}", path.display())))?;
        }
        write_file(&self.path(&kept.id, "open"), &bytes, 0o600, None, false).map_err(super::keys::net)?;
        Ok((token, kept))
    }

    /// Tokens that can still be used.
    pub(crate) fn open(&self) -> Vec<Kept> {
        let now = wall_now_ms();
        let mut kept = self.all("open");
        kept.retain(|kept| kept.until_ms > now);
        kept
    }

    /// Tokens whose file ends so: `open` (also those whose time is over) or `used`.
    pub(crate) fn all(&self, state: &str) -> Vec<Kept> {
        let Ok(entries) = std::fs::read_dir(self.keys.layout().tokens()) else { return Vec::new() };
        let paths = entries.flatten().take(TOKENS_MAX).map(|entry| entry.path());
        let mut kept: Vec<Kept> = paths
            .filter(|path| path.extension().is_some_and(|found| found == state))
            .filter_map(|path| serde_json::from_slice(&std::fs::read(path).ok()?).ok())
            .collect();
        kept.sort_by(|a, b| (a.until_ms, &a.id).cmp(&(b.until_ms, &b.id)));
        kept
    }

    fn read(&self, id: &str, state: &str) -> Option<Kept> {
        if !token::is_id(id) {
            return None;
        }
        serde_json::from_slice(&std::fs::read(self.path(id, state)).ok()?).ok()
    }

    /// The token of this question, if it may be used for it.
    fn check(&self, question: &Question) -> Result<Kept, Refusal> {
        let found = self.read(&question.id, "open");
        let proven = |kept: &Kept| token::matches(&question.secret, &kept.hash);
        let Some(kept) = found.filter(proven) else {
            // That a token was used is told to its holder only.
            if self.read(&question.id, "used").as_ref().is_some_and(proven) {
                return Err(refusal("the token has been used already", &again(question)));
            }
            return Err(refusal(
                "the token is not known here: mistyped, replaced by a newer one, or never issued",
                &again(question),
            ));
        };
        if kept.until_ms <= wall_now_ms() {
            return Err(refusal("the token's time is over", &again(question)));
        }
        let cluster = self.keys.authority().cluster();
        if question.cluster != cluster.as_str() {
            let error = format!("the token is of the cluster {cluster}, the file says {}", question.cluster);
            return Err(refusal(&error, "use the file of this cluster on the host that joins"));
        }
        let (role, name) = (&kept.member.role, &kept.member.name);
        if question.role != *role || question.name != *name {
            let error = format!("the token is for {role} {name}, not for {} {}", question.role, question.name);
            return Err(refusal(&error, &format!("join as {name}, or issue a token for {}", question.name)));
        }
        let wanted: BTreeSet<&str> = kept.member.purposes().into_keys().collect();
        let asked: BTreeSet<&str> = question.requests.keys().map(String::as_str).collect();
        if wanted != asked {
            let error = format!("{role} {name} gets certificates for {wanted:?}, not for {asked:?}");
            return Err(refusal(&error, "use the same file (witness or not) and the same version on both hosts"));
        }
        Ok(kept)
    }

    /// Checks the token of a question, uses it up and certifies.
    ///
    /// # Errors
    /// Why the joiner is refused.
    pub(crate) fn welcome(&self, question: &Question) -> Result<(Kept, Welcome), Refusal> {
        let kept = self.check(question)?;
        let failed = |failure: Failure| refusal(&failure.error, "look at the host of `mainstay pki serve`");
        let verifier = if kept.member.needs_verifier() { Some(self.keys.verifier().map_err(failed)?) } else { None };
        // Used up first, in one step that only one of two can take: a crash in between costs a token, never gives two.
        std::fs::rename(self.path(&kept.id, "open"), self.path(&kept.id, "used"))
            .map_err(|_| refusal("the token has been used already", &again(question)))?;
        let mut certificates = std::collections::BTreeMap::new();
        for (purpose, (role, hosts)) in kept.member.purposes() {
            let request = question.requests.get(purpose).map(String::as_str).unwrap_or_default();
            certificates.insert(purpose.to_owned(), self.keys.sign(&role, &hosts, request, "token").map_err(failed)?);
        }
        Ok((kept, Welcome { authority: self.keys.authority().cert_pem().to_owned(), certificates, verifier }))
    }
}

fn refusal(error: &str, hint: &str) -> Refusal {
    Refusal { error: error.to_owned(), hint: hint.to_owned() }
}

fn again(question: &Question) -> String {
    let name: String = question.name.chars().filter(|c| !c.is_control()).take(63).collect();
    match question.role.as_str() {
        "node" => format!("issue a new one on the authority's host: mainstay pki issue {name}"),
        role @ ("proxy" | "operator" | "reader" | "admin") => {
            format!("issue a new one on the authority's host: mainstay pki issue --{role} {name}")
        }
        _ => "issue a new one on the authority's host: mainstay pki issue".to_owned(),
    }
}

/// Answers joiners, and tells about each.
pub(crate) struct Door<'a, F: FnMut(&str)> {
    /// The tokens.
    pub(crate) tokens: Tokens<'a>,
    /// Who has joined.
    pub(crate) joined: Vec<Member>,
    /// Told a line for each joiner.
    pub(crate) say: F,
}

impl<F: FnMut(&str) + Send> Answers for Door<'_, F> {
    fn answer(&mut self, question: &Question, from: SocketAddr) -> Result<Welcome, Refusal> {
        match self.tokens.welcome(question) {
            Ok((kept, welcome)) => {
                (self.say)(&format!("{} {} has joined from {}", kept.member.role, kept.member.name, from.ip()));
                self.joined.push(kept.member);
                Ok(welcome)
            }
            Err(refusal) => {
                (self.say)(&format!("refused from {}: {}", from.ip(), refusal.error));
                Err(refusal)
            }
        }
    }

    fn done(&self) -> bool {
        self.tokens.open().is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mainstay_model::ClusterName;
    use mainstay_model::layout::ClusterLayout;
    use mainstay_net::{KeyRequest, Role};

    fn keys(dir: &std::path::Path) -> Keys {
        Keys::found(&ClusterLayout::new(dir), &ClusterName::new("orders").unwrap(), "init").unwrap()
    }

    fn question(token: &Token, member: &Member) -> Question {
        let requests = member.purposes().into_keys();
        let requests =
            requests.map(|purpose| (purpose.to_owned(), KeyRequest::create().unwrap().request_pem)).collect();
        Question {
            id: token.id.clone(),
            secret: token.secret.clone(),
            cluster: "orders".to_owned(),
            role: member.role.clone(),
            name: member.name.clone(),
            requests,
        }
    }

    fn ann() -> Member {
        Member::plain(&Role::Operator("ann".to_owned()))
    }

    #[test]
    fn a_token_works_once_and_only_for_whom_it_was_made() {
        let dir = tempfile::tempdir().unwrap();
        let keys = keys(dir.path());
        let tokens = Tokens::of(&keys);
        let (token, _) = tokens.issue(&ann(), Duration::from_secs(60)).unwrap();
        let good = question(&token, &ann());
        let refused = |question: &Question| tokens.welcome(question).unwrap_err().error;

        let mut bad = good.clone();
        bad.name = "bob".to_owned();
        assert_eq!(refused(&bad), "the token is for operator ann, not for operator bob");
        let mut bad = good.clone();
        bad.role = "admin".to_owned();
        assert!(refused(&bad).contains("not for admin ann"));
        let mut bad = good.clone();
        bad.cluster = "billing".to_owned();
        assert!(refused(&bad).contains("the file says billing"));
        let mut bad = good.clone();
        bad.requests.insert("node".to_owned(), String::new());
        assert!(refused(&bad).contains("gets certificates for"));
        let mut bad = good.clone();
        bad.secret.replace_range(0..1, if bad.secret.starts_with('0') { "1" } else { "0" });
        assert!(refused(&bad).contains("is not known here"));
        let mut bad = good.clone();
        bad.id = "../../../secrets".to_owned();
        assert!(refused(&bad).contains("is not known here"));

        let (_, welcome) = tokens.welcome(&good).unwrap();
        assert!(welcome.certificates.contains_key("operator") && welcome.verifier.is_none());
        assert_eq!(refused(&good), "the token has been used already");
        let mut guess = good.clone();
        guess.secret = "0".repeat(48);
        assert!(refused(&guess).contains("is not known here"), "who does not hold it learns nothing of it");
        let kept = std::fs::read_to_string(keys.layout().tokens().join(format!("{}.used", token.id))).unwrap();
        assert!(!kept.contains(&token.secret));
    }

    #[test]
    fn a_token_ends_with_its_time_and_a_newer_one_replaces_it() {
        let dir = tempfile::tempdir().unwrap();
        let keys = keys(dir.path());
        let tokens = Tokens::of(&keys);
        let (late, _) = tokens.issue(&ann(), Duration::ZERO).unwrap();
        assert!(tokens.welcome(&question(&late, &ann())).unwrap_err().error.contains("time is over"));
        assert!(tokens.open().is_empty());
        let (first, _) = tokens.issue(&ann(), Duration::from_secs(60)).unwrap();
        let (second, _) = tokens.issue(&ann(), Duration::from_secs(60)).unwrap();
        assert!(tokens.welcome(&question(&first, &ann())).unwrap_err().error.contains("is not known here"));
        assert!(tokens.welcome(&question(&second, &ann())).is_ok());
    }
}
