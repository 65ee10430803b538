//! Objects of earlier owners that somebody here still reads.
//!
//! Once a compaction has replaced such a layer no index names it, and readers of before still do. What lies about ([`crate::sweep`]) is judged by
//! indexes alone, so it asks here, too. Own objects need no such care: nobody sweeps them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

/// Counts by path of who reads it. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct HeldObjects(Arc<Mutex<HashMap<Box<str>, usize>>>);

/// An object that is being read. Dropping it lets it go.
#[derive(Debug)]
pub struct HeldObject {
    path: Box<str>,
    among: HeldObjects,
}

impl HeldObjects {
    /// Notes that an object is read for as long as the answer lives.
    pub fn hold(&self, path: &str) -> HeldObject {
        let path: Box<str> = path.into();
        *self.0.lock().expect("no holder panics").entry(path.clone()).or_default() += 1;
        HeldObject { path, among: self.clone() }
    }

    /// Whether somebody reads it. What no index names and nobody reads is not read by anybody any more.
    pub fn contains(&self, path: &str) -> bool {
        self.0.lock().expect("no holder panics").contains_key(path)
    }
}

impl Drop for HeldObject {
    fn drop(&mut self) {
        let mut counts = self.among.0.lock().expect("no holder panics");
        if let Some(count) = counts.get_mut(&self.path) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.path);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_is_held_until_its_last_reader_lets_it_go() {
        let held = HeldObjects::default();
        let (first, second) = (held.hold("a"), held.hold("a"));
        drop(first);
        assert!(held.contains("a") && !held.contains("b"));
        drop(second);
        assert!(!held.contains("a"));
    }
}
