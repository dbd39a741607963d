//! Several repositories of one cluster: from which one a copy comes, and what is taken from another one where an object is damaged or gone
//! (docs/adr/0043).
//!
//! A plan comes from one repository. Only single files of the log are taken from another: each says itself what it is, and where the damaged one
//! still tells its checksum, the other one must have the same.

use crate::objects::Key;
use crate::postgres::look::look_at;
use crate::postgres::restore::{Plan, Target};
use crate::repository::{Repository, VaultError};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use tracing::warn;

/// The one that is taken.
pub struct Chosen {
    /// Which, in the order of preference.
    pub at: usize,
    /// Open.
    pub repository: Repository,
    /// What is done with it.
    pub plan: Plan,
}

/// Looks at so many repositories in the order of preference, and takes the first one whose plan meets the target. Where a plan can not tell whether
/// the target is met, the one whose log goes furthest: one that was away for long must not pass for the latest moment. Nor can it for a time: a plan
/// knows when a segment was brought, and one that catches up brings old ones late. Also says why others were passed over.
pub fn choose(
    count: usize,
    target: &Target,
    look: impl Fn(usize) -> Result<(Repository, Plan), VaultError>,
) -> (Option<Chosen>, Vec<(usize, VaultError)>) {
    let furthest = matches!(target, Target::Latest | Target::Time(_) | Target::Name(_) | Target::Transaction(_));
    let (mut chosen, mut passed): (Option<Chosen>, Vec<(usize, VaultError)>) = (None, Vec::new());
    for at in 0..count {
        let (repository, plan) = match look(at) {
            Ok(found) => found,
            Err(error) => {
                passed.push((at, error));
                continue;
            }
        };
        let here = Chosen { at, repository, plan };
        match chosen.take() {
            Some(before) if reach(&before.plan) >= reach(&here.plan) => chosen = Some(before),
            Some(before) => {
                let (less, more) = (before.plan.reaches, here.plan.reaches);
                passed.push((before.at, VaultError::NotArchived(format!("it reaches {less}, another one {more}"))));
                chosen = Some(here);
            }
            None => chosen = Some(here),
        }
        if !furthest {
            break;
        }
    }
    (chosen, passed)
}

fn reach(plan: &Plan) -> (mainstay_model::Timeline, mainstay_model::Lsn) {
    (plan.timeline, plan.reaches)
}

/// What opens another repository.
type Open = dyn Fn() -> Result<Repository, VaultError> + Send + Sync;

/// Another repository.
#[derive(Clone)]
struct Other {
    place: PathBuf,
    open: Arc<Open>,
    /// `None`: it could not be opened, and is not tried again.
    opened: Arc<OnceLock<Option<Repository>>>,
}

impl Other {
    fn repository(&self) -> Option<Repository> {
        let open = Arc::clone(&self.open);
        let opened = || look_at(true, &self.place, move || open());
        let told = |error: &VaultError| warn!(place = %self.place.display(), %error, "another repository can not help");
        self.opened.get_or_init(|| opened().inspect_err(told).ok()).clone()
    }

    /// The file there, its checksum, and whether it is disputed.
    fn get(&self, key: &Key) -> Result<(Vec<u8>, Option<String>, bool), VaultError> {
        let none = || VaultError::Server(format!("{} can not be opened", self.place.display()));
        let (repository, key) = (self.repository().ok_or_else(none)?, key.clone());
        look_at(true, &self.place, move || {
            let (header, content) = repository.get(&key)?;
            Ok((content, header.sum, disputed(&repository, &key)))
        })
    }
}

/// The other repositories, each opened when it is needed for the first time.
#[derive(Clone, Default)]
pub struct Elsewhere {
    others: Vec<Other>,
}

impl fmt::Debug for Elsewhere {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let places: Vec<&Path> = self.others.iter().map(|other| other.place.as_path()).collect();
        f.debug_struct("Elsewhere").field("others", &places).finish()
    }
}

impl Elsewhere {
    /// One more, at this place.
    #[must_use]
    pub fn and(
        mut self,
        place: &Path,
        open: impl Fn() -> Result<Repository, VaultError> + Send + Sync + 'static,
    ) -> Elsewhere {
        self.others.push(Other { place: place.to_owned(), open: Arc::new(open), opened: Arc::default() });
        self
    }

    /// A file of the log that passes `check`, from the first repository or another one; and whether it is another one's.
    pub(crate) fn get(
        &self,
        first: &Repository,
        key: &Key,
        check: impl Fn(&[u8]) -> Result<(), VaultError>,
    ) -> Result<(Vec<u8>, bool), VaultError> {
        let whole = first.get(key).and_then(|(_, content)| check(&content).map(|()| content));
        let error = match whole {
            Ok(content) => return Ok((content, false)),
            Err(error) if self.others.is_empty() => return Err(error),
            Err(error) => error,
        };
        let said = said(first, key);
        for other in &self.others {
            let place = other.place.display();
            let found = other.get(key).and_then(|found| check(&found.0).map(|()| found));
            match found {
                Ok((content, sum, false)) if said.is_none() || sum == said => {
                    warn!(%key, %error, from = %place, "a file of the log is taken from another repository");
                    return Ok((content, true));
                }
                Ok(_) => warn!(%key, other = %place, "another repository holds something else under this name"),
                Err(other) => warn!(%key, error = %other, "another repository does not have it either"),
            }
        }
        Err(error)
    }
}

/// The checksum of the content, as an object that is damaged still tells it.
fn said(repository: &Repository, key: &Key) -> Option<String> {
    let bytes = repository.objects().read(key, None).ok()?;
    crate::seal::read_header(key.as_str(), &bytes).ok()?.0.sum
}

/// Did two servers offer different content under this name? Then nobody knows which one is meant.
fn disputed(repository: &Repository, key: &Key) -> bool {
    let Some(system) = key.as_str().split('/').nth(1) else { return true };
    let kept = repository.objects().list(&format!("conflicts/{system}/"));
    kept.map_or(true, |kept| kept.iter().any(|entry| entry.key.last().starts_with(&format!("{}-", key.last()))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::Memory;
    use crate::postgres::look::tests::hang;
    use crate::postgres::manifest::{Manifest, Server};
    use crate::seal::Header;
    use mainstay_model::{Lineage, Lsn, SystemId, Timeline};
    use std::collections::BTreeMap;

    fn repository() -> (Memory, Repository) {
        let memory = Memory::default();
        (memory.clone(), Repository::create(Arc::new(memory), &[]).unwrap())
    }

    fn plan(timeline: u32, reaches: u64) -> Plan {
        let base = Manifest {
            format: 1,
            label: "L".into(),
            system: SystemId(1),
            server: Server::default(),
            start: mainstay_model::Position::default(),
            stop: mainstay_model::Position::default(),
            began: 0,
            ended: 0,
            backup_label: String::new(),
            tablespace_map: String::new(),
            tablespaces: BTreeMap::new(),
            directories: Vec::new(),
            files: Vec::new(),
            packs: Vec::new(),
            extents: Vec::new(),
            base: None,
            corrupt: Vec::new(),
        };
        Plan {
            base,
            target: Target::Latest,
            timeline: Timeline(timeline),
            path: Lineage::default(),
            log: Vec::new(),
            reaches: Lsn(reaches),
            brought: 0,
            hole: None,
            unreadable: Vec::new(),
        }
    }

    /// What becomes of these, each a timeline and how far it reaches; `None`: out of reach.
    fn taken(all: &[Option<(u32, u64)>], target: &Target) -> (Option<usize>, Vec<usize>) {
        let (_, shelf) = repository();
        let look = |at: usize| match all[at] {
            Some((timeline, reaches)) => Ok((shelf.clone(), plan(timeline, reaches))),
            None => Err(VaultError::Impossible("away".into())),
        };
        let (chosen, passed) = choose(all.len(), target, look);
        (chosen.map(|chosen| chosen.at), passed.into_iter().map(|(at, _)| at).collect())
    }

    #[test]
    fn the_first_that_has_the_moment_is_taken_and_of_the_latest_the_one_that_goes_furthest() {
        // The first may have brought late what is older than the moment.
        let time = Target::Time(5);
        assert_eq!(taken(&[Some((1, 5)), Some((1, 9))], &time), (Some(1), vec![0]));
        assert_eq!(taken(&[Some((1, 9)), Some((1, 9))], &time), (Some(0), vec![]));
        let position = Target::Position(Lsn(5));
        assert_eq!(taken(&[Some((1, 5)), Some((1, 9))], &position), (Some(0), vec![]));
        assert_eq!(taken(&[None, Some((1, 9))], &time), (Some(1), vec![0]));
        assert_eq!(taken(&[None, None], &time), (None, vec![0, 1]));
        assert_eq!(taken(&[Some((1, 5)), Some((1, 5))], &Target::Latest), (Some(0), vec![]));
        assert_eq!(taken(&[Some((1, 5)), Some((1, 9))], &Target::Latest), (Some(1), vec![0]));
        assert_eq!(taken(&[Some((1, 9)), Some((2, 5)), None], &Target::Latest), (Some(1), vec![0, 2]));
        assert_eq!(taken(&[Some((1, 5)), Some((1, 9))], &Target::Name("p".into())), (Some(1), vec![0]));
        assert_eq!(taken(&[Some((1, 5)), Some((1, 9))], &Target::Immediate), (Some(0), vec![]));
    }

    #[test]
    fn a_damaged_or_missing_file_comes_from_another_repository_if_it_is_the_same() {
        let key = Key::new("log/1/00000001/000000010000000000000003").unwrap();
        let ((near, first), (_, second), (_, third)) = (repository(), repository(), repository());
        let put = |shelf: &Repository, content: &[u8]| shelf.put(&key, Header::default(), content).unwrap();
        let elsewhere = |others: Vec<Repository>| {
            let each = others.into_iter().enumerate();
            each.fold(Elsewhere::default(), |all, (at, other)| {
                all.and(Path::new(&format!("/{at}")), move || Ok(other.clone()))
            })
        };
        let good = |_: &[u8]| Ok(());
        // Missing in the first, then in both.
        put(&second, b"the log");
        let found = elsewhere(vec![third.clone(), second.clone()]).get(&first, &key, good).unwrap();
        assert_eq!(found, (b"the log".to_vec(), true));
        assert!(elsewhere(vec![third.clone()]).get(&first, &key, good).unwrap_err().is_missing());
        assert!(Elsewhere::default().get(&first, &key, good).unwrap_err().is_missing());
        // Whole: nobody else is asked.
        put(&first, b"the log");
        let nobody = Elsewhere::default().and(Path::new("/0"), || panic!("the first one has it"));
        assert_eq!(nobody.get(&first, &key, good).unwrap(), (b"the log".to_vec(), false));
        // Damaged: only the same content counts.
        near.tamper(&key, |bytes| *bytes.last_mut().unwrap() ^= 1);
        assert_eq!(elsewhere(vec![second.clone()]).get(&first, &key, good).unwrap().0, b"the log");
        put(&third, b"another log");
        let error = elsewhere(vec![third]).get(&first, &key, good).unwrap_err();
        assert!(matches!(error, VaultError::Damaged(_)), "{error}");
        // What is of no use there is of none from elsewhere, and what is disputed neither.
        let bad = |_: &[u8]| Err(VaultError::Damaged("not this segment".into()));
        assert!(elsewhere(vec![second.clone()]).get(&first, &key, bad).is_err());
        let kept = Key::new("conflicts/1/000000010000000000000003-abc").unwrap();
        second.put(&kept, Header::default(), b"x").unwrap();
        assert!(elsewhere(vec![second]).get(&first, &key, good).is_err());
    }

    #[test]
    fn one_that_hangs_or_can_not_be_opened_keeps_no_file_from_another() {
        let key = Key::new("log/1/00000001/000000010000000000000003").unwrap();
        let ((_, first), (_, whole)) = (repository(), repository());
        whole.put(&key, Header::default(), b"the log").unwrap();
        let place = Path::new("/hangs-elsewhere");
        let _end = hang(place);
        let elsewhere = Elsewhere::default()
            .and(place, || panic!("nobody waits there again"))
            .and(Path::new("/away"), || Err(VaultError::Server("away".into())))
            .and(Path::new("/whole"), move || Ok(whole.clone()));
        for _ in 0..2 {
            assert_eq!(elsewhere.get(&first, &key, |_| Ok(())).unwrap(), (b"the log".to_vec(), true));
        }
    }
}
