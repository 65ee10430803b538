//! What is kept of the history of one key when layers are rewritten.
//!
//! LSNs are cut into segments that end at the *points* as of which somebody may read. Of a segment only its last state matters: versions that a later one
//! in it makes irrelevant go, and a long chain of changes becomes one image. Above the last point every version stays. Chains are cut short by images in
//! place of records, so that no read has to redo many.
//!
//! A [`Fold`] takes the versions of one key, oldest first, and says what to write. What lies below the layers being rewritten it asks for only when it
//! needs it.

use bytes::Bytes;
use codec::value::{Change, Value};
use model::key::KeyKind;
use model::{Key, Lsn, PgMajor, SlruKind};

use crate::as_of::ReadError;
use crate::layer_scan::{Stored, StoredValue};

/// What a rewriting keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// As of these, ascending, each key must read as before. Versions between them that none needs go.
    pub points: Vec<Lsn>,
    /// The state as of the first point goes into image layers, instead of the versions up to it. Then the layers at hand are whole stacks.
    pub images: bool,
    /// Versions above the last point are written, too.
    pub above: bool,
    /// At most so many changes follow each other without an image.
    pub chain: usize,
}

/// What to write of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kept {
    /// Its value in an image layer as of the first point.
    Image(Bytes),
    /// A version, encoded.
    Version {
        /// Of which LSN.
        lsn: Lsn,
        /// Whether it needs no older one.
        will_init: bool,
        /// As a delta layer has it.
        value: Bytes,
    },
}

/// What a fold may have to know beyond the versions that it is given.
pub trait Surroundings {
    /// The value of the key just below the layers that are rewritten.
    fn below(&self, key: Key) -> impl Future<Output = Result<Option<Bytes>, ReadError>> + Send;

    /// Whether a read as of a point can get to the key at all.
    fn is_live(&self, key: Key, at: Lsn) -> impl Future<Output = Result<bool, ReadError>> + Send;
}

/// A segment below a point is written as one image rather than as changes when those are more than so many, or have more bytes.
const FEW_CHANGES: usize = 8;
const SMALL_CHANGES: usize = 2_048;

/// The history of one key on its way through.
pub struct Fold<'a> {
    rules: &'a Rules,
    pg: PgMajor,
    key: Key,
    /// Which point the versions at hand come before; the number of points when they come after all.
    segment: usize,
    /// What `chain` builds upon.
    base: Base,
    /// Changes since `base`.
    chain: Vec<Link>,
    /// How many of the chain's last changes belong to this segment and are not written yet.
    pending: usize,
    /// The last change of this segment when it is in `base` already.
    collapsed: Option<Lsn>,
    last: Lsn,
    /// Redo of the chain fails, which only its readers need to know.
    beyond_redo: bool,
}

/// What changes build upon.
enum Base {
    /// It lies below the layers at hand, and was not asked for.
    Below,
    /// This, or nothing.
    Known(Option<Bytes>),
}

impl Base {
    fn page(&self) -> Option<Bytes> {
        match self {
            Base::Below => None,
            Base::Known(page) => page.clone(),
        }
    }
}

/// A change, as a delta layer has it.
struct Link {
    lsn: Lsn,
    will_init: bool,
    value: Bytes,
}

impl<'a> Fold<'a> {
    /// Of a key of which nothing was given yet.
    pub fn new(rules: &'a Rules, pg: PgMajor, key: Key) -> Fold<'a> {
        Fold {
            rules,
            pg,
            key,
            segment: 0,
            base: Base::Below,
            chain: Vec::new(),
            pending: 0,
            collapsed: None,
            last: Lsn::INVALID,
            beyond_redo: false,
        }
    }

    /// Takes the next version. Of one LSN, a change comes before the value that an image layer has.
    pub async fn take(
        &mut self,
        version: Stored,
        around: &impl Surroundings,
        kept: &mut Vec<Kept>,
    ) -> Result<(), ReadError> {
        let segment = self.segment_of(version.lsn);
        if segment == self.rules.points.len() && !self.rules.above {
            return Ok(());
        }
        self.go_to(segment, around, kept).await?;
        match version.value {
            StoredValue::Image(image) => {
                // The state that the changes so far have led to; or what is left of it, where those changes went before.
                let known = match self.value(around).await {
                    Err(ReadError::Redo { .. }) => None,
                    value => value?,
                };
                if known.as_ref() != Some(&image) {
                    self.collapsed = Some(version.lsn);
                } else if self.pending > 0 {
                    self.collapsed = self.chain.last().map(|link| link.lsn);
                }
                self.rebase(Some(image));
            }
            StoredValue::Encoded(_) if version.lsn == self.last => {} // the same change in two layers
            StoredValue::Encoded(value) => {
                self.last = version.lsn;
                if version.will_init {
                    self.base = Base::Known(None);
                    self.chain.clear();
                    self.pending = 0;
                    self.collapsed = None;
                    self.beyond_redo = false;
                }
                self.chain.push(Link { lsn: version.lsn, will_init: version.will_init, value });
                self.pending += 1;
                if self.beyond_redo {
                    self.chain.drain(..self.chain.len() - self.pending);
                } else if self.chain.len() > self.rules.chain && self.may_end_chain() {
                    self.shorten(around).await?;
                }
                if segment == self.rules.points.len() {
                    self.write_pending(kept);
                }
            }
        }
        Ok(())
    }

    /// Takes the value of an image layer that stays where it is: of its segment nothing up to it needs to be written.
    pub async fn build_on(
        &mut self,
        lsn: Lsn,
        image: Bytes,
        around: &impl Surroundings,
        kept: &mut Vec<Kept>,
    ) -> Result<(), ReadError> {
        self.go_to(self.segment_of(lsn), around, kept).await?;
        self.rebase(Some(image));
        self.collapsed = None;
        Ok(())
    }

    /// Ends the history.
    pub async fn finish(mut self, around: &impl Surroundings, kept: &mut Vec<Kept>) -> Result<(), ReadError> {
        self.close_segment(around, kept).await
    }

    fn segment_of(&self, lsn: Lsn) -> usize {
        self.rules.points.partition_point(|point| *point < lsn)
    }

    /// Ends the segment at hand, if another begins.
    async fn go_to(
        &mut self,
        segment: usize,
        around: &impl Surroundings,
        kept: &mut Vec<Kept>,
    ) -> Result<(), ReadError> {
        if segment != self.segment {
            self.close_segment(around, kept).await?;
            self.segment = segment;
        }
        Ok(())
    }

    fn rebase(&mut self, value: Option<Bytes>) {
        self.base = Base::Known(value);
        self.chain.clear();
        self.pending = 0;
    }

    /// A page of the commit log is made whole only where a commit changed it, since its image then carries that commit's time.
    fn may_end_chain(&self) -> bool {
        let is_clog = matches!(self.key.kind(), Some(KeyKind::SlruPage { slru: SlruKind::Clog, .. }));
        let last = self.chain.last().map(|link| Value::decode(&link.value));
        !is_clog || matches!(last, Some(Ok(Value::Change(Change::Committed { .. }))))
    }

    /// The state that all versions so far have led to; `None` when there is none.
    async fn value(&mut self, around: &impl Surroundings) -> Result<Option<Bytes>, ReadError> {
        if matches!(self.base, Base::Below) {
            self.base = Base::Known(around.below(self.key).await?);
        }
        let base = self.base.page();
        if self.chain.is_empty() {
            return Ok(base);
        }
        let changes = self.chain.iter().map(|link| (link.lsn, &link.value[..]));
        let value = redo::reconstruct(base.as_deref(), changes, self.pg, self.key);
        value.map(|value| Some(Bytes::from(value))).map_err(|source| ReadError::Redo {
            key: self.key,
            lsn: self.last,
            source: Box::new(source),
        })
    }

    /// Makes the chain's changes one image in place of the last of them. A page that cannot be redone keeps its chain: it is no worse than before.
    async fn shorten(&mut self, around: &impl Surroundings) -> Result<(), ReadError> {
        let at = self.chain.last().map_or(self.last, |link| link.lsn);
        let whole = match self.value(around).await {
            Err(ReadError::Redo { .. }) => {
                self.beyond_redo = true;
                return Ok(());
            }
            value => value?,
        };
        let Some(whole) = whole else { return Ok(()) };
        self.rebase(Some(whole));
        self.collapsed = Some(at);
        Ok(())
    }

    fn write_pending(&mut self, kept: &mut Vec<Kept>) {
        if let Some(lsn) = self.collapsed.take() {
            let image = self.base.page().unwrap_or_default();
            // What came before is in the image; what came after follows.
            kept.push(Kept::Version { lsn, will_init: true, value: Value::Image(&image).to_bytes().into() });
        }
        let from = self.chain.len() - self.pending;
        for Link { lsn, will_init, value } in &self.chain[from..] {
            kept.push(Kept::Version { lsn: *lsn, will_init: *will_init, value: value.clone() });
        }
        self.pending = 0;
    }

    async fn close_segment(
        &mut self,
        around: &impl Surroundings,
        kept: &mut Vec<Kept>,
    ) -> Result<(), ReadError> {
        let Some(point) = self.rules.points.get(self.segment).copied() else { return Ok(()) };
        if self.segment == 0 && self.rules.images {
            // Of what cannot be seen, not even the changes need be there: a merge before may have dropped what they build upon.
            let is_live = around.is_live(self.key, point).await?;
            let is_known = self.last.is_valid() || matches!(self.base, Base::Known(_));
            let value = if is_live && is_known { self.value(around).await? } else { None };
            // An empty value says that something was dropped, and stays: a read of a sparse key goes on below an image that lacks it, and so does a
            // later rewriting, which takes absence for nothing new.
            kept.extend(value.clone().map(Kept::Image));
            self.rebase(value);
            self.collapsed = None;
            return Ok(());
        }
        if self.pending == 0 && self.collapsed.is_none() {
            return Ok(());
        }
        if !around.is_live(self.key, point).await? {
            // Nobody can see what happened to it here; should it come to life again, then with a version that needs none before.
            self.pending = 0;
            self.collapsed = None;
            return Ok(());
        }
        let bytes: usize = self.chain.iter().rev().take(self.pending).map(|link| link.value.len()).sum();
        let is_worth_it = self.pending > FEW_CHANGES || (self.pending > 1 && bytes > SMALL_CHANGES);
        if is_worth_it && !self.beyond_redo && self.may_end_chain() {
            self.shorten(around).await?;
        }
        self.write_pending(kept);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use codec::page::ZERO_PAGE;
    use model::PgTimestamp;
    use proptest::prelude::*;

    use super::*;

    const PG: PgMajor = PgMajor::V17;

    /// A page of the commit log has changes that are easily made, and of which each can be told from all others.
    fn key() -> Key {
        Key::slru_page(SlruKind::Clog, 0, 0)
    }

    struct Below(Option<Bytes>);

    impl Surroundings for Below {
        async fn below(&self, _: Key) -> Result<Option<Bytes>, ReadError> {
            Ok(self.0.clone())
        }

        async fn is_live(&self, _: Key, _: Lsn) -> Result<bool, ReadError> {
            Ok(true)
        }
    }

    fn committed(lsn: u64, xid: u32) -> Stored {
        let change = Change::Committed { xids: vec![xid], time: PgTimestamp(lsn as i64) };
        let value = StoredValue::Encoded(Value::Change(change).to_bytes().into());
        Stored { key: key(), lsn: Lsn(lsn), will_init: false, value }
    }

    fn zeroed(lsn: u64) -> Stored {
        let value = StoredValue::Encoded(Value::Change(Change::ZeroPage).to_bytes().into());
        Stored { key: key(), lsn: Lsn(lsn), will_init: true, value }
    }

    fn state(base: Option<&Bytes>, versions: &[(Lsn, bool, Bytes)], at: Lsn) -> Option<Vec<u8>> {
        let seen = &versions[..versions.partition_point(|(lsn, ..)| *lsn <= at)];
        let from = seen.iter().rposition(|(_, will_init, _)| *will_init);
        let base = base.filter(|_| from.is_none());
        if seen.is_empty() {
            return base.map(|base| base.to_vec());
        }
        let changes = seen[from.unwrap_or(0)..].iter().map(|(lsn, _, value)| (*lsn, &value[..]));
        Some(redo::reconstruct(base.map(|base| &base[..]), changes, PG, key()).unwrap())
    }

    fn fold(rules: &Rules, below: &Below, versions: &[Stored]) -> Vec<Kept> {
        fold_upon(rules, below, versions, &BTreeSet::new())
    }

    /// The same where image layers of some LSNs stay.
    fn fold_upon(rules: &Rules, below: &Below, versions: &[Stored], stay: &BTreeSet<Lsn>) -> Vec<Kept> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let mut kept = Vec::new();
            let mut fold = Fold::new(rules, PG, key());
            for version in versions {
                match &version.value {
                    StoredValue::Image(image) if stay.contains(&version.lsn) => {
                        fold.build_on(version.lsn, image.clone(), below, &mut kept).await.unwrap();
                    }
                    _ => fold.take(version.clone(), below, &mut kept).await.unwrap(),
                }
            }
            fold.finish(below, &mut kept).await.unwrap();
            kept
        })
    }

    #[test]
    fn what_was_dropped_is_said_to_be_gone_in_an_image_too() {
        let size = Key::rel_size(model::RelTag { spc: 1663, db: 5, rel: 16_384, fork: model::Fork::Main });
        let version = |lsn, value: &[u8]| {
            let value = StoredValue::Encoded(Value::Image(value).to_bytes().into());
            Stored { key: size, lsn: Lsn(lsn), will_init: true, value }
        };
        let rules = Rules { points: vec![Lsn(24)], images: true, above: true, chain: 8 };
        let kept = tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
            let (mut kept, mut fold) = (Vec::new(), Fold::new(&rules, PG, size));
            for version in [version(8, &[7, 0, 0, 0]), version(16, &[])] {
                fold.take(version, &Below(None), &mut kept).await.unwrap();
            }
            fold.finish(&Below(None), &mut kept).await.unwrap();
            kept
        });
        assert_eq!(kept, [Kept::Image(Bytes::new())]);
    }

    /// Whose keys can be seen from an LSN on.
    struct SeenFrom(Lsn);

    impl Surroundings for SeenFrom {
        async fn below(&self, _: Key) -> Result<Option<Bytes>, ReadError> {
            Ok(None)
        }

        async fn is_live(&self, _: Key, at: Lsn) -> Result<bool, ReadError> {
            Ok(at >= self.0)
        }
    }

    #[test]
    fn of_what_cannot_be_seen_changes_without_a_base_are_no_failure_where_images_are_made() {
        let fold = |first| {
            let rules = Rules { points: vec![Lsn(first)], images: true, above: true, chain: 8 };
            tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
                let (mut kept, around) = (Vec::new(), SeenFrom(Lsn(50)));
                let mut fold = Fold::new(&rules, PG, key());
                // What these build upon was dropped by a merge, since nobody could see it.
                for version in [committed(24, 3), zeroed(60), committed(64, 5)] {
                    fold.take(version, &around, &mut kept).await?;
                }
                fold.finish(&around, &mut kept).await?;
                Ok::<_, ReadError>(kept)
            })
        };
        let (image, later) = as_read(&fold(40).unwrap());
        assert_eq!((image, later.iter().map(|(lsn, ..)| lsn.0).collect()), (None, vec![60, 64]));
        assert!(matches!(fold(56), Err(ReadError::Redo { .. })), "what can be seen must be there");
    }

    fn as_read(kept: &[Kept]) -> (Option<Bytes>, Vec<(Lsn, bool, Bytes)>) {
        let mut image = None;
        let mut versions = Vec::new();
        for kept in kept {
            match kept.clone() {
                Kept::Image(value) => image = Some(value),
                Kept::Version { lsn, will_init, value } => versions.push((lsn, will_init, value)),
            }
        }
        (image, versions)
    }

    #[test]
    fn nothing_is_lost_above_the_points_and_a_long_chain_gets_an_image() {
        let versions: Vec<Stored> = (1..=100).map(|n| committed(n * 8, n as u32)).collect();
        let rules = Rules { points: vec![], images: false, above: true, chain: 32 };
        let (_, kept) = as_read(&fold(&rules, &Below(Some(Bytes::from_static(&ZERO_PAGE))), &versions));
        assert_eq!(kept.len(), 100);
        let images: Vec<u64> = kept.iter().filter(|(_, init, _)| *init).map(|(lsn, ..)| lsn.0 / 8).collect();
        assert_eq!(images, [33, 66, 99]);
    }

    #[test]
    fn below_the_cutoff_one_state_is_left_for_each_point() {
        let versions: Vec<Stored> = (1..=100).map(|n| committed(n * 8, n as u32)).collect();
        let rules =
            Rules { points: vec![Lsn(160), Lsn(400), Lsn(410)], images: true, above: true, chain: 32 };
        let kept = fold(&rules, &Below(Some(Bytes::from_static(&ZERO_PAGE))), &versions);
        assert!(matches!(kept[0], Kept::Image(_)));
        let (_, later) = as_read(&kept);
        let lsns: Vec<u64> = later.iter().map(|(lsn, ..)| lsn.0).take(4).collect();
        assert_eq!(lsns, [400, 408, 416, 424]);
        assert_eq!(later.len(), 1 + 1 + 49);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Commit(u32),
        Zero,
        Image,
        /// An image layer that stays.
        Stays,
    }

    fn any_step() -> impl Strategy<Value = (u64, Step)> {
        let step = prop_oneof![
            12 => (0u32..500).prop_map(Step::Commit),
            1 => Just(Step::Zero),
            1 => Just(Step::Image),
            1 => Just(Step::Stays),
        ];
        (1u64..4, step)
    }

    proptest! {
        #[test]
        fn every_point_and_everything_above_them_reads_as_before(
            steps in prop::collection::vec(any_step(), 0..120), points in prop::collection::btree_set(0u64..2_000, 0..5),
            images: bool, chain in 1usize..40, has_base: bool,
        ) {
            // Image layers are made of whole stacks: nothing lies below.
            let images = images && !points.is_empty();
            let base = (has_base && !images).then(|| Bytes::from_static(&ZERO_PAGE));
            let mut lsn = 0;
            let mut stored: Vec<Stored> = Vec::new();
            let mut truth: Vec<(Lsn, bool, Bytes)> = Vec::new();
            let mut stay: BTreeMap<Lsn, Bytes> = BTreeMap::new();
            let first = points.first().copied().unwrap_or(0);
            for (gap, step) in steps {
                // Without a base a page begins with a version that needs none.
                let step = if base.is_none() && truth.is_empty() { Step::Zero } else { step };
                lsn += gap * 8;
                let version = match step {
                    Step::Commit(xid) => committed(lsn, xid),
                    Step::Zero => zeroed(lsn),
                    Step::Image | Step::Stays => {
                        // An image layer between two changes: no version of its own.
                        let Some(value) = state(base.as_ref(), &truth, Lsn(lsn)) else { continue };
                        let value = Bytes::from(value);
                        // What new images take over does not stay.
                        if matches!(step, Step::Stays) && !(images && lsn <= first) {
                            stay.insert(Lsn(lsn), value.clone());
                        }
                        let value = StoredValue::Image(value);
                        stored.push(Stored { key: key(), lsn: Lsn(lsn), will_init: true, value });
                        continue;
                    }
                };
                if let StoredValue::Encoded(value) = &version.value {
                    truth.push((version.lsn, version.will_init, value.clone()));
                }
                stored.push(version);
            }
            let points: Vec<Lsn> = points.into_iter().map(Lsn).collect();
            let rules = Rules { points: points.clone(), images, above: true, chain };
            let names = stay.keys().copied().collect();
            let (image, kept) = as_read(&fold_upon(&rules, &Below(base.clone()), &stored, &names));
            prop_assert!(kept.is_sorted_by_key(|(lsn, ..)| *lsn));
            let new_base = image.clone().or(base.clone());
            let last = points.last().copied().unwrap_or(Lsn(0));
            let asked = points.iter().copied().chain((last.0..lsn + 9).step_by(8).map(Lsn));
            for at in asked {
                // A read ends at the newest image layer, and takes nothing from below it.
                let (upon, above) = match stay.range(..=at).next_back() {
                    Some((lsn, image)) => (Some(image), *lsn),
                    None => (new_base.as_ref(), Lsn(0)),
                };
                let above = &kept[kept.partition_point(|(lsn, ..)| *lsn <= above)..];
                let (before, after) = (state(base.as_ref(), &truth, at), state(upon, above, at));
                prop_assert_eq!(before.map(|page| page[..8192].to_vec()), after.map(|page| page[..8192].to_vec()), "at {}", at);
            }
        }
    }
}
