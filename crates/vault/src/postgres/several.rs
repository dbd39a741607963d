//! Several repositories of one cluster: from which one a copy comes, and what is taken from another one where an object is damaged or gone
//! (docs/adr/0043).
//!
//! A plan comes from one repository. Only single files of the log are taken from another: each says itself what it is, and where the damaged one
//! still tells its checksum, the other one must have the same.

use crate::objects::Key;
use crate::postgres::restore::{Plan, Target};
use crate::repository::{Repository, VaultError};
use std::fmt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tracing::warn;

/// A look at one of several repositories may take so long: one that hangs (a mount whose server is gone) is then passed over.
pub const LOOK_MOST: Duration = Duration::from_secs(120);
/// So many looks may hang in one process: each keeps a thread until its repository answers.
const HANGING_MAX: usize = 16;
static HANGING: AtomicUsize = AtomicUsize::new(0);

/// A look at the repository there, in a thread of its own, which is given up after `most`.
///
/// # Errors
/// The look's own, and when it does not end in time.
pub fn within<T: Send + 'static>(
    most: Duration,
    place: &Path,
    look: impl FnOnce() -> Result<T, VaultError> + Send + 'static,
) -> Result<T, VaultError> {
    if HANGING.load(Ordering::Relaxed) >= HANGING_MAX {
        let says = format!("{}: {HANGING_MAX} earlier looks at repositories have not ended", place.display());
        return Err(VaultError::Server(says));
    }
    let (tell, told) = sync_channel(1);
    HANGING.fetch_add(1, Ordering::Relaxed);
    let work = move || {
        let result = look();
        HANGING.fetch_sub(1, Ordering::Relaxed);
        let _ = tell.send(result);
    };
    let started = std::thread::Builder::new().name("look".to_owned()).spawn(work);
    started.map_err(|error| VaultError::Server(format!("no thread: {error}")))?;
    told.recv_timeout(most).unwrap_or_else(|end| {
        Err(VaultError::Server(match end {
            RecvTimeoutError::Timeout => format!("{} has not answered for {} s", place.display(), most.as_secs()),
            RecvTimeoutError::Disconnected => {
                format!("the look at {} ended without a word, which is a bug", place.display())
            }
        }))
    })
}

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

/// What opens the other repositories, those that can be reached.
type Open = dyn Fn() -> Vec<Repository> + Send + Sync;

/// The other repositories, opened when one is needed for the first time.
#[derive(Clone, Default)]
pub struct Elsewhere {
    open: Option<Arc<Open>>,
    opened: Arc<OnceLock<Vec<Repository>>>,
}

impl fmt::Debug for Elsewhere {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Elsewhere").field("any", &self.open.is_some()).finish_non_exhaustive()
    }
}

impl Elsewhere {
    /// These.
    pub fn of(open: impl Fn() -> Vec<Repository> + Send + Sync + 'static) -> Elsewhere {
        Elsewhere { open: Some(Arc::new(open)), opened: Arc::default() }
    }

    /// A file of the log that passes `check`, from the first repository or another one; and whether it is another one's.
    pub(crate) fn get(
        &self,
        first: &Repository,
        key: &Key,
        check: impl Fn(&[u8]) -> Result<(), VaultError>,
    ) -> Result<(Vec<u8>, bool), VaultError> {
        let whole = |repository: &Repository| {
            let (header, content) = repository.get(key)?;
            check(&content).map(|()| (header, content))
        };
        let error = match whole(first) {
            Ok((_, content)) => return Ok((content, false)),
            Err(error) => error,
        };
        let Some(open) = &self.open else { return Err(error) };
        let said = said(first, key);
        for other in self.opened.get_or_init(|| open()) {
            let found = whole(other);
            let same = |sum: &Option<String>| said.is_none() || *sum == said;
            match found {
                Ok((header, content)) if same(&header.sum) && !disputed(other, key) => {
                    warn!(%key, %error, from = %other.place(), "a file of the log is taken from another repository");
                    return Ok((content, true));
                }
                Ok(_) => warn!(%key, other = %other.place(), "another repository holds something else under this name"),
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
    fn one_that_hangs_is_passed_over() {
        let place = Path::new("/gone");
        let (end, ends) = std::sync::mpsc::channel::<()>();
        let hangs = within(Duration::from_millis(50), place, move || {
            let _ = ends.recv();
            Ok(())
        });
        assert_eq!(
            hangs.unwrap_err().to_string(),
            VaultError::Server("/gone has not answered for 0 s".into()).to_string()
        );
        drop(end);
        assert_eq!(within(LOOK_MOST, place, || Ok(7)).unwrap(), 7);
        assert!(within(LOOK_MOST, place, || Err::<(), _>(VaultError::Impossible("no".into()))).is_err());
        assert!(within(LOOK_MOST, place, || -> Result<(), VaultError> { panic!("on purpose") }).is_err());
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
        let elsewhere = |others: Vec<Repository>| Elsewhere::of(move || others.clone());
        let good = |_: &[u8]| Ok(());
        // Missing in the first, then in both.
        put(&second, b"the log");
        let found = elsewhere(vec![third.clone(), second.clone()]).get(&first, &key, good).unwrap();
        assert_eq!(found, (b"the log".to_vec(), true));
        assert!(elsewhere(vec![third.clone()]).get(&first, &key, good).unwrap_err().is_missing());
        assert!(Elsewhere::default().get(&first, &key, good).unwrap_err().is_missing());
        // Whole: nobody else is asked.
        put(&first, b"the log");
        let nobody = Elsewhere::of(|| panic!("the first one has it"));
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
}
