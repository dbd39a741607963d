//! Numbered places. An id names a place *and* who had it, so that a late word for somebody who left reaches nobody.

/// A place and its generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Id {
    pub(crate) index: u32,
    generation: u32,
}

#[derive(Debug)]
struct Place<T> {
    generation: u32,
    used: bool,
    held: Option<Box<T>>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Slab<T> {
    places: Vec<Place<T>>,
    free: Vec<u32>,
}

impl<T> Slab<T> {
    pub(crate) fn new() -> Self {
        Self { places: Vec::new(), free: Vec::new() }
    }

    /// Reserves a place; [`Slab::put`] fills it.
    pub(crate) fn reserve(&mut self) -> Id {
        let index = self.free.pop().unwrap_or_else(|| {
            self.places.push(Place { generation: 0, used: false, held: None });
            u32::try_from(self.places.len() - 1).unwrap_or(u32::MAX)
        });
        let mut generation = 0;
        if let Some(place) = self.places.get_mut(index as usize) {
            place.generation = (place.generation + 1) & 0x00ff_ffff;
            place.used = true;
            generation = place.generation;
        }
        Id { index, generation }
    }

    fn place(&mut self, id: Id) -> Option<&mut Place<T>> {
        self.places.get_mut(id.index as usize).filter(|place| place.used && place.generation == id.generation)
    }

    /// Takes it out to work on it; its place stays reserved.
    pub(crate) fn take(&mut self, id: Id) -> Option<Box<T>> {
        self.place(id)?.held.take()
    }

    pub(crate) fn put(&mut self, id: Id, item: Box<T>) {
        if let Some(place) = self.place(id) {
            place.held = Some(item);
        }
    }

    /// Gives the place up.
    pub(crate) fn free(&mut self, id: Id) {
        if let Some(place) = self.place(id) {
            (place.used, place.held) = (false, None);
            self.free.push(id.index);
        }
    }

    pub(crate) fn get(&mut self, id: Id) -> Option<&mut T> {
        self.place(id)?.held.as_deref_mut()
    }

    /// Who is at this place now.
    pub(crate) fn at(&self, index: u32) -> Option<Id> {
        let place = self.places.get(index as usize).filter(|place| place.used)?;
        Some(Id { index, generation: place.generation })
    }

    pub(crate) fn ids(&self) -> Vec<Id> {
        (0..u32::try_from(self.places.len()).unwrap_or(u32::MAX)).filter_map(|index| self.at(index)).collect()
    }

    pub(crate) fn items(&self) -> impl Iterator<Item = &T> {
        self.places.iter().filter_map(|place| place.held.as_deref())
    }

    pub(crate) fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }
}

/// Whose descriptor an event is of, as a number that the kernel keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Token {
    Wake,
    Listener(u32),
    Client(Id),
    Server(Id),
    Cancel(Id),
}

impl Token {
    pub(crate) fn number(self) -> u64 {
        let (kind, id) = match self {
            Token::Wake => (0, Id { index: 0, generation: 0 }),
            Token::Listener(index) => (1, Id { index, generation: 0 }),
            Token::Client(id) => (2, id),
            Token::Server(id) => (3, id),
            Token::Cancel(id) => (4, id),
        };
        kind << 56 | u64::from(id.generation) << 32 | u64::from(id.index)
    }

    pub(crate) fn of(number: u64) -> Self {
        let index = (number & 0xffff_ffff) as u32;
        let id = Id { index, generation: (number >> 32 & 0x00ff_ffff) as u32 };
        match number >> 56 {
            1 => Token::Listener(index),
            2 => Token::Client(id),
            3 => Token::Server(id),
            4 => Token::Cancel(id),
            _ => Token::Wake,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_word_reaches_nobody() {
        let mut slab = Slab::new();
        let first = slab.reserve();
        slab.put(first, Box::new(1));
        assert_eq!(Token::of(Token::Server(first).number()), Token::Server(first));
        slab.free(first);
        let second = slab.reserve();
        slab.put(second, Box::new(2));
        assert_eq!(first.index, second.index);
        assert!(slab.get(first).is_none() && slab.take(first).is_none());
        slab.free(first);
        assert_eq!((slab.get(second).copied(), slab.len()), (Some(2), 1));
    }
}
