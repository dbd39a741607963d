//! Objects in memory, with faults on demand: for tests of everything that stands above a store.

use super::{Committed, Entry, Key, ObjectError, Objects, Removal, Upload};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What goes wrong from now on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    #[default]
    None,
    /// Nothing can be reached.
    Unreachable,
    /// Reads work; commits find no room.
    Full,
    /// The next so many writes or commits succeed, then the store is out of reach for ever: a kill at that step.
    CutAfter(u32),
}

#[derive(Debug, Default)]
struct Inner {
    objects: BTreeMap<Key, Vec<u8>>,
    fault: Fault,
    /// What can not be removed.
    kept: BTreeSet<Key>,
}

/// Objects in memory; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    inner: Arc<Mutex<Inner>>,
}

impl Memory {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
    /// From now on this goes wrong.
    pub fn set_fault(&self, fault: Fault) {
        self.lock().fault = fault;
    }
    /// From now on these can not be removed, as by a rule of the store.
    pub fn keep(&self, kept: impl IntoIterator<Item = Key>) {
        self.lock().kept = kept.into_iter().collect();
    }
    /// Changes an object's bytes behind everybody's back.
    pub fn tamper(&self, key: &Key, change: impl FnOnce(&mut Vec<u8>)) {
        if let Some(bytes) = self.lock().objects.get_mut(key) {
            change(bytes);
        }
    }
    fn reached(&self) -> Result<MutexGuard<'_, Inner>, ObjectError> {
        let inner = self.lock();
        match inner.fault {
            Fault::Unreachable | Fault::CutAfter(0) => Err(ObjectError::Unreachable("a fault of this test".into())),
            _ => Ok(inner),
        }
    }
    fn writing(&self) -> Result<MutexGuard<'_, Inner>, ObjectError> {
        let mut inner = self.reached()?;
        match &mut inner.fault {
            Fault::Full => return Err(ObjectError::Full("a fault of this test".into())),
            Fault::CutAfter(left) => *left -= 1,
            _ => {}
        }
        Ok(inner)
    }
}

struct MemoryUpload {
    store: Memory,
    key: Key,
    bytes: Vec<u8>,
}

impl Upload for MemoryUpload {
    fn write(&mut self, bytes: &[u8]) -> Result<(), ObjectError> {
        drop(self.store.writing()?);
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }
    fn commit(self: Box<Self>) -> Result<Committed, ObjectError> {
        let mut inner = self.store.writing()?;
        if inner.objects.contains_key(&self.key) {
            return Ok(Committed::Exists);
        }
        inner.objects.insert(self.key.clone(), self.bytes);
        Ok(Committed::Created)
    }
}

impl Objects for Memory {
    fn create(&self, key: &Key) -> Result<Box<dyn Upload>, ObjectError> {
        drop(self.reached()?);
        Ok(Box::new(MemoryUpload { store: self.clone(), key: key.clone(), bytes: Vec::new() }))
    }
    fn read(&self, key: &Key, range: Option<Range<u64>>) -> Result<Vec<u8>, ObjectError> {
        let inner = self.reached()?;
        let bytes = inner.objects.get(key).ok_or_else(|| ObjectError::Missing(key.to_string()))?;
        let Some(range) = range else { return Ok(bytes.clone()) };
        let at = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        let part = bytes.get(at(range.start)..at(range.end));
        part.map(<[u8]>::to_vec).ok_or_else(|| ObjectError::Refused(format!("{key} is shorter than {}", range.end)))
    }
    fn size(&self, key: &Key) -> Result<u64, ObjectError> {
        let inner = self.reached()?;
        inner.objects.get(key).map(|b| b.len() as u64).ok_or_else(|| ObjectError::Missing(key.to_string()))
    }
    fn list(&self, prefix: &str) -> Result<Vec<Entry>, ObjectError> {
        let inner = self.reached()?;
        let all = inner.objects.iter().filter(|(key, _)| key.as_str().starts_with(prefix));
        Ok(all.map(|(key, bytes)| Entry { key: key.clone(), size: bytes.len() as u64 }).collect())
    }
    fn delete(&self, key: &Key) -> Result<Removal, ObjectError> {
        let mut inner = self.writing()?;
        if inner.kept.contains(key) {
            return Ok(Removal::Kept);
        }
        inner.objects.remove(key);
        Ok(Removal::Gone)
    }
    fn place(&self) -> String {
        "memory".into()
    }
}
