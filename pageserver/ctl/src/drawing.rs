//! A picture of layers: one lane a timeline, WAL to the right, keys from top to bottom. Pure: from a description to the text of an SVG.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use engine::compact::Debt;
use model::{
    Key, KeyRange, LayerName, Lsn, LsnRange, PgTimestamp, RelTag, TimelineId, key::KeyKind,
    rel::GLOBAL_TABLESPACE,
};

use crate::key_text;

/// A timeline to draw.
#[derive(Clone, Debug)]
pub struct Lane {
    /// Which.
    pub timeline: TimelineId,
    /// What to say of it beside its name: the major version, that it is archived.
    pub remarks: Vec<String>,
    /// Parent and branch point.
    pub ancestor: Option<(TimelineId, Lsn)>,
    /// Where its history begins when it has no parent.
    pub began: Lsn,
    /// Where its history ends, as far as is known.
    pub end: Lsn,
    /// It can be read from here on; what lies before is an import's.
    pub readable_from: Option<Lsn>,
    /// Its layers.
    pub layers: Vec<LayerBox>,
    /// WAL that is not in layers.
    pub wal: Vec<LsnRange>,
    /// Places worth a mark, and what they are: names, restores.
    pub marks: Vec<(Lsn, String)>,
    /// Leased places, and until when.
    pub leases: Vec<(Lsn, String)>,
    /// From here on everything can be read.
    pub cutoff: Option<Lsn>,
    /// Below it, only these.
    pub points: Vec<Lsn>,
    /// Stretches of keys whose layers are rewritten together.
    pub shelves: Vec<KeyRange>,
    /// What compaction has still to do, if that is known.
    pub debt: Option<Debt>,
}

/// A layer to draw.
#[derive(Clone, Debug)]
pub struct LayerBox {
    /// What it covers.
    pub name: LayerName,
    /// Bytes of its file.
    pub file_size: u64,
    /// Oldest and newest commit in it.
    pub commits: Option<(PgTimestamp, PgTimestamp)>,
    /// Only what can be read below the cutoff is left in it.
    pub is_trimmed: bool,
    /// How often it was read lately, if a heat map says so.
    pub heat: Option<u32>,
}

const WIDTH: f64 = 1280.0;
const LEFT: f64 = 148.0;
const RIGHT: f64 = 44.0;
const TOP: f64 = 150.0;
const LANE_HEADER: f64 = 46.0;
const LANE_GAP: f64 = 34.0;
const BOTTOM: f64 = 40.0;
/// How wide an image is drawn, to the left of the single LSN that it covers, so that later changes do not hide it.
const IMAGE_WIDTH: f64 = 9.0;

const STYLE: &str = "\
text{font:12px system-ui,'Segoe UI',Helvetica,Arial,sans-serif;fill:#1f2933}\
.ground{fill:#fbfaf7}.lane{fill:#fff;fill-opacity:.6;stroke:#d9d4c7}.grid{stroke:#e6e1d6;stroke-width:1}\
.title{font-size:22px;font-weight:600}.dim{fill:#7b8794}.small{font-size:10.5px}.id{font-weight:600;font-size:13px}\
.mono{font-family:ui-monospace,Menlo,Consolas,monospace}\
.image{fill:#0f766e;stroke:#0b4f4a;stroke-width:.4}.l0{fill:#f2b35d;stroke:#c47f1f;stroke-width:.8}.l1{fill:#5b8def;stroke:#3464c4;stroke-width:.8}\
.wal{fill:#b4533c}.spine{stroke:#52606d;stroke-width:2}.end{fill:#52606d}\
.branch{stroke:#9b3fb5;stroke-width:1.6;fill:none;stroke-dasharray:5 3}.knot{fill:#fbfaf7;stroke:#9b3fb5;stroke-width:2}\
.inherited{fill:#9b3fb5;fill-opacity:.06}.mark{fill:#d64545}.band{fill:#8d99a6}.hatch{stroke:#7b8794;stroke-width:1;stroke-opacity:.5}\
.past{fill:#7b8794;fill-opacity:.13}.cutoff{stroke:#d64545;fill:#d64545;stroke-width:1.8;stroke-dasharray:3 2}.point{stroke:#9b3fb5;fill:#9b3fb5;stroke-width:1;stroke-opacity:.6}\
.shelf{fill:#52606d}.trimmed{fill:#a9c1f5;stroke:#3464c4;stroke-width:.8;stroke-dasharray:3 2}.heat{fill:#e0392b}.lease{fill:#c47f1f}\
.layer:hover{stroke-width:2.4}\
@media (prefers-color-scheme:dark){text{fill:#e4e7eb}.ground{fill:#14171c}.lane{fill:#1b2027;stroke:#343c47}.grid{stroke:#2a313b}\
.dim{fill:#9aa5b1}.spine{stroke:#cbd2d9}.end{fill:#cbd2d9}.knot{fill:#14171c}.label{fill:#14171c}}";

/// The whole picture. Timelines come in the order of their branching, whatever the order in `lanes`.
pub fn draw(lanes: &[Lane]) -> String {
    let lanes = in_tree_order(lanes);
    let keys = KeyAxis::of(&lanes);
    let lsns = LsnAxis::of(&lanes);
    let height_of_lane = keys.height();
    let lane_top =
        |place: usize| TOP + LANE_HEADER + place as f64 * (height_of_lane + LANE_HEADER + LANE_GAP);
    let bottom = lane_top(lanes.len()) - LANE_HEADER - LANE_GAP / 2.0;
    let height = bottom + BOTTOM;

    let mut svg = String::new();
    let out = &mut svg;
    put(
        out,
        format_args!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height:.0}\" viewBox=\"0 0 {WIDTH} {height:.0}\" role=\"img\">"
        ),
    );
    put(
        out,
        format_args!("<title>Layers of {}</title><style>{STYLE}</style>", plural(lanes.len(), "timeline")),
    );
    put(
        out,
        format_args!(
            "<defs><pattern id=\"import\" width=\"7\" height=\"7\" patternUnits=\"userSpaceOnUse\" patternTransform=\"rotate(45)\">\
         <line class=\"hatch\" x1=\"0\" y1=\"0\" x2=\"0\" y2=\"7\"/></pattern></defs>"
        ),
    );
    put(out, format_args!("<rect class=\"ground\" width=\"100%\" height=\"100%\"/>"));
    draw_heading(out, &lanes, &lsns);
    draw_grid(out, &lsns, TOP, bottom);

    let places: BTreeMap<TimelineId, usize> =
        lanes.iter().enumerate().map(|(place, lane)| (lane.timeline, place)).collect();
    for (place, lane) in lanes.iter().enumerate() {
        draw_lane(out, lane, lane_top(place), &keys, &lsns);
    }
    // Branches last: they cross the lanes between parent and child.
    for (place, lane) in lanes.iter().enumerate() {
        if let Some((ancestor, at)) = lane.ancestor
            && let Some(parent) = places.get(&ancestor)
        {
            let x = lsns.x(at);
            let (from, to) = (lane_top(*parent) + height_of_lane, lane_top(place));
            put(
                out,
                format_args!(
                    "<g><title>{} branches off {ancestor} at {at}</title><path class=\"branch\" d=\"M{x:.1} {from:.1}V{to:.1}\"/>\
                 <circle class=\"knot\" cx=\"{x:.1}\" cy=\"{from:.1}\" r=\"4.5\"/><circle class=\"knot\" cx=\"{x:.1}\" cy=\"{to:.1}\" r=\"3\"/></g>",
                    lane.timeline
                ),
            );
        }
    }
    put(out, format_args!("</svg>"));
    svg
}

fn put(out: &mut String, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text).expect("writing to a string cannot fail");
    out.push('\n');
}

fn plural(count: usize, noun: &str) -> String {
    if count == 1 { format!("1 {noun}") } else { format!("{count} {noun}s") }
}

fn escaped(text: &str) -> String {
    text.chars()
        .filter(|c| !c.is_control())
        .map(|c| match c {
            '&' => "&amp;".to_owned(),
            '<' => "&lt;".to_owned(),
            '>' => "&gt;".to_owned(),
            '"' => "&quot;".to_owned(),
            c => c.to_string(),
        })
        .collect()
}

/// Parents before children, siblings by branch point; timelines whose parent is not drawn are roots.
fn in_tree_order(lanes: &[Lane]) -> Vec<&Lane> {
    let known: BTreeSet<TimelineId> = lanes.iter().map(|lane| lane.timeline).collect();
    let mut children = BTreeMap::<Option<TimelineId>, Vec<&Lane>>::new();
    for lane in lanes {
        let parent = lane.ancestor.map(|(id, _)| id).filter(|id| known.contains(id) && *id != lane.timeline);
        children.entry(parent).or_default().push(lane);
    }
    for siblings in children.values_mut() {
        // The youngest branch directly below its parent: lines cross fewer lanes.
        siblings.sort_by_key(|lane| (lane.ancestor.map(|(_, at)| at), lane.began, lane.timeline));
    }
    let mut ordered = Vec::new();
    let mut waiting: Vec<&Lane> = children.remove(&None).unwrap_or_default();
    while let Some(lane) = waiting.pop() {
        ordered.push(lane);
        waiting.extend(children.remove(&Some(lane.timeline)).unwrap_or_default());
    }
    // What is left is its own ancestor in a circle; nonsense is drawn, too.
    ordered.extend(children.into_values().flatten());
    ordered
}

/// WAL positions to pixels.
struct LsnAxis {
    start: Lsn,
    end: Lsn,
}

impl LsnAxis {
    fn of(lanes: &[&Lane]) -> Self {
        let ends = lanes.iter().flat_map(|lane| {
            let layers = lane.layers.iter().flat_map(|layer| {
                let lsns = layer.name.lsns();
                [lsns.start, lsns.end]
            });
            let wal = lane.wal.iter().flat_map(|wal| [wal.start, wal.end]);
            let origin = lane.ancestor.map_or(lane.began, |(_, at)| at);
            layers.chain(wal).chain([origin, lane.end]).filter(|lsn| lsn.is_valid())
        });
        let (mut start, mut end) = (Lsn::MAX, Lsn::INVALID);
        for lsn in ends {
            start = start.min(lsn);
            end = end.max(lsn);
        }
        if start > end {
            (start, end) = (Lsn(0), Lsn(1));
        }
        let room = (end.since(start) / 40).max(64);
        LsnAxis { start: Lsn(start.0.saturating_sub(room)), end: Lsn(end.0.saturating_add(room)) }
    }

    fn x(&self, lsn: Lsn) -> f64 {
        let share = lsn.since(self.start) as f64 / self.end.since(self.start).max(1) as f64;
        LEFT + share.min(1.0) * (WIDTH - LEFT - RIGHT)
    }

    /// Round positions, at most nine, and their distance.
    fn ticks(&self) -> (Vec<Lsn>, u64) {
        let step = (self.end.since(self.start) / 9).max(1).next_power_of_two();
        let first = self.start.0.checked_next_multiple_of(step).unwrap_or(self.start.0);
        let ticks = (0..12)
            .map_while(|n| first.checked_add(step.checked_mul(n)?))
            .take_while(|lsn| *lsn <= self.end.0);
        (ticks.map(Lsn).collect(), step)
    }
}

/// Keys to pixels: every distinct border of a layer gets its place, and the room between two borders grows with the logarithm of the
/// blocks between them.
struct KeyAxis {
    /// Ascending, [`Key::MIN`] first, [`Key::MAX`] last.
    borders: Vec<Key>,
    /// Share of the lane above each border, 0 to 1.
    shares: Vec<f64>,
}

impl KeyAxis {
    fn of(lanes: &[&Lane]) -> Self {
        let mut borders = BTreeSet::from([Key::MIN, Key::MAX]);
        for layer in lanes.iter().flat_map(|lane| &lane.layers) {
            borders.extend([layer.name.keys().start, layer.name.keys().end]);
        }
        let borders: Vec<Key> = borders.into_iter().collect();
        let mut above = 0.0;
        let mut shares = vec![0.0];
        for pair in borders.windows(2) {
            above += room_between(pair[0], pair[1]);
            shares.push(above);
        }
        for share in &mut shares {
            *share /= above;
        }
        KeyAxis { borders, shares }
    }

    fn share(&self, key: Key) -> f64 {
        match self.borders.binary_search(&key) {
            Ok(place) => self.shares[place],
            Err(_) => 0.0,
        }
    }

    /// How tall a lane has to be for its ranges to be seen.
    fn height(&self) -> f64 {
        (self.borders.len() as f64 * 2.0).clamp(96.0, 300.0)
    }

    /// Runs of borders of the same kind: what they are, and their shares.
    fn bands(&self) -> Vec<(String, f64, f64)> {
        let mut bands: Vec<(String, f64, f64)> = Vec::new();
        if self.borders.len() == 2 {
            return vec![("all keys".into(), 0.0, 1.0)];
        }
        for (pair, shares) in self.borders.windows(2).zip(self.shares.windows(2)) {
            let name = kind_of_keys(pair[0]);
            match bands.last_mut() {
                Some((last, _, end)) if *last == name => *end = shares[1],
                _ => bands.push((name, shares[0], shares[1])),
            }
        }
        bands
    }
}

/// The relation fork that a key is of.
fn relation(key: Key) -> Option<RelTag> {
    match key.kind() {
        Some(KeyKind::RelBlock { rel, .. } | KeyKind::RelSize(rel)) => Some(rel),
        _ => None,
    }
}

fn room_between(start: Key, end: Key) -> f64 {
    let blocks = match (relation(start), relation(end)) {
        (Some(a), Some(b)) if a == b => f64::from(end.field6) - f64::from(start.field6),
        _ => 6.0,
    };
    (2.0 + blocks).log2().min(20.0)
}

fn kind_of_keys(key: Key) -> String {
    match (key.field1, key.field2, key.field3) {
        (0, 0, 0) => "databases".into(),
        (0, GLOBAL_TABLESPACE, _) => "shared relations".into(),
        (0, _, db) => format!("database {db}"),
        (1, ..) => "transaction status".into(),
        (2, ..) => "prepared".into(),
        (3, ..) => "control".into(),
        (0x60..0x7F, ..) => "directories".into(),
        _ => "other".into(),
    }
}

fn draw_heading(out: &mut String, lanes: &[&Lane], lsns: &LsnAxis) {
    let layers = lanes.iter().map(|lane| lane.layers.len()).sum();
    let bytes = lanes.iter().flat_map(|lane| &lane.layers).map(|layer| layer.file_size).sum();
    let (_, step) = lsns.ticks();
    put(out, format_args!("<text class=\"title\" x=\"24\" y=\"38\">Every version of every page</text>"));
    put(
        out,
        format_args!(
            "<text class=\"dim\" x=\"24\" y=\"60\">{}, {}, {} in the bucket. WAL runs to the right, {} a step; keys from top to bottom, room by the logarithm of blocks.</text>",
            plural(lanes.len(), "timeline"),
            plural(layers, "layer"),
            key_text::bytes(bytes),
            key_text::bytes(step)
        ),
    );
    let mut x = 24.0;
    let mut y = 76.0;
    for (class, what) in [
        ("image", "image: whole pages as of one LSN"),
        ("l0", "delta straight from the tail (L0): all keys"),
        ("l1", "delta on a shelf: a stretch of keys"),
        ("trimmed", "below the cutoff: only what can be read"),
        ("wal", "WAL not in layers yet"),
        ("past", "before the cutoff: single places can be read"),
        ("cutoff", "cutoff: everything from here on"),
        ("point", "one of them: a branch, a lease, a name"),
        ("heat", "read lately"),
        ("lease", "leased"),
        ("mark", "named or restored"),
    ] {
        if x > WIDTH - 240.0 {
            (x, y) = (24.0, y + 22.0);
        }
        put(
            out,
            format_args!(
                "<rect class=\"{class}\" x=\"{x:.1}\" y=\"{y}\" width=\"13\" height=\"13\" rx=\"2.5\"/>"
            ),
        );
        put(
            out,
            format_args!("<text class=\"small\" x=\"{:.1}\" y=\"{}\">{what}</text>", x + 19.0, y + 10.5),
        );
        x += 40.0 + what.len() as f64 * 5.3;
    }
    put(out, format_args!("<circle class=\"knot\" cx=\"{:.1}\" cy=\"{}\" r=\"4.5\"/>", x + 6.0, y + 6.5));
    put(
        out,
        format_args!("<text class=\"small\" x=\"{:.1}\" y=\"{}\">branch point</text>", x + 18.0, y + 10.5),
    );
}

fn draw_grid(out: &mut String, lsns: &LsnAxis, top: f64, bottom: f64) {
    for lsn in lsns.ticks().0 {
        let x = lsns.x(lsn);
        put(
            out,
            format_args!(
                "<line class=\"grid\" x1=\"{x:.1}\" y1=\"{top:.1}\" x2=\"{x:.1}\" y2=\"{bottom:.1}\"/>"
            ),
        );
        for y in [top - 8.0, bottom + 18.0] {
            put(
                out,
                format_args!(
                    "<text class=\"dim small mono\" x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"middle\">{lsn}</text>"
                ),
            );
        }
    }
}

fn draw_lane(out: &mut String, lane: &Lane, top: f64, keys: &KeyAxis, lsns: &LsnAxis) {
    let height = keys.height();
    let (right, bottom) = (WIDTH - RIGHT, top + height);
    let bytes = lane.layers.iter().map(|layer| layer.file_size).sum();
    let remarks: String = lane.remarks.iter().map(|remark| format!("{}, ", escaped(remark))).collect();
    put(out, format_args!("<g><title>timeline {}</title>", lane.timeline));
    put(
        out,
        format_args!(
            "<text x=\"24\" y=\"{:.1}\"><tspan class=\"id mono\">{}</tspan><tspan class=\"dim\" dx=\"10\">{remarks}{}, {}, up to {}</tspan></text>",
            top - 27.0,
            lane.timeline,
            plural(lane.layers.len(), "layer"),
            key_text::bytes(bytes),
            lane.end
        ),
    );
    if let Some(debt) = lane.debt.as_ref().filter(|_| !lane.layers.is_empty()) {
        put(
            out,
            format_args!(
                "<text class=\"dim small\" x=\"24\" y=\"{:.1}\">{}</text>",
                top - 11.0,
                debt_in_words(debt)
            ),
        );
    }
    put(
        out,
        format_args!(
            "</g><rect class=\"lane\" x=\"{LEFT}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{height:.1}\" rx=\"3\"/>",
            right - LEFT
        ),
    );
    draw_bands(out, keys, top, height);

    draw_shelves(out, lane, top, height, keys);
    let origin = lane.ancestor.map_or(lane.began, |(_, at)| at);
    draw_past(out, lane, origin, top, height, lsns);
    if let Some((ancestor, at)) = lane.ancestor {
        let width = lsns.x(at) - LEFT;
        put(
            out,
            format_args!(
                "<g><title>before {at} the history is that of {ancestor}</title>\
             <rect class=\"inherited\" x=\"{LEFT}\" y=\"{top:.1}\" width=\"{width:.1}\" height=\"{height:.1}\"/>"
            ),
        );
        if width > 190.0 {
            put(
                out,
                format_args!(
                    "<text class=\"dim small\" x=\"{:.1}\" y=\"{:.1}\">history of {}…</text>",
                    LEFT + 12.0,
                    top + 18.0,
                    &ancestor.to_string()[..8]
                ),
            );
        }
        put(out, format_args!("</g>"));
    }

    let (mut deltas, mut images): (Vec<_>, Vec<_>) =
        lane.layers.iter().partition(|layer| layer.name.is_delta());
    // Small ones on top of large ones.
    deltas.sort_by_key(|layer| (!layer.name.is_l0(), layer.name.lsns().start));
    images.sort_by_key(|layer| layer.name.lsns().start);
    let hottest = lane.layers.iter().filter_map(|layer| layer.heat).max().unwrap_or(0).max(1);
    for layer in deltas.into_iter().chain(images) {
        draw_layer(out, layer, hottest, top, height, keys, lsns);
    }
    if let Some(cutoff) = lane.cutoff.filter(|cutoff| *cutoff > origin) {
        let x = lsns.x(cutoff);
        put(
            out,
            format_args!(
                "<line class=\"cutoff\" x1=\"{x:.1}\" y1=\"{:.1}\" x2=\"{x:.1}\" y2=\"{:.1}\"><title>cutoff {cutoff}: from here on everything can be read</title></line>",
                top - 4.0,
                bottom + 4.0
            ),
        );
    }

    if let Some(readable) = lane.readable_from.filter(|readable| *readable > origin) {
        let (from, to) = (lsns.x(origin), lsns.x(readable));
        put(
            out,
            format_args!(
                "<rect fill=\"url(#import)\" x=\"{from:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{height:.1}\">\
             <title>import: readable from {readable} on</title></rect>",
                to - from
            ),
        );
    }
    let (from, to) = (lsns.x(origin), lsns.x(lane.end));
    put(
        out,
        format_args!(
            "<line class=\"spine\" x1=\"{from:.1}\" y1=\"{bottom:.1}\" x2=\"{to:.1}\" y2=\"{bottom:.1}\"/>\
         <circle class=\"end\" cx=\"{to:.1}\" cy=\"{bottom:.1}\" r=\"4\"><title>layers hold all up to {}</title></circle>",
            lane.end
        ),
    );
    for wal in &lane.wal {
        let (from, to) = (lsns.x(wal.start), lsns.x(wal.end));
        put(
            out,
            format_args!(
                "<rect class=\"wal\" x=\"{from:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"5\" rx=\"2\"><title>WAL {} to {}</title></rect>",
                bottom - 2.5,
                (to - from).max(2.0),
                wal.start,
                wal.end
            ),
        );
    }
    let marks = lane.marks.iter().map(|mark| ("mark", mark));
    for (class, (lsn, what)) in marks.chain(lane.leases.iter().map(|lease| ("lease", lease))) {
        let x = lsns.x(*lsn);
        put(
            out,
            format_args!(
                "<path class=\"{class}\" d=\"M{:.1} {:.1}h10l-5 9z\"><title>{} at {lsn}</title></path>",
                x - 5.0,
                top - 5.0,
                escaped(what)
            ),
        );
    }
}

/// What compaction has still to do, in a sentence.
fn debt_in_words(debt: &Debt) -> String {
    let merge = match debt.merge_bytes {
        0 => "nothing to merge".to_owned(),
        bytes => format!("{} to merge", key_text::bytes(bytes)),
    };
    let garbage = match debt.garbage_bytes {
        0 => String::new(),
        bytes => format!(", {} below the cutoff not collected yet", key_text::bytes(bytes)),
    };
    format!("debt: {merge}, a read visits at most {}{garbage}", plural(debt.deepest, "layer"))
}

/// Every other stretch of keys, so that each can be told from its neighbours.
fn draw_shelves(out: &mut String, lane: &Lane, top: f64, height: f64, keys: &KeyAxis) {
    for (number, shelf) in lane.shelves.iter().enumerate() {
        let (from, to) = (top + keys.share(shelf.start) * height, top + keys.share(shelf.end) * height);
        put(
            out,
            format_args!(
                "<rect class=\"shelf\" fill-opacity=\"{}\" x=\"{LEFT}\" y=\"{from:.1}\" width=\"{:.1}\" height=\"{:.1}\"><title>shelf {} of {}: {} to before {}</title></rect>",
                if number % 2 == 0 { ".09" } else { ".02" },
                WIDTH - RIGHT - LEFT,
                (to - from).max(0.5),
                number + 1,
                lane.shelves.len(),
                escaped(&key_text::key(shelf.start)),
                escaped(&key_text::key(shelf.end))
            ),
        );
    }
}

/// Where only single places can be read, and which.
fn draw_past(out: &mut String, lane: &Lane, origin: Lsn, top: f64, height: f64, lsns: &LsnAxis) {
    let Some(cutoff) = lane.cutoff.filter(|cutoff| *cutoff > origin) else { return };
    let (from, to) = (lsns.x(origin), lsns.x(cutoff));
    put(
        out,
        format_args!(
            "<rect class=\"past\" x=\"{from:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{height:.1}\"><title>before {cutoff} only branch points, leases and named LSNs can be read</title></rect>",
            to - from
        ),
    );
    for point in lane.points.iter().filter(|point| **point >= origin && **point < cutoff) {
        let x = lsns.x(*point);
        put(
            out,
            format_args!(
                "<line class=\"point\" x1=\"{x:.1}\" y1=\"{top:.1}\" x2=\"{x:.1}\" y2=\"{:.1}\"><title>{point} can be read</title></line>",
                top + height
            ),
        );
    }
}

fn draw_bands(out: &mut String, keys: &KeyAxis, top: f64, height: f64) {
    for (number, (name, start, end)) in keys.bands().into_iter().enumerate() {
        let (from, tall) = (top + start * height, (end - start) * height);
        let opacity = if number % 2 == 0 { 0.75 } else { 0.35 };
        put(
            out,
            format_args!(
                "<rect class=\"band\" fill-opacity=\"{opacity}\" x=\"{:.1}\" y=\"{from:.1}\" width=\"5\" height=\"{:.1}\"><title>{name}</title></rect>",
                LEFT - 9.0,
                (tall - 0.5).max(0.5)
            ),
        );
        if tall >= 12.0 {
            put(
                out,
                format_args!(
                    "<text class=\"dim small\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{name}</text>",
                    LEFT - 15.0,
                    from + tall / 2.0 + 3.5
                ),
            );
        }
    }
}

fn draw_layer(
    out: &mut String,
    layer: &LayerBox,
    hottest: u32,
    top: f64,
    height: f64,
    keys: &KeyAxis,
    lsns: &LsnAxis,
) {
    let (range, span) = (layer.name.keys(), layer.name.lsns());
    let (share, share_end) = (keys.share(range.start), keys.share(range.end));
    let (y, tall) = (top + share * height, ((share_end - share) * height).max(1.0));
    let (class, x, wide) = if layer.name.is_delta() {
        let (from, to) = (lsns.x(span.start), lsns.x(span.end));
        let class = match (layer.name.is_l0(), layer.is_trimmed) {
            (true, _) => "l0",
            (false, true) => "trimmed",
            (false, false) => "l1",
        };
        (class, from, (to - from).max(1.5))
    } else {
        ("image", lsns.x(span.start) - IMAGE_WIDTH, IMAGE_WIDTH)
    };
    let keys = if layer.name.is_l0() {
        "all keys".to_owned()
    } else {
        format!("{} to before {}", key_text::key(range.start), key_text::key(range.end))
    };
    let when = if layer.name.is_delta() {
        format!("changes from {} to before {}", span.start, span.end)
    } else {
        format!("images as of {}", span.start)
    };
    let commits = layer.commits.map(|(oldest, newest)| {
        let time = |time: PgTimestamp| codec::index_part::UtcTime::from_system_time(time.to_system_time());
        format!("\ncommits {} to {}", time(oldest), time(newest))
    });
    put(
        out,
        format_args!(
            "<rect class=\"layer {class}\" fill-opacity=\".82\" x=\"{x:.2}\" y=\"{y:.2}\" width=\"{wide:.2}\" height=\"{:.2}\" rx=\"{:.1}\">\
         <title>{}\n{when}\n{}\n{}{}{}</title></rect>",
            (tall - 0.6).max(0.6),
            if tall > 8.0 { 2.0 } else { 0.0 },
            layer.name,
            escaped(&keys),
            key_text::bytes(layer.file_size),
            commits.unwrap_or_default(),
            layer.heat.map(|heat| format!("\nheat {heat}")).unwrap_or_default()
        ),
    );
    if let Some(heat) = layer.heat.filter(|heat| *heat > 0) {
        put(
            out,
            format_args!(
                "<rect class=\"heat\" fill-opacity=\"{:.2}\" x=\"{x:.2}\" y=\"{y:.2}\" width=\"{:.2}\" height=\"{:.2}\" pointer-events=\"none\"/>",
                0.25 + 0.75 * f64::from(heat) / f64::from(hottest),
                (wide / 2.0).min(5.0),
                (tall - 0.6).max(0.6)
            ),
        );
    }
    if wide > 54.0 && tall > 16.0 {
        put(
            out,
            format_args!(
                "<text class=\"small label\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\" pointer-events=\"none\">{}</text>",
                x + wide / 2.0,
                y + tall / 2.0 + 4.0,
                key_text::bytes(layer.file_size)
            ),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::Fork;

    fn id(byte: u8) -> TimelineId {
        TimelineId([byte; 16])
    }

    fn block(rel: u32, block: u32) -> Key {
        Key::rel_block(RelTag { spc: 1663, db: 5, rel, fork: Fork::Main }, block)
    }

    fn layer(name: LayerName, file_size: u64) -> LayerBox {
        let commits = Some((PgTimestamp(0), PgTimestamp(1_000_000)));
        LayerBox { name, file_size, commits, is_trimmed: false, heat: None }
    }

    fn mib(n: u64) -> Lsn {
        Lsn(n << 20)
    }

    /// A trunk with an import, and two branches, one of them of the other.
    fn three_timelines() -> Vec<Lane> {
        let mut layers: Vec<LayerBox> = (0..40u32)
            .map(|n| {
                let keys = block(16384 + 3 * n, 0)..block(16384 + 3 * n, 20 + n * n * 80);
                layer(LayerName::Image { keys, lsn: mib(32) }, 1 << 20)
            })
            .collect();
        layers.extend((0..6).map(|n| {
            let lsns = Lsn(mib(32 + n * 16).0 + 1)..Lsn(mib(48 + n * 16).0 + 1);
            layer(LayerName::Delta { keys: Key::ALL, lsns }, (9 + n) << 20)
        }));
        let keys = block(16384, 0)..block(16393, 5);
        layers.push(layer(LayerName::Delta { keys, lsns: mib(40)..mib(100) }, 5 << 20));
        let trunk = Lane {
            timeline: id(0xAA),
            remarks: vec!["Postgres 16".into()],
            ancestor: None,
            began: mib(32),
            end: mib(128),
            readable_from: Some(mib(36)),
            layers,
            wal: vec![mib(128)..mib(131)],
            marks: vec![(mib(100), "before <the> accident".into())],
            leases: vec![(mib(50), "leased".into())],
            cutoff: Some(mib(80)),
            points: vec![mib(50), mib(64)],
            shelves: vec![block(16384, 0)..block(16420, 0), block(16420, 0)..block(16501, 121_680)],
            debt: Some(Debt { merge_bytes: 3 << 20, deepest: 7, garbage_bytes: 1 << 20 }),
        };
        let branch = |byte, parent, at, end| Lane {
            timeline: id(byte),
            ancestor: Some((id(parent), mib(at))),
            end: mib(end),
            layers: vec![layer(
                LayerName::Delta { keys: Key::ALL, lsns: Lsn(mib(at).0 + 1)..Lsn(mib(end).0 + 1) },
                3 << 20,
            )],
            readable_from: None,
            marks: Vec::new(),
            leases: Vec::new(),
            cutoff: None,
            points: Vec::new(),
            shelves: Vec::new(),
            debt: None,
            wal: Vec::new(),
            ..trunk.clone()
        };
        vec![branch(0xCC, 0xBB, 110, 125), branch(0xBB, 0xAA, 100, 120), trunk]
    }

    #[test]
    fn a_parent_comes_before_its_branches() {
        let lanes = three_timelines();
        let order: Vec<TimelineId> = in_tree_order(&lanes).iter().map(|lane| lane.timeline).collect();
        assert_eq!(order, [id(0xAA), id(0xBB), id(0xCC)]);
    }

    #[test]
    fn every_layer_and_branch_point_is_in_the_picture() {
        let lanes = three_timelines();
        let svg = draw(&lanes);
        for name in lanes.iter().flat_map(|lane| &lane.layers).map(|layer| layer.name.to_string()) {
            assert_eq!(svg.matches(&name).count(), 1, "{name}");
        }
        assert_eq!(svg.matches("branches off").count(), 2);
        assert!(svg.contains("before &lt;the&gt; accident") && svg.contains("leased at"));
        assert_eq!(svg.matches("<line class=\"cutoff\"").count(), 1);
        assert_eq!(svg.matches("<line class=\"point\"").count(), 2);
        assert_eq!(svg.matches("<rect class=\"shelf\"").count(), 2);
        assert!(svg.contains("debt: 3.0 MiB to merge, a read visits at most 7 layers, 1.0 MiB below the cutoff not collected yet"));
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
    }

    #[test]
    fn nothing_and_nonsense_can_be_drawn() {
        assert!(draw(&[]).ends_with("</svg>\n"));
        let mut lane = three_timelines().remove(0);
        lane.ancestor = Some((lane.timeline, Lsn(7)));
        lane.layers.clear();
        lane.end = Lsn(7);
        assert!(!draw(&[lane.clone()]).contains("NaN"));
        let mut other = lane.clone();
        other.timeline = id(1);
        other.ancestor = Some((lane.timeline, Lsn::MAX));
        lane.ancestor = Some((other.timeline, Lsn(0)));
        let svg = draw(&[lane, other]);
        assert!(!svg.contains("NaN") && svg.matches("<tspan class=\"id mono\">").count() == 2);
    }

    #[test]
    fn larger_relations_get_more_room_but_not_in_proportion() {
        let small = room_between(block(1, 0), block(1, 10));
        let large = room_between(block(1, 0), block(1, 10_000));
        assert!(large > small && large < 10.0 * small);
    }
}
