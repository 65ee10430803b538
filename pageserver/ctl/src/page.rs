//! `pagectl page get`: one page from a server, as of an LSN.

use std::io::Write;
use std::str::FromStr;

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Args, Subcommand};
use codec::page;
use codec::pagestream::{Answer, Query, Request, RequestHeader};
use model::{Fork, Lsn, RelTag, TenantId, TimelineId};

use crate::copy_out::Server;
use crate::page_stream::PageStream;

/// Reads pages.
#[derive(Debug, Args)]
pub struct Page {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Get(Get),
}

/// Asks a pageserver for a page of a relation as of an LSN.
#[derive(Debug, Args)]
struct Get {
    #[command(flatten)]
    from: ServedRelation,
    /// Which block.
    #[arg(long, default_value_t = 0)]
    block: u32,
    /// As of when; the newest there is by default.
    #[arg(long)]
    lsn: Option<Lsn>,
    /// Write the 8,192 bytes as they are instead of a hex dump.
    #[arg(long)]
    raw: bool,
}

/// A relation that a server has.
#[derive(Debug, Args)]
pub struct ServedRelation {
    /// The pageserver: host:port of its libpq service, or a postgres:// URL. A password is taken from PGPASSWORD.
    #[arg(long, default_value = "127.0.0.1:64000")]
    server: Server,
    /// Whose timeline.
    #[arg(long)]
    tenant: TenantId,
    /// Which.
    #[arg(long)]
    timeline: TimelineId,
    /// The relation: TABLESPACE/DATABASE/RELATION oids, e.g. 1663/5/16384, with _fsm, _vm or _init for another fork.
    #[arg(long, value_name = "OIDS")]
    rel: RelName,
}

impl ServedRelation {
    /// Connects to the server.
    pub fn open(&self) -> Result<PageStream> {
        PageStream::open(&self.server, self.tenant, self.timeline)
    }

    /// Which relation.
    pub fn rel(&self) -> RelTag {
        self.rel.0
    }
}

/// A relation fork as it is typed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RelName(pub RelTag);

impl FromStr for RelName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let expected = || {
            format!(
                "expected TABLESPACE/DATABASE/RELATION such as 1663/5/16384 or 1663/5/16384_vm, not {text:?}"
            )
        };
        let (name, fork) = [Fork::Fsm, Fork::Vm, Fork::Init]
            .into_iter()
            .find_map(|fork| Some((text.strip_suffix(fork.suffix())?, fork)))
            .unwrap_or((text, Fork::Main));
        let mut numbers = name.split('/').map(str::parse::<u32>);
        let mut next = || numbers.next().and_then(Result::ok).ok_or_else(expected);
        let (spc, db, rel) = (next()?, next()?, next()?);
        if numbers.next().is_some() {
            return Err(expected());
        }
        Ok(RelName(RelTag { spc, db, rel, fork }))
    }
}

/// Carries the verb out.
pub fn run(arguments: &Page) -> Result<()> {
    let Verb::Get(get) = &arguments.verb;
    let mut stream = get.from.open()?;
    let rel = get.from.rel();
    let request = Request { header: as_of(get.lsn), query: Query::Page { rel, block: get.block } };
    let bytes = stream.ask(&request)?;
    let response = bytes.response()?;
    ensure!(response.answers(&request), "the server answered another request");
    let page = match response.answer {
        Answer::Page(page) => page,
        Answer::Error(text) => bail!("{text}"),
        other => bail!("the server answered {other:?}"),
    };
    let mut out = std::io::stdout().lock();
    if get.raw {
        out.write_all(page).context("cannot write the page")?;
    } else {
        writeln!(
            out,
            "# {rel} block {}: LSN {}, checksum {:04x}",
            get.block,
            page::lsn(page),
            page::checksum(page, get.block)
        )?;
        dump(&mut out, page)?;
    }
    out.flush().context("cannot write the page")
}

/// The page exactly as of `lsn`, waiting for it to arrive; or the newest, without waiting.
fn as_of(lsn: Option<Lsn>) -> RequestHeader {
    match lsn {
        Some(lsn) => RequestHeader { id: 1, request_lsn: lsn, not_modified_since: lsn },
        None => RequestHeader { id: 1, request_lsn: Lsn::MAX, not_modified_since: Lsn(1) },
    }
}

/// Sixteen bytes a line; lines of zeros that follow each other become one `*`.
fn dump(out: &mut impl Write, page: &[u8]) -> std::io::Result<()> {
    let mut skipping = false;
    for (number, line) in page.chunks(16).enumerate() {
        if line.iter().all(|byte| *byte == 0) {
            if !skipping {
                writeln!(out, "*")?;
            }
            skipping = true;
            continue;
        }
        skipping = false;
        write!(out, "{:04x} ", number * 16)?;
        for byte in line {
            write!(out, " {byte:02x}")?;
        }
        let text: String =
            line.iter().map(|b| if (0x20..0x7f).contains(b) { char::from(*b) } else { '.' }).collect();
        writeln!(out, "  {text}")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relation_is_named_by_oids_and_fork() {
        let parsed = |text: &str| text.parse::<RelName>().map(|name| name.0);
        assert_eq!(parsed("1663/5/16384"), Ok(RelTag { spc: 1663, db: 5, rel: 16384, fork: Fork::Main }));
        assert_eq!(parsed("1663/5/16384_vm"), Ok(RelTag { spc: 1663, db: 5, rel: 16384, fork: Fork::Vm }));
        for wrong in ["", "1663/5", "1663/5/16384/1", "base/5/16384", "1663/5/16384_x", "1663/5/99999999999"]
        {
            assert!(parsed(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_dump_shows_bytes_and_folds_zeros() {
        let mut page = vec![0; 64];
        page[..3].copy_from_slice(b"abc");
        let mut out = Vec::new();
        dump(&mut out, &page).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert_eq!(text.lines().count(), 2);
        assert!(text.starts_with("0000  61 62 63 00") && text.contains("abc..."));
    }
}
