//! `pagectl layer`: looks into layer files.

use std::io::BufWriter;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use codec::layer::blob::Unpacker;
use codec::layer::{LayerFile, LayerKind};
use codec::value::Value;
use model::{Key, LayerObjectName, Lsn};

use crate::key_text;

/// Looks into layer files.
#[derive(Debug, Args)]
pub struct Layer {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Dump(Dump),
    Verify(Verify),
}

/// Prints what a layer file is and what it holds, an entry a line.
#[derive(Debug, Args)]
struct Dump {
    /// The file.
    file: PathBuf,
    /// Only this key (36 hexadecimal digits).
    #[arg(long)]
    key: Option<Key>,
    /// Stop after so many entries.
    #[arg(long)]
    limit: Option<usize>,
    /// Print values in hexadecimal, too.
    #[arg(long)]
    values: bool,
}

/// Checks layer files as a whole: checksums, index, values, and that their names say what they are.
#[derive(Debug, Args)]
struct Verify {
    /// The files.
    #[arg(required = true)]
    files: Vec<PathBuf>,
}

/// Carries the verb out.
pub fn run(layer: &Layer) -> anyhow::Result<()> {
    match &layer.verb {
        Verb::Dump(dump) => run_dump(dump),
        Verb::Verify(verify) => run_verify(verify),
    }
}

fn run_dump(arguments: &Dump) -> anyhow::Result<()> {
    let bytes = read(&arguments.file)?;
    dump(&bytes, arguments, &mut BufWriter::new(std::io::stdout().lock()))
        .or_else(|error| match error.downcast_ref::<std::io::Error>() {
            // `pagectl layer dump … | head`
            Some(broken) if broken.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
            _ => Err(error),
        })
        .with_context(|| arguments.file.display().to_string())
}

fn dump(bytes: &[u8], arguments: &Dump, out: &mut impl std::io::Write) -> anyhow::Result<()> {
    let file = LayerFile::open(bytes)?;
    let (summary, layout) = (file.summary(), file.layout());
    let lsns = summary.name.lsns();
    writeln!(out, "{}", summary.name)?;
    writeln!(out, "tenant {}, timeline {}", summary.tenant, summary.timeline)?;
    match layout.kind() {
        LayerKind::Image => writeln!(out, "images as of {}", lsns.start)?,
        LayerKind::Delta => writeln!(out, "changes from {} to before {}", lsns.start, lsns.end)?,
    }
    let index_blocks = layout.blocks() - layout.index_start_block();
    writeln!(
        out,
        "{} of file, values to {:#x}, {index_blocks} index blocks from block {}, root {}",
        key_text::bytes(layout.file_size()),
        layout.values_end(),
        layout.index_start_block(),
        layout.index_root_block()
    )?;
    match layout.checksums() {
        Some(table) => {
            writeln!(out, "checksums of {} blocks from block {}", table.covered(), table.start_block())?;
        }
        None => writeln!(out, "no checksums")?,
    }
    writeln!(out)?;

    let wanted = |key: &Key| arguments.key.is_none_or(|only| only == *key);
    let limit = arguments.limit.unwrap_or(usize::MAX);
    let mut unpacker = Unpacker::default();
    let mut line = |key: Key, lsn: Option<Lsn>, at: u64| -> anyhow::Result<()> {
        let (head, value) = file.value(at, &mut unpacker)?;
        let lsn = lsn.map(|lsn| format!(" {lsn:>17}")).unwrap_or_default();
        let what = match layout.kind() {
            LayerKind::Image if head.compressed => format!("{} bytes in {}", value.len(), head.stored),
            LayerKind::Image => format!("{} bytes", value.len()),
            LayerKind::Delta => {
                Value::decode(&value).map_or_else(|error| error.to_string(), |v| key_text::value(&v))
            }
        };
        writeln!(out, "{key}{lsn} {at:>#12x}  {}: {what}", key_text::key(key))?;
        if arguments.values {
            writeln!(out, "    {}", hex::encode(&value))?;
        }
        Ok(())
    };
    for entry in file.images()?.iter().filter(|entry| wanted(&entry.key)).take(limit) {
        line(entry.key, None, entry.at)?;
    }
    for entry in file.deltas()?.iter().filter(|entry| wanted(&entry.key)).take(limit) {
        line(entry.key, Some(entry.lsn), entry.at)?;
    }
    out.flush()?;
    Ok(())
}

fn run_verify(arguments: &Verify) -> anyhow::Result<()> {
    let mut damaged = 0;
    for path in &arguments.files {
        match verify(path) {
            Ok(report) => println!("{}: {report}", path.display()),
            Err(error) => {
                damaged += 1;
                println!("{}: DAMAGED: {error:#}", path.display());
            }
        }
    }
    if damaged > 0 {
        bail!("{damaged} of {} layer files are damaged", arguments.files.len());
    }
    Ok(())
}

fn verify(path: &Path) -> anyhow::Result<String> {
    let bytes = read(path)?;
    let file = LayerFile::open(&bytes)?;
    let named = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok());
    if let Some(LayerObjectName { layer, .. }) = named
        && layer != file.summary().name
    {
        bail!("the file's own name for itself is {}", file.summary().name);
    }
    let report = file.verify()?;
    let checksums = match report.checked_blocks {
        0 => "no checksums".to_owned(),
        blocks => format!("checksums of {blocks} blocks right"),
    };
    Ok(format!(
        "sound; {} values, {} compressed, {} initialise; {} in {} of file; index of {} levels; {checksums}; crc32c {:08x}",
        report.entries,
        report.compressed,
        report.will_init,
        key_text::bytes(report.value_bytes),
        key_text::bytes(bytes.len() as u64),
        report.index_levels,
        report.crc32c
    ))
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use codec::layer::{Checksums, DeltaWriter};
    use codec::value::Change;
    use model::{Fork, LayerName, RelTag, TenantId, TimelineId};

    fn delta_file() -> Vec<u8> {
        let rel = RelTag { spc: 1663, db: 5, rel: 16384, fork: Fork::Main };
        let mut writer = DeltaWriter::new(TenantId([1; 16]), TimelineId([2; 16]), Checksums::PerBlock);
        let mut rest = Vec::new();
        let mut push = |key, lsn, value: &Value<'_>| {
            writer.push(key, Lsn(lsn), value.will_init(), &value.to_bytes(), &mut rest).unwrap();
        };
        push(Key::rel_block(rel, 7), 0x10, &Value::Change(Change::ZeroPage));
        push(Key::rel_size(rel), 0x18, &Value::Image(&8u32.to_le_bytes()));
        push(Key::rel_directory_entry(rel), 0x20, &Value::Image(b""));
        let name = LayerName::Delta { keys: Key::ALL, lsns: Lsn(0x10)..Lsn(0x21) };
        let finished = writer.finish(name, &mut rest).unwrap();
        [&finished.block0[..], &rest].concat()
    }

    fn dumped(key: Option<Key>, limit: Option<usize>) -> String {
        let arguments = Dump { file: PathBuf::new(), key, limit, values: true };
        let mut out = Vec::new();
        dump(&delta_file(), &arguments, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_dump_says_what_each_value_is() {
        let text = dumped(None, None);
        assert!(text.contains("changes from 0/10 to before 0/21"), "{text}");
        assert!(text.contains("1663/5/16384 block 7: zero page"), "{text}");
        assert!(
            text.contains("1663/5/16384 size: image of 4 bytes\n    00000000000000000000000408000000"),
            "{text}"
        );
        assert!(text.contains("1663/5/16384 exists: tombstone"), "{text}");
        let size = "000000067F000000050000400000FFFFFFFF".parse().unwrap();
        assert!(!dumped(Some(size), None).contains("zero page"));
        assert!(!dumped(None, Some(1)).contains("size:"));
    }

    #[test]
    fn a_damaged_file_is_called_damaged() {
        let folder = std::env::temp_dir().join(format!("pagectl-layer-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("layer");
        let mut bytes = delta_file();
        std::fs::write(&path, &bytes).unwrap();
        assert!(verify(&path).unwrap().starts_with("sound; 3 values, 0 compressed, 3 initialise"));
        bytes[8200] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        let error = verify(&path).unwrap_err();
        assert!(format!("{error:#}").contains("block at offset 0x2000"), "{error:#}");
        assert!(run_verify(&Verify { files: vec![path] }).is_err());
        std::fs::remove_dir_all(folder).unwrap();
    }
}
