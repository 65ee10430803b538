//! `pagectl index`: looks into `index_part.json`.

use std::fmt::Write as _;

use clap::{Args, Subcommand};
use codec::index_part::Extension;
use model::Lsn;

use crate::indexes::{self, FoundIndex};
use crate::key_text;

/// Looks into `index_part.json`.
#[derive(Debug, Args)]
pub struct Index {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Show(Show),
}

/// Prints what timelines consist of.
#[derive(Debug, Args)]
struct Show {
    /// A file, a directory (a bucket or a part of one), `s3://…` as in the pageserver's configuration, or `http://…`.
    place: String,
    /// Print every layer.
    #[arg(long)]
    layers: bool,
    /// Print the index itself, as JSON in the newest format.
    #[arg(long, conflicts_with = "layers")]
    json: bool,
}

/// Carries the verb out.
pub async fn run(arguments: &Index) -> anyhow::Result<()> {
    let Verb::Show(show) = &arguments.verb;
    for found in indexes::find(&show.place).await? {
        if show.json {
            println!("{}", String::from_utf8_lossy(&found.index.to_json()));
        } else {
            print!("{}", describe(&found, show.layers));
        }
    }
    Ok(())
}

fn describe(found: &FoundIndex, with_layers: bool) -> String {
    let FoundIndex { place, timeline, generation, index } = found;
    let metadata = index.metadata();
    let mut text = String::new();
    let mut line = |name: &str, what: &dyn std::fmt::Display| {
        let _ = writeln!(text, "  {name:<20}{what}");
    };
    if let Some(generation) = generation {
        line("generation", generation);
    }
    line("Postgres", &metadata.pg_version);
    line("layers hold up to", &index.disk_consistent_lsn());
    match metadata.ancestor_timeline {
        Some(ancestor) => line("branch of", &format!("{ancestor} at {}", metadata.ancestor_lsn)),
        None => line("began at", &metadata.initdb_lsn),
    }
    if metadata.latest_gc_cutoff_lsn > Lsn::INVALID {
        line("collected below", &metadata.latest_gc_cutoff_lsn);
    }
    if let Some(time) = &index.archived_at {
        line("archived", time);
    }
    if let Some(time) = &index.deleted_at {
        line("being deleted since", time);
    }
    match &index.palimpsest {
        Some(extension) => describe_extension(extension, &mut line),
        None => line("wal", &"Neon's; the index is a plain one"),
    }
    let (deltas, images): (Vec<_>, Vec<_>) =
        index.layer_metadata.iter().partition(|(name, _)| name.is_delta());
    let level0 = deltas.iter().filter(|(name, _)| name.is_l0()).count();
    let size = |layers: &[(_, &codec::index_part::LayerMetadata)]| {
        key_text::bytes(layers.iter().map(|(_, layer)| layer.file_size).sum())
    };
    line("images", &format!("{} layers, {}", images.len(), size(&images)));
    line("deltas", &format!("{} layers ({level0} L0), {}", deltas.len(), size(&deltas)));
    let mut text = format!(
        "{}\n{text}",
        timeline.map_or_else(|| place.clone(), |id| format!("timeline {id}  ({place})"))
    );
    if with_layers {
        for (name, layer) in &index.layer_metadata {
            let generation = layer.generation.map(|generation| format!("-{generation}")).unwrap_or_default();
            let crc = layer
                .palimpsest
                .as_ref()
                .map(|ours| format!("  crc32c {:08x}", ours.crc32c))
                .unwrap_or_default();
            let _ = writeln!(text, "  {name}{generation}  {}{crc}", key_text::bytes(layer.file_size));
        }
    }
    text
}

fn describe_extension(extension: &Extension, line: &mut dyn FnMut(&str, &dyn std::fmt::Display)) {
    let flavour = format!("{:?}", extension.wal_flavour).to_lowercase();
    line("wal", &flavour);
    if !extension.not_portable.is_empty() {
        let reasons: Vec<String> = extension
            .not_portable
            .iter()
            .filter_map(|reason| Some(serde_json::to_value(reason).ok()?.as_str()?.to_owned()))
            .collect();
        line("not portable", &reasons.join(", "));
    }
    line("system identifier", &extension.system_identifier);
    line("wal segment size", &key_text::bytes(extension.wal_segment_size.bytes()));
    line("page checksums", if extension.data_checksums { &"on" } else { &"off" });
    for start in &extension.tli_history {
        line("Postgres timeline", &format!("{} from {}", start.tli, start.from));
    }
    line("readable from", &extension.readable_from);
    line("index sequence", &extension.sequence);
    if let Some(source) = &extension.source {
        line("follows", &source.conninfo);
        if let Some(slot) = &source.slot {
            line("slot", slot);
        }
    }
    if let Some(import) = &extension.import {
        line("import", &format!("not finished, since {}", import.started_at));
    }
    if let Some((first, last)) = extension.wal_objects.first().zip(extension.wal_objects.last()) {
        let count = extension.wal_objects.len();
        line("inherited wal", &format!("{count} objects, {} to {}", first.start, last.end));
    }
    for restore in &extension.restores {
        line("restored", &format!("at {} on Postgres timeline {}", restore.lsn, restore.tli));
    }
    for (name, named) in &extension.named_lsns {
        let until = named.valid_until.as_ref().map(|until| format!(" until {until}")).unwrap_or_default();
        line("named", &format!("{} {name}{until}", named.lsn));
    }
    for lease in &extension.leases {
        line("lease", &format!("{} until {}", lease.lsn, lease.valid_until));
    }
    if let Some(archived) = &extension.archived {
        let successor = archived.successor.map(|id| format!(", goes on in {id}")).unwrap_or_default();
        line("archived because", &format!("{}{successor}", archived.reason));
    }
}
