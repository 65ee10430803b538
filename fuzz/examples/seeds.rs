//! Writes seeds for the fuzzers: `seeds DIRECTORY CLUSTER…`, each cluster a data directory of a stopped Postgres.
//!
//! From WAL it takes the shortest record of every kind, for redo with the page as it was before. What is not in a cluster is made here.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use codec::index_part::{Extension, IndexPart};
use codec::pagestream::{Query, Request, RequestHeader, Version};
use codec::wal::record::Record;
use codec::wal::stream::WalDecoder;
use codec::{control, tar_out};
use fuzz::{put_record, put_short};
use model::{BLOCK_SIZE, Fork, Lsn, PgMajor, RelTag, Tli};

/// Longer ones make the fuzzer slow.
const LONGEST: usize = 3200;

fn main() {
    let mut arguments = std::env::args().skip(1).map(PathBuf::from);
    let out = arguments.next().expect("usage: seeds DIRECTORY CLUSTER...");
    let mut seeds = Seeds { out, shortest: BTreeMap::new() };
    for cluster in arguments {
        from_cluster(&cluster, &mut seeds);
    }
    indexes(&mut seeds);
    requests(&mut seeds);
    conversations(&mut seeds);
    texts(&mut seeds);
    archives(&mut seeds);
    seeds.write();
}

/// By target and name, the shortest of each.
struct Seeds {
    out: PathBuf,
    shortest: BTreeMap<(&'static str, String), Vec<u8>>,
}

impl Seeds {
    fn add(&mut self, target: &'static str, name: impl Into<String>, bytes: Vec<u8>) {
        if bytes.len() > LONGEST {
            return;
        }
        let seed = self.shortest.entry((target, name.into())).or_insert_with(|| bytes.clone());
        if bytes.len() < seed.len() {
            *seed = bytes;
        }
    }

    fn write(self) {
        for ((target, name), bytes) in self.shortest {
            let directory = self.out.join(target);
            std::fs::create_dir_all(&directory).expect("a directory for seeds");
            std::fs::write(directory.join(name), bytes).expect("a seed");
        }
    }
}

fn from_cluster(cluster: &Path, seeds: &mut Seeds) {
    let read =
        |path: &str| std::fs::read(cluster.join(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
    let file = read("global/pg_control");
    let control = control::ControlFile::parse(&file).expect("the cluster's control file");
    let pg = control.pg;
    let major = PgMajor::ALL.iter().position(|known| *known == pg).expect("one of them") as u8;
    let name = format!("{pg}");
    let covered = &file[..if pg == PgMajor::V18 { 292 } else { 288 }];
    seeds.add("pg_control", &name, [&[0, major], covered].concat());
    seeds.add("cluster_files", format!("checkpoint-{name}"), [&[0, major], &control.checkpoint[..]].concat());
    let map = read("global/pg_filenode.map");
    let covered = if pg <= PgMajor::V15 { 504 } else { 520 };
    seeds.add("cluster_files", format!("relmap-{name}"), [&[1, major], &map[..covered]].concat());

    // A cluster, as small as one can be.
    let mut import = vec![1, major];
    import.extend([0, 0, 1, 0]);
    put_short(&file[..292], &mut import).expect("short");
    import.extend([2, 0]);
    put_short(&map[8..40], &mut import).expect("short");
    seeds.add("import", format!("stopped-{name}"), import.clone());
    import[0] = 0;
    import.extend([3, 0, 0, 0]);
    // A relation of two segments and a fork, an SLRU, a prepared transaction, origins.
    for (kind, number, pages) in [(12, 0, 1), (12, 16, 1), (12, 4, 2), (5, 0, 1), (9, 1, 1)] {
        import.extend([kind, number]);
        import.extend((pages * 1024u16).to_le_bytes());
        import.extend([2, 0, 1, 2]);
    }
    import.extend([6, 9, 3, 0, 1, 2, 3, 7, 0, 16, 0, 1, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0]);
    seeds.add("import", format!("backup-{name}"), import);
    records(cluster, pg, major, control.wal_segment_size, seeds);
}

fn records(cluster: &Path, pg: PgMajor, major: u8, segment_size: model::WalSegmentSize, seeds: &mut Seeds) {
    let mut segments: Vec<PathBuf> = std::fs::read_dir(cluster.join("pg_wal"))
        .expect("the cluster's WAL")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.file_name().is_some_and(|name| name.len() == 24))
        .collect();
    segments.sort();
    let number = |path: &Path| {
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        let part = |range| u64::from_str_radix(&name[range], 16).expect("a segment's name");
        part(8..16) << 32 | part(16..24) * segment_size.bytes()
    };
    let Some(first) = segments.first() else { return };
    let mut at = Lsn(number(first));
    let mut decoder = WalDecoder::at_first_record_after(pg, segment_size, Tli(1), at);
    let mut pages: BTreeMap<(RelTag, u32), Box<[u8; BLOCK_SIZE]>> = BTreeMap::new();
    for path in segments {
        let bytes = std::fs::read(&path).expect("a segment");
        if number(&path) != at.0 || decoder.feed(at, &bytes).is_err() {
            break;
        }
        at = at.add(bytes.len() as u64);
        while let Ok(Some(raw)) = decoder.next() {
            let record = raw.parse().expect("Postgres wrote it");
            record_seeds(&record, raw.bytes, major, &pages, seeds);
            for block in &record.blocks {
                let page = pages.entry((block.rel, block.block)).or_insert_with(|| Box::new([0; BLOCK_SIZE]));
                if redo::apply(&record, block, raw.end, page).is_err() {
                    pages.remove(&(block.rel, block.block));
                }
            }
        }
    }
}

fn record_seeds(
    record: &Record<'_>,
    bytes: &[u8],
    major: u8,
    pages: &BTreeMap<(RelTag, u32), Box<[u8; BLOCK_SIZE]>>,
    seeds: &mut Seeds,
) {
    // A kind of record is a seed once, but for those that differ between majors.
    let kind = format!("{}-{:02x}", record.rmgr, record.info & 0xF0).replace('/', "");
    seeds.add("wal_record", &kind, [&[major], bytes].concat());
    let mut ingest = vec![major, 0, 0];
    if put_record(record, &mut ingest).is_some() {
        seeds.add("ingest", &kind, ingest);
    }
    for (which, block) in record.blocks.iter().enumerate() {
        if block.image.is_some_and(|image| image.apply) || !redo::knows(record.rmgr, record.info) {
            continue;
        }
        let mut redo = vec![major, 0];
        match pages.get(&(block.rel, block.block)) {
            Some(page) if !block.will_init => {
                // The page around its longest run of zeros.
                let (from, to) = longest_hole(&page[..]);
                redo[1] = 1;
                put_short(&page[..from], &mut redo).expect("short");
                put_short(&page[to..], &mut redo).expect("short");
            }
            None if !block.will_init => continue,
            _ => {}
        }
        redo.push(which as u8);
        if put_record(record, &mut redo).is_some() {
            seeds.add("redo", format!("{kind}-{}", block.id), redo);
        }
    }
}

fn longest_hole(page: &[u8]) -> (usize, usize) {
    let (mut best, mut from) = ((0, 0), 0);
    for (at, byte) in page.iter().chain([&1]).enumerate() {
        if *byte != 0 {
            if at - from > best.1 - best.0 {
                best = (from, at);
            }
            from = at + 1;
        }
    }
    best
}

fn indexes(seeds: &mut Seeds) {
    const PLAIN: &str = r#"{"version":15,"layer_metadata":{
"000000000000000000000000000000000000-FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF__0000000002000000":{"file_size":8036352,"generation":1},
"000000000000000000000000000000000000-FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF__0000000002000001-0000000012000001":{"file_size":268443648,"generation":3,"shard":"0104"}},
"disk_consistent_lsn":"0/12000000","metadata_bytes":{"disk_consistent_lsn":"0/12000000","prev_record_lsn":"0/11FFFF68","ancestor_timeline":null,
"ancestor_lsn":"0/0","latest_gc_cutoff_lsn":"0/2000000","initdb_lsn":"0/2000000","pg_version":17},"lineage":{},
"gc_compaction":{"last_completed_lsn":"0/10"},"gc_blocking":{"started_at":"2024-07-19T09:00:00.123","reasons":["Manual"]}}"#;
    const OURS: &str = r#"{"format":1,"sequence":7,"wal_flavour":"vanilla","not_portable":["vanilla_wal","moon_phase"],
"system_identifier":"18446744073709551614","wal_segment_size":16777216,"data_checksums":true,"tli_history":[{"tli":1,"from":"0/2000028"}],
"readable_from":"0/2000100","wal_objects":[{"tli":1,"start":"0/12000000","end":"0/12001000","generation":3,"size":517}],
"source":{"conninfo":"host=db user=r","slot":"palimpsest"},
"restores":[{"nonce":"f00","lsn":"0/3000000","tli":2,"followed":false}],
"leases":[{"lsn":"0/3000000","valid_until":"2026-05-01T00:00:00"}],"named_lsns":{"x":"0/3000000","y":{"lsn":"0/3000008","created_at":"2026-04-01T00:00:00"}}}"#;
    let mut index = IndexPart::from_json(PLAIN.as_bytes()).expect("an index");
    seeds.add("index_part", "plain", PLAIN.into());
    match serde_json::from_str::<Extension>(OURS) {
        Ok(extension) => index.palimpsest = Some(extension),
        Err(error) => panic!("our part of the index: {error}"),
    }
    let name = index.layer_metadata.keys().next().expect("two layers").clone();
    let layer = index.layer_metadata.get_mut(&name).expect("it is there");
    layer.palimpsest = serde_json::from_str(
        r#"{"index_start":900,"index_root":80,"checksums_start":899,"crc32c":3735928559,"commits":[5,9]}"#,
    )
    .expect("details of a layer");
    seeds.add("index_part", "ours", index.to_json());
    let legacy = [
        0xc8, 0x17, 0x76, 0x50, 0, 0x36, 0, 4, 0, 0, 0, 0, 0x12, 0, 0, 0, 1, 0, 0, 0, 0, 0x11, 0xff, 0xff,
        0x68,
    ];
    seeds.add("cluster_files", "legacy-metadata", [&[8, 0][..], &legacy, &[0; 487]].concat());
}

fn requests(seeds: &mut Seeds) {
    let rel = RelTag { spc: 1663, db: 5, rel: 16384, fork: Fork::Main };
    let header = RequestHeader { id: 7, request_lsn: Lsn(0x2000), not_modified_since: Lsn(0x1000) };
    let queries = [
        ("exists", Query::Exists(rel)),
        ("size", Query::Size(rel)),
        ("page", Query::Page { rel, block: 3 }),
        ("database", Query::DbSize { db: 5 }),
        ("slru", Query::SlruSegment { kind: 0, segment: 0 }),
    ];
    let mut streams = [vec![3], vec![7]];
    for (name, query) in queries {
        let request = Request { header, query };
        for (stream, version) in streams.iter_mut().zip([Version::V2, Version::V3]) {
            let mut bytes = Vec::new();
            request.encode(version, &mut bytes);
            seeds.add("pagestream", format!("{name}-{version:?}"), bytes.clone());
            stream.push(bytes.len() as u8);
            stream.extend(&bytes);
        }
    }
    for (name, stream) in ["pagestream-2", "pagestream-3"].into_iter().zip(streams) {
        seeds.add("session", name, stream);
    }
}

/// What clients and sources say.
fn conversations(seeds: &mut Seeds) {
    let mut startup = vec![1];
    put_short(b"user\0me\0application_name\0psql\0\0", &mut startup).expect("short");
    startup.extend(b"Q\0\0\0\x0dshow all\0X\0\0\0\x04");
    seeds.add("session", "startup", startup);
    seeds.add(
        "session",
        "tls-and-cancel",
        b"\0\0\0\0\x08\x04\xd2\x16\x2f\0\0\0\x10\x04\xd2\x16\x2e\0\0\0\0\0\0\0\0".to_vec(),
    );
    for (number, arguments) in
        ["", "", "latest --replica", "0/1800 0/17F0", "0/1800", "id", "x = 1", ""].iter().enumerate()
    {
        let mut queries = vec![2];
        for kind in [0, 1] {
            queries.extend([kind, number as u8, u8::from(number == 5)]);
            put_short(arguments.as_bytes(), &mut queries).expect("short");
        }
        queries.extend([2, 3]);
        seeds.add("session", format!("query-{number}"), queries);
    }

    let row = |fields: &[&str]| {
        let mut row = (fields.len() as u16).to_be_bytes().to_vec();
        for field in fields {
            row.extend((field.len() as u32).to_be_bytes());
            row.extend(field.bytes());
        }
        row
    };
    let say = |what: u8, messages: &[(u8, Vec<u8>)]| {
        let mut seed = vec![what, 3];
        for (tag, body) in messages {
            seed.push(*tag);
            put_short(body, &mut seed).expect("short");
        }
        seed
    };
    let result = |fields: &[&str]| {
        vec![(b'T', vec![0, 0]), (b'D', row(fields)), (b'C', b"SELECT\0".to_vec()), (b'Z', b"I".to_vec())]
    };
    let identity = [result(&["7", "2", "0/3000000", ""]), result(&["170004"]), result(&["16MB"])].concat();
    let history = result(&["00000002.history", "1\t0/2000000\tno recovery target specified\n"]);
    let refused = vec![(b'E', b"SERROR\0C42710\0Mexists\0\0".to_vec()), (b'Z', b"I".to_vec())];
    seeds.add("source", "identify", say(12, &[identity, history, refused].concat()));
    let wal = [&b"w\0\0\0\0\0\0\0\x08\0\0\0\0\0\0\0\x0b\0\0\0\0\0\0\0\0"[..], b"wal"].concat();
    let keepalive = b"k\0\0\0\0\0\0\0\x0b\0\0\0\0\0\0\0\0\x01".to_vec();
    let stream = [
        vec![(b'W', vec![0, 0, 0]), (b'd', wal), (b'd', keepalive), (b'c', vec![])],
        result(&["2", "0/2000000"]),
    ];
    seeds.add("source", "stream", say(13, &stream.concat()));
    let mut backup = result(&["0/2000028", "1"]);
    backup.pop();
    backup.extend(result(&["16400", "/elsewhere", "7"]));
    backup.pop();
    backup.push((b'H', vec![0, 0, 0]));
    for part in [&b"nbase.tar\0\0"[..], b"dabc", b"p\0\0\0\0\0\0\0\x01", b"m", b"d{}"] {
        backup.push((b'd', part.to_vec()));
    }
    backup.push((b'c', vec![]));
    backup.extend(result(&["0/2000100", "1"]));
    seeds.add("source", "backup", say(14, &backup));
    seeds.add("source", "query", say(15, &result(&["1"])));
    let authentication =
        [(b'R', b"\0\0\0\x05salt".to_vec()), (b'R', b"\0\0\0\x0aSCRAM-SHA-256\0\0".to_vec())];
    seeds.add("source", "authentication", say(8, &authentication));
}

fn texts(seeds: &mut Seeds) {
    let key = "000000067F00000005000040000000000003";
    let layer = format!("{key}-FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF__0000000002000001-0000000012000001");
    let tenant = "11111111111111111111111111111111";
    let texts = [
        "1\t0/2000000\tno recovery target specified\n3\t0/3000000\tx\n".into(),
        "16/B374D848".into(),
        key.into(),
        layer.clone(),
        format!("{layer}-v1-00000003"),
        tenant.into(),
        format!("{tenant}-0104"),
        "0104".into(),
        "00000003".into(),
        "START WAL LOCATION: 0/2000028 (file 000000010000000000000002)\nCHECKPOINT LOCATION: 0/2000060\nBACKUP METHOD: streamed\n\
         BACKUP FROM: primary\nSTART TIME: 2026-01-01 00:00:00 UTC\nLABEL: x\nSTART TIMELINE: 1\n"
            .into(),
        "16400 /else\\\nwhere\n16401 pg_tblspc/16401\n".into(),
        "00000003000002EE".into(),
        "17".into(),
    ];
    for (kind, text) in texts.iter().enumerate() {
        seeds.add("texts", format!("{kind}"), [&[kind as u8], text.as_bytes()].concat());
    }
    let timeline = format!("tenants/{tenant}/timelines/22222222222222222222222222222222");
    let requests = [
        format!("pagestream_v3 {tenant} 22222222222222222222222222222222"),
        format!("basebackup {tenant} 22222222222222222222222222222222 0/8 --gzip --replica;"),
        "host=db.example port = 5433 user='re\\'pl' password='a b\\\\c' dbname=x application_name=y".into(),
        "postgresql://re%27pl:a%20b@[::1]:5433,other/x?connect_timeout=10&passfile=%2Fx".into(),
        "2026-01-01T23:34:05.5-03:30".into(),
        "1h 30m".into(),
        "64MiB".into(),
        "s3://bucket/prefix?endpoint=http://127.0.0.1:9000&region=x".into(),
        format!("{timeline}/{layer}-00000003"),
        format!("{timeline}/index_part.json-00000003"),
        "pg_tblspc/16384/PG_15_202209061/5/16385_vm.1".into(),
    ];
    for (number, text) in requests.iter().enumerate() {
        let kind = [0u8, 0, 1, 1, 2, 3, 4, 5, 6, 6, 7][number];
        seeds.add("requests", format!("{number}"), [&[kind], text.as_bytes()].concat());
    }
    let manifest = "{ \"PostgreSQL-Backup-Manifest-Version\": 2,\n\"System-Identifier\": 7,\n\"Files\": [\n\
{ \"Path\": \"backup_label\", \"Size\": 3, \"Last-Modified\": \"2026-01-01 00:00:00 GMT\", \"Checksum-Algorithm\": \"CRC32C\", \"Checksum\": \"01020304\" },\n\
{ \"Encoded-Path\": \"ff\", \"Size\": 0, \"Last-Modified\": \"x\" }\n],\n\"WAL-Ranges\": [\n\
{ \"Timeline\": 1, \"Start-LSN\": \"0/2000028\", \"End-LSN\": \"0/2000100\" }\n],\n";
    seeds.add("manifest", "2", [&[21], manifest.as_bytes()].concat());
}

fn archives(seeds: &mut Seeds) {
    let mut archive = vec![0, 40];
    archive.extend(tar_out::directory("base", 0o700, 0));
    archive.extend(tar_out::file("PG_VERSION", 3, 0));
    archive.extend(b"17\n");
    archive.extend(tar_out::padding(3));
    archive.extend(tar_out::symlink("pg_tblspc/16400", "/elsewhere", 0));
    archive.extend([0; 1024]);
    seeds.add("tar", "whole", archive);
    // Forms of `Input::archive`: a pax header with a path, then the file that it names; a long name of GNU's; a long link.
    let mut forms = vec![1, 90];
    for (form, content) in
        [(0x82u8, &b"11 path=ab\n"[..]), (0x80, b"abc"), (0x83, b"long\0"), (0x84, b"link\0"), (0x85, b"")]
    {
        forms.extend([form, 1, b'x']);
        put_short(content, &mut forms).expect("short");
    }
    seeds.add("tar", "extended", forms);
}
