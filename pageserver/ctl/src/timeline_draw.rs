//! `pagectl timeline draw`: a picture of what a bucket or a server has.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use codec::heatmap::HeatMap;
use engine::compact::shelf::shelves;
use engine::compact::{CompactionPolicy, debt, view_of};
use engine::index_keeper::{retention_of, wishes_of};
use engine::retention::Wishes;
use model::{LayerName, LayerObjectName, Lsn, TimelineId};
use serde::Deserialize;

use crate::drawing::{self, Lane, LayerBox};
use crate::indexes::{self, FoundIndex};

/// Looks at timelines as wholes.
#[derive(Debug, Args)]
pub struct Timeline {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Draw(Draw),
}

/// Draws layers as an SVG: WAL from left to right, keys from top to bottom, a lane for each timeline.
#[derive(Debug, Args)]
struct Draw {
    /// What to draw: `index_part.json` files, directories (a bucket or a part of one), `s3://…`, or a server's
    /// `http://host:port/v1/tenant/<id>`, with or without `/timeline/<id>`.
    #[arg(required = true)]
    places: Vec<String>,
    /// Where to write the picture; `-` for standard output.
    #[arg(short, long, default_value = "timeline.svg")]
    output: PathBuf,
}

/// Carries the verb out.
pub async fn run(arguments: &Timeline) -> anyhow::Result<()> {
    let Verb::Draw(draw) = &arguments.verb;
    let mut lanes = Vec::new();
    for place in &draw.places {
        if place.starts_with("http://") && !place.contains("index_part.json") {
            lanes.extend(from_server(place.trim_end_matches('/')).await?);
        } else {
            let found = indexes::find(place).await?;
            let heat = heat_of(place, &found).await;
            lanes.extend(from_indexes(&found, &heat));
        }
    }
    let svg = drawing::draw(&lanes);
    if draw.output.as_os_str() == "-" {
        print!("{svg}");
        return Ok(());
    }
    std::fs::write(&draw.output, svg).with_context(|| format!("cannot write {}", draw.output.display()))?;
    let layers: usize = lanes.iter().map(|lane| lane.layers.len()).sum();
    println!("{}: {} timelines, {layers} layers", draw.output.display(), lanes.len());
    Ok(())
}

/// How often layers were read lately.
type Heat = HashMap<(TimelineId, LayerName), u32>;

/// What heat maps beside the indexes say, of tenants that have one. They are advice: one that cannot be read is none.
async fn heat_of(place: &str, found: &[FoundIndex]) -> Heat {
    let beside = |index: &str| Some(format!("{}/heatmap-v1.json", index.split_once("/timelines/")?.0));
    let places: BTreeSet<String> = found.iter().filter_map(|found| beside(&found.place)).collect();
    let mut heat = Heat::new();
    for path in places {
        let Some(map) = indexes::read_beside(place, &path).await else { continue };
        let Ok(map) = HeatMap::from_json(&map) else { continue };
        for timeline in map.timelines {
            for layer in timeline.layers {
                let reads = layer.palimpsest.map_or(1, |chunks| chunks.heat.max(1));
                heat.insert((timeline.timeline_id, layer.name), reads);
            }
        }
    }
    heat
}

fn from_indexes(found: &[FoundIndex], heat: &Heat) -> Vec<Lane> {
    let made_up = |number: usize| {
        let mut id = [0; 16];
        id[15] = number as u8;
        TimelineId(id)
    };
    let id_of = |number: usize, found: &FoundIndex| found.timeline.unwrap_or_else(|| made_up(number));
    let wishes: BTreeMap<TimelineId, Wishes> = found
        .iter()
        .enumerate()
        .map(|(number, found)| (id_of(number, found), wishes_of(&found.index)))
        .collect();
    found
        .iter()
        .enumerate()
        .map(|(number, found)| from_index(id_of(number, found), found, &wishes, heat))
        .collect()
}

fn from_index(
    id: TimelineId,
    found: &FoundIndex,
    wishes: &BTreeMap<TimelineId, Wishes>,
    heat: &Heat,
) -> Lane {
    let index = &found.index;
    let metadata = index.metadata();
    let retention = retention_of(id, index, wishes);
    let view = view_of(index, retention.clone());
    let policy = CompactionPolicy::default();
    let mut remarks = vec![format!("Postgres {}", metadata.pg_version)];
    remarks.extend(index.archived_at.as_ref().map(|_| "archived".to_owned()));
    let mut lane = Lane {
        timeline: id,
        remarks,
        ancestor: metadata.ancestor_timeline.map(|id| (id, metadata.ancestor_lsn)),
        began: metadata.initdb_lsn,
        end: index.disk_consistent_lsn(),
        readable_from: None,
        layers: index
            .layer_metadata
            .iter()
            .map(|(name, layer)| LayerBox {
                name: name.clone(),
                file_size: layer.file_size,
                commits: layer.palimpsest.as_ref().and_then(|ours| ours.commits),
                is_trimmed: layer.palimpsest.as_ref().is_some_and(|ours| ours.trimmed_for.is_some()),
                heat: heat.get(&(id, name.clone())).copied(),
            })
            .collect(),
        wal: Vec::new(),
        marks: Vec::new(),
        leases: Vec::new(),
        cutoff: Some(retention.cutoff).filter(|cutoff| cutoff.is_valid()),
        points: retention.points,
        shelves: shelves(&view.rest, policy.shelf_bytes).into_iter().map(|shelf| shelf.keys).collect(),
        debt: Some(debt(&view, &policy)),
    };
    if let Some(ours) = &index.palimpsest {
        lane.readable_from = metadata.ancestor_timeline.is_none().then_some(ours.readable_from);
        lane.wal = ours.wal_objects.iter().map(|object| object.start..object.end).collect();
        lane.marks.extend(ours.restores.iter().map(|restore| (restore.lsn, "restored".to_owned())));
        lane.marks.extend(ours.named_lsns.iter().map(|(name, named)| (named.lsn, name.clone())));
        let leased =
            |lease: &codec::index_part::Lease| (lease.lsn, format!("leased until {}", lease.valid_until));
        lane.leases = ours.leases.iter().map(leased).collect();
    }
    lane
}

/// What a server says of a timeline; it says more.
#[derive(Debug, Deserialize)]
struct TimelineInfo {
    timeline_id: TimelineId,
    ancestor_timeline_id: Option<TimelineId>,
    ancestor_lsn: Option<Lsn>,
    initdb_lsn: Option<Lsn>,
    min_readable_lsn: Option<Lsn>,
    /// Absent while the timeline is being imported or cannot be loaded.
    disk_consistent_lsn: Option<Lsn>,
    applied_gc_cutoff_lsn: Option<Lsn>,
    last_record_lsn: Option<Lsn>,
    pg_version: Option<u32>,
}

/// A server's layer map.
#[derive(Debug, Deserialize)]
struct LayerMap {
    historic_layers: Vec<HistoricLayer>,
}

#[derive(Debug, Deserialize)]
struct HistoricLayer {
    layer_file_name: String,
    layer_file_size: u64,
}

async fn from_server(url: &str) -> anyhow::Result<Vec<Lane>> {
    let infos: Vec<TimelineInfo> = if let Some((tenant, _)) = url.split_once("/timeline/") {
        if tenant.is_empty() {
            bail!("{url} does not name a tenant");
        }
        vec![get_json(url).await?]
    } else {
        get_json(&format!("{url}/timeline")).await?
    };
    let tenant = url.split("/timeline").next().unwrap_or(url);
    let mut lanes = Vec::new();
    for info in infos {
        let Some(end) = info.disk_consistent_lsn else {
            eprintln!("timeline {} is not readable yet and is left out", info.timeline_id);
            continue;
        };
        let map: LayerMap = get_json(&format!("{tenant}/timeline/{}/layer", info.timeline_id)).await?;
        let layers = map.historic_layers.iter().map(|layer| {
            Ok(LayerBox {
                name: layer_name(&layer.layer_file_name)?,
                file_size: layer.layer_file_size,
                commits: None,
                is_trimmed: false,
                heat: None,
            })
        });
        let newest = info.last_record_lsn.unwrap_or(end);
        lanes.push(Lane {
            timeline: info.timeline_id,
            remarks: info.pg_version.map(|version| format!("Postgres {version}")).into_iter().collect(),
            ancestor: info.ancestor_timeline_id.zip(info.ancestor_lsn),
            began: info.initdb_lsn.unwrap_or_default(),
            end,
            readable_from: info.min_readable_lsn.filter(|_| info.ancestor_timeline_id.is_none()),
            layers: layers.collect::<anyhow::Result<_>>()?,
            wal: Some(end..newest).filter(|wal| !wal.is_empty()).into_iter().collect(),
            marks: Vec::new(),
            leases: Vec::new(),
            cutoff: info.applied_gc_cutoff_lsn,
            points: Vec::new(),
            shelves: Vec::new(),
            debt: None,
        });
    }
    Ok(lanes)
}

fn layer_name(text: &str) -> anyhow::Result<LayerName> {
    Ok(text.parse::<LayerObjectName>()?.layer)
}

async fn get_json<T: for<'de> Deserialize<'de>>(url: &str) -> anyhow::Result<T> {
    serde_json::from_slice(&indexes::http_get(url).await?)
        .with_context(|| format!("{url}: unexpected answer"))
}
