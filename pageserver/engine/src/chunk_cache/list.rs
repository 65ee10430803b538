//! Lists through the slots of a slab: a slot is put at the end of one, taken from the front, or taken out of the middle, each in constant time.

/// No slot.
pub(super) const NOBODY: u32 = u32::MAX;

/// Whom a slot stands between. One for each slot; a slot stands in one list at a time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Link {
    before: u32,
    after: u32,
}

impl Link {
    /// In no list.
    pub(super) const LOOSE: Link = Link { before: NOBODY, after: NOBODY };
}

/// One list.
#[derive(Debug)]
pub(super) struct List {
    first: u32,
    last: u32,
    length: usize,
}

impl List {
    pub(super) const EMPTY: List = List { first: NOBODY, last: NOBODY, length: 0 };

    /// How many slots are in it.
    pub(super) fn len(&self) -> usize {
        self.length
    }

    /// Puts a loose slot at the end.
    pub(super) fn push(&mut self, links: &mut [Link], slot: u32) {
        links[slot as usize] = Link { before: self.last, after: NOBODY };
        match self.last {
            NOBODY => self.first = slot,
            last => links[last as usize].after = slot,
        }
        self.last = slot;
        self.length += 1;
    }

    /// Takes a slot out that is in this list.
    pub(super) fn remove(&mut self, links: &mut [Link], slot: u32) {
        let Link { before, after } = std::mem::replace(&mut links[slot as usize], Link::LOOSE);
        match before {
            NOBODY => self.first = after,
            before => links[before as usize].after = after,
        }
        match after {
            NOBODY => self.last = before,
            after => links[after as usize].before = before,
        }
        self.length -= 1;
    }

    /// Takes the slot at the front.
    pub(super) fn pop(&mut self, links: &mut [Link]) -> Option<u32> {
        let first = self.first;
        (first != NOBODY).then(|| self.remove(links, first)).map(|()| first)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn slots_stand_in_the_order_in_which_they_came(steps in prop::collection::vec((0u32..8, 0u8..3), 0..100)) {
            let mut links = vec![Link::LOOSE; 8];
            let (mut list, mut model) = (List::EMPTY, VecDeque::new());
            for (slot, step) in steps {
                match (step, model.iter().position(|other| *other == slot)) {
                    (0, None) => {
                        list.push(&mut links, slot);
                        model.push_back(slot);
                    }
                    (1, Some(at)) => {
                        list.remove(&mut links, slot);
                        model.remove(at);
                    }
                    (2, _) => prop_assert_eq!(list.pop(&mut links), model.pop_front()),
                    _ => {}
                }
                prop_assert_eq!(list.len(), model.len());
            }
        }
    }
}
