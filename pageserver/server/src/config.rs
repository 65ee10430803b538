//! The settings: one typed struct, read once at start.
//!
//! Sources, weakest first: the defaults, a YAML file (`--config`), the environment (`PALIMPSEST_<NAME>`), flags and `-c name=value`.
//! Every source is text that goes through the same parser, so a value means the same wherever it comes from.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, CommandFactory, FromArgMatches, Parser, ValueEnum};
use engine::bucket::BucketUrl;
use engine::collect::KeepHistory;
use engine::compact::CompactionPolicy;
use engine::tenant::Maintenance;

use crate::consumption::sink::{Endpoint, Sink};
use crate::tls::TlsFiles;

/// What stands before a setting's name in the environment.
const ENVIRONMENT_PREFIX: &str = "PALIMPSEST_";

/// Every setting of a pageserver.
#[derive(Args, Clone, Debug)]
pub struct Config {
    /// Working directory: lock file and cache. It may be empty at every start; the bucket holds what matters.
    #[arg(long, short = 'D', value_name = "DIR", default_value = "palimpsest-data")]
    pub workdir: PathBuf,

    /// Where history is kept: `file:///directory` or `s3://bucket/prefix`. Credentials of S3 come from the usual `AWS_*` environment.
    #[arg(long, value_name = "URL", default_value = "file:///var/lib/palimpsest/bucket")]
    pub bucket: String,

    /// Endpoint of an S3 that is not Amazon's, e.g. `http://127.0.0.1:7070`; buckets are then addressed by path. Empty: Amazon's own.
    #[arg(long, value_name = "URL", default_value = "")]
    pub s3_endpoint: String,

    /// Region of the S3 bucket. Empty: as `AWS_REGION` and the like say, with an endpoint of one's own `us-east-1`.
    #[arg(long, value_name = "REGION", default_value = "")]
    pub s3_region: String,

    /// Number of this pageserver, as `/v1/status` answers it.
    #[arg(long, value_name = "NUMBER", default_value = "1")]
    pub id: u64,

    /// Where computes connect: the libpq page service.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:64000")]
    pub listen_pg_addr: SocketAddr,

    /// Where the HTTP API and `/metrics` are served.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9898")]
    pub listen_http_addr: SocketAddr,

    /// Where an operator attaches tenants and makes timelines (gRPC). Empty: the server is on its own, and claims every tenant in the bucket at start.
    #[arg(long, value_name = "ADDRESS", default_value = "")]
    pub listen_control_addr: String,

    /// File with the token that the operator must send. Anybody who has it can delete all history; for development.
    #[arg(long, value_name = "FILE", default_value = "")]
    pub control_token_file: String,

    /// Certificate of the control API, with those that lead to a root: PEM. Read again when it changes, as are the next two.
    #[arg(long, value_name = "FILE", default_value = "")]
    pub control_tls_cert_file: String,

    /// Its key.
    #[arg(long, value_name = "FILE", default_value = "")]
    pub control_tls_key_file: String,

    /// Roots of the certificates that operators must show.
    #[arg(long, value_name = "FILE", default_value = "")]
    pub control_tls_ca_file: String,

    /// The DNS name that an operator's certificate must be made out to.
    #[arg(long, value_name = "NAME", default_value = "")]
    pub control_client_name: String,

    /// Whether the bucket must create objects only where there are none: `required`, or `best-effort` for stores that cannot, where only the
    /// operator prevents two owners.
    #[arg(long, value_name = "HOW", default_value = "required")]
    pub conditional_writes: ConditionalWrites,

    /// Certificate of the libpq service and of HTTP, with those that lead to a root: PEM. Without TLS then nobody is served. Empty: no TLS.
    #[arg(long, value_name = "FILE", default_value = "")]
    pub tls_cert_file: String,

    /// Its key.
    #[arg(long, value_name = "FILE", default_value = "")]
    pub tls_key_file: String,

    /// File or directory of Ed25519 public keys in PEM form: clients need a token then that one of them verifies. Read again when it changes. Empty:
    /// anybody may read everything.
    #[arg(long, value_name = "PATH", default_value = "")]
    pub jwt_public_key_dir: String,

    /// Name of the pod that the server runs in: claims in the bucket say it.
    #[arg(long, value_name = "NAME", default_value = "")]
    pub pod_name: String,

    /// UID of the pod.
    #[arg(long, value_name = "UID", default_value = "")]
    pub pod_uid: String,

    /// libpq connections served at once; further ones are refused. Each costs a task and two small buffers.
    #[arg(long, value_name = "COUNT", default_value = "2000")]
    pub max_connections: usize,

    /// A libpq connection that sends nothing for so long is closed.
    #[arg(long, value_name = "DURATION", default_value = "10m")]
    pub idle_timeout: Span,

    /// How long a read may wait for WAL that has not arrived yet.
    #[arg(long, value_name = "DURATION", default_value = "300s")]
    pub wait_lsn_timeout: Span,

    /// Memory for changes that are not in layers yet, of all timelines together. When it is short, layers are smaller and cost more to merge, and sources have to
    /// wait; a timeline that is written hard wants twice `layer_size`.
    #[arg(long, value_name = "BYTES", default_value = "512MiB")]
    pub tail_memory: ByteCount,

    /// Changes of one timeline that are gathered into one layer.
    #[arg(long, value_name = "BYTES", default_value = "128MiB")]
    pub layer_size: ByteCount,

    /// History of so long is kept, by the times of commits …
    #[arg(long, value_name = "DURATION", default_value = "7d")]
    pub pitr_interval: Span,

    /// … and of so many bytes of WAL; whichever keeps more. A tenant may have its own of both.
    #[arg(long, value_name = "BYTES", default_value = "64MiB")]
    pub gc_horizon: ByteCount,

    /// How often history that is older may be given up.
    #[arg(long, value_name = "DURATION", default_value = "10m")]
    pub gc_period: Span,

    /// How often timelines with new layers are looked at. Zero: nothing is compacted or collected.
    #[arg(long, value_name = "DURATION", default_value = "2s")]
    pub compaction_period: Span,

    /// Timelines that are compacted at once.
    #[arg(long, value_name = "COUNT", default_value = "2")]
    pub compaction_jobs: usize,

    /// Layers straight from the tail that a read may meet at most: with so many, ingest waits for compaction.
    #[arg(long, value_name = "COUNT", default_value = "6")]
    pub max_l0_layers: usize,

    /// Objects in the bucket that nothing names are deleted when they are so old.
    #[arg(long, value_name = "DURATION", default_value = "1d")]
    pub orphan_grace: Span,

    /// Memory for parts of layers that were read.
    #[arg(long, value_name = "BYTES", default_value = "256MiB")]
    pub cache_memory: ByteCount,

    /// Of these, memory for the indexes of layers, which what is read never pushes out. At most half counts.
    #[arg(long, value_name = "BYTES", default_value = "64MiB")]
    pub cache_index_memory: ByteCount,

    /// Disk for parts of layers that were read or written. It is emptied at every start.
    #[arg(long, value_name = "BYTES", default_value = "20GiB")]
    pub cache_disk: ByteCount,

    /// Above so much of its file system in use, by whomever, in hundredths, the cache on disk gives way …
    #[arg(long, value_name = "PERCENT", default_value = "80")]
    pub cache_disk_most_used: u8,

    /// … and below so much of it free.
    #[arg(long, value_name = "BYTES", default_value = "2GiB")]
    pub cache_disk_least_free: ByteCount,

    /// How often it is saved to the bucket what of a tenant is in the cache, for the next server that has it. 0s: never.
    #[arg(long, value_name = "DURATION", default_value = "10m")]
    pub heatmap_period: Span,

    /// How fast the cache is filled with what the last server of a tenant had, in bytes a second, while nobody waits for the bucket. 0: not at all.
    #[arg(long, value_name = "BYTES", default_value = "64MiB")]
    pub warm_up_rate: ByteCount,

    /// WAL goes to the bucket in objects of this size at most …
    #[arg(long, value_name = "BYTES", default_value = "8MiB")]
    pub wal_seal_bytes: ByteCount,

    /// … or so long after the first commit in it: what losing the source and this server together can cost. 200ms to 10m.
    #[arg(long, value_name = "DURATION", default_value = "5s")]
    pub wal_seal_age: Span,

    /// WAL without a commit may wait so long.
    #[arg(long, value_name = "DURATION", default_value = "10m")]
    pub wal_idle_seal_age: Span,

    /// How often the source is told what it may forget, at most, unless it waits for that.
    #[arg(long, value_name = "DURATION", default_value = "60s")]
    pub wal_report_every: Span,

    /// How long a leased LSN stays readable after its lease was asked for or renewed.
    #[arg(long, value_name = "DURATION", default_value = "10m")]
    pub lsn_lease_length: Span,

    /// Consecutive `GetPage` requests of a connection that are answered together at most.
    #[arg(long, value_name = "COUNT", default_value = "32")]
    pub max_batch_size: usize,

    /// File of passwords of WAL sources, in the form of Postgres' `.pgpass`. Empty: only `PGPASSWORD` and the connection string.
    #[arg(long, value_name = "FILE", default_value = "")]
    pub passfile: String,

    /// Directory of files that hold the password of a WAL source each, named by `credentials=` in a connection string: a Secret that is mounted. `ca.crt`,
    /// `tls.crt` and `tls.key` in it are the roots of sources, and our own certificate and key, where a connection string names no others.
    #[arg(long, value_name = "DIRECTORY", default_value = "")]
    pub credentials_dir: String,

    /// Directory of backups and of clusters that were shut down: each may be imported by its path below. Empty: none.
    #[arg(long, value_name = "DIRECTORY", default_value = "")]
    pub base_dir: String,

    /// Timelines, and tenants, that have gauges of their own on `/metrics` at most: the largest. All count in the sums.
    #[arg(long, value_name = "COUNT", default_value = "1000")]
    pub timeline_gauges: usize,

    /// How often the synthetic size of each tenant is made anew, which is what its history costs.
    #[arg(long, value_name = "DURATION", default_value = "10m")]
    pub synthetic_size_calculation_interval: Span,

    /// Where consumption is told, which a bill is made of: `http://` or `https://` to be posted to, `file:///path` to be appended to. Empty: nowhere.
    #[arg(long, value_name = "URL", default_value = "")]
    pub metric_collection_endpoint: String,

    /// How often.
    #[arg(long, value_name = "DURATION", default_value = "10m")]
    pub metric_collection_interval: Span,

    /// File of the roots of the endpoint's certificate: PEM. Empty: the system's.
    #[arg(long, value_name = "FILE", default_value = "")]
    pub metric_collection_ca_file: String,

    /// File with a bearer token for the endpoint. Empty: none is sent.
    #[arg(long, value_name = "FILE", default_value = "")]
    pub metric_collection_token_file: String,

    /// After SIGTERM or SIGINT: time to flush and upload before the process ends anyway. Nothing acknowledged is lost either way.
    #[arg(long, value_name = "DURATION", default_value = "10s")]
    pub shutdown_timeout: Span,

    /// Log lines as `text` or `json`, on standard error.
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub log_format: LogFormat,

    /// What is logged: a level, or directives such as `info,server::source=debug`.
    #[arg(long, value_name = "FILTER", default_value = "info")]
    pub log_filter: String,
}

/// Whether a bucket must have conditional writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ConditionalWrites {
    /// Nothing is attached without them.
    Required,
    /// A bucket without them is used all the same.
    BestEffort,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// A duration with a text form such as `10s`, `1h 30m`, `200ms`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

impl FromStr for Span {
    type Err = humantime::DurationError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        humantime::parse_duration(text).map(Span)
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_duration(self.0).fmt(f)
    }
}

/// A count of bytes with a text form such as `64MiB`, `8kB` or `8192`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteCount(pub u64);

/// Units of [`ByteCount`], largest first, so that printing finds the largest that divides.
const UNITS: [(&str, u64); 8] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
    ("B", 1),
];

impl FromStr for ByteCount {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let factor = match unit.trim() {
            "" => Some(1),
            unit => UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)).map(|(_, factor)| *factor),
        };
        number
            .parse::<u64>()
            .ok()
            .zip(factor)
            .and_then(|(number, factor)| number.checked_mul(factor))
            .map(ByteCount)
            .ok_or_else(|| "expected a number of bytes such as 64MiB, 8kB or 8192".into())
    }
}

impl fmt::Display for ByteCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, factor) = UNITS
            .iter()
            .find(|(_, factor)| self.0 >= *factor && self.0.is_multiple_of(*factor))
            .unwrap_or(&("B", 1));
        write!(f, "{}{name}", self.0 / factor)
    }
}

/// The command line.
#[derive(Parser, Debug)]
#[command(
    name = "pageserver",
    version,
    about = "Follows a Postgres and serves any page of it as of any LSN, from a bucket",
    after_help = "Every setting may also stand in the file, or in the environment as PALIMPSEST_<NAME>, e.g. PALIMPSEST_LISTEN_PG_ADDR.\n\
                  Flags and -c win over the environment, that over the file, that over the defaults.",
    args_override_self = false
)]
struct CommandLine {
    /// A YAML file of settings; `pageserver config` prints one with the defaults.
    #[arg(long = "config", value_name = "FILE", env = "PALIMPSEST_CONFIG")]
    file: Option<PathBuf>,

    /// One setting by name, e.g. `-c idle_timeout=5m`. May be repeated.
    #[arg(short = 'c', value_name = "NAME=VALUE")]
    set: Vec<String>,

    #[command(flatten)]
    config: Config,

    #[command(subcommand)]
    verb: Option<VerbName>,
}

#[derive(clap::Subcommand, Clone, Copy, Debug)]
enum VerbName {
    /// Print every setting with its meaning and default, as a file to start from.
    Config,
    /// Have the server of this working directory emptied by its operator: for what a pod does before it stops.
    Drain {
        /// Return only when nothing is attached any more.
        #[arg(long)]
        wait: bool,
        /// Give up waiting after so long, with exit status 1.
        #[arg(long, value_name = "DURATION", default_value = "10m")]
        deadline: Span,
    },
}

/// What the command line asks for.
#[derive(Debug)]
pub enum Verb {
    /// Serve, with these settings. The strings are complaints that do not prevent it, to be logged.
    Serve(Box<Config>, Vec<String>),
    /// Have the server of this working directory emptied; wait for it so long, or not at all.
    Drain(PathBuf, Option<Duration>),
    /// Print this and be done.
    Print(String),
}

/// Why settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Flags or a value that do not parse; also how `--help` and `--version` end.
    #[error(transparent)]
    Usage(#[from] clap::Error),
    /// The file cannot be read.
    #[error("cannot read settings from {path}")]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not a YAML mapping of names to plain values.
    #[error("settings file {path} is not a mapping of names to values: {reason}")]
    Malformed {
        /// Which file.
        path: PathBuf,
        /// What is wrong, with its line.
        reason: String,
    },
    /// A name that is no setting.
    #[error("unknown setting {name:?} in {place}")]
    Unknown {
        /// As written.
        name: String,
        /// Where it stands.
        place: String,
    },
    /// A `-c` without `=`.
    #[error("-c {0:?} is not of the form name=value")]
    NotAnAssignment(String),
    /// Values that parse, but cannot work.
    #[error("setting {name}: {reason}")]
    Invalid {
        /// Which setting.
        name: &'static str,
        /// What is wrong with it.
        reason: String,
    },
}

/// Reads the settings of a process from its arguments (the first is the program's name) and its environment.
pub fn read(
    arguments: impl IntoIterator<Item = String>,
    environment: &BTreeMap<String, String>,
) -> Result<Verb, ConfigError> {
    let matches = CommandLine::command().try_get_matches_from(arguments)?;
    let line = CommandLine::from_arg_matches(&matches)?;
    if let Some(VerbName::Config) = line.verb {
        return Ok(Verb::Print(default_file()));
    }

    let names = setting_names();
    let known = |name: &str, place: &dyn fmt::Display| {
        if names.iter().any(|known| known == name) {
            Ok(())
        } else {
            Err(ConfigError::Unknown { name: name.into(), place: place.to_string() })
        }
    };
    let mut complaints = Vec::new();

    let mut values: BTreeMap<String, String> = BTreeMap::new();
    if let Some(path) = &line.file {
        for (name, value) in read_file(path)? {
            known(&name, &path.display())?;
            values.insert(name, value);
        }
    }
    for (variable, value) in environment {
        let Some(name) = variable.strip_prefix(ENVIRONMENT_PREFIX).map(str::to_ascii_lowercase) else {
            continue;
        };
        if names.contains(&name) {
            values.insert(name, value.clone());
        } else if name != "config" {
            // Not refused: Kubernetes itself puts variables of this prefix there for a Service called palimpsest.
            complaints.push(format!("environment variable {variable} names no setting"));
        }
    }
    for name in &names {
        if matches.value_source(name) == Some(clap::parser::ValueSource::CommandLine) {
            let raw = matches.get_raw(name).and_then(|mut raw| raw.next_back()).unwrap_or_default();
            values.insert(name.clone(), raw.to_string_lossy().into_owned());
        }
    }
    for assignment in &line.set {
        let (name, value) =
            assignment.split_once('=').ok_or_else(|| ConfigError::NotAnAssignment(assignment.clone()))?;
        let name = name.trim().replace('-', "_");
        known(&name, &"-c")?;
        values.insert(name, value.trim().into());
    }

    let flags = values.into_iter().map(|(name, value)| format!("--{}={value}", name.replace('_', "-")));
    let config = CommandLine::try_parse_from(std::iter::once("pageserver".to_owned()).chain(flags))?.config;
    config.validate()?;
    if let Some(VerbName::Drain { wait, deadline }) = line.verb {
        return Ok(Verb::Drain(config.workdir, wait.then_some(deadline.0)));
    }
    Ok(Verb::Serve(Box::new(config), complaints))
}

impl Config {
    /// Where history is kept, with the separate settings of S3 put in.
    pub fn bucket_url(&self) -> BucketUrl {
        let mut url = self.bucket.parse().expect("was validated");
        if let BucketUrl::S3(location) = &mut url {
            if !self.s3_endpoint.is_empty() {
                location.endpoint = Some(self.s3_endpoint.clone());
                location.path_style = true;
                location.region.get_or_insert_with(|| "us-east-1".into());
            }
            if !self.s3_region.is_empty() {
                location.region = Some(self.s3_region.clone());
            }
        }
        url
    }

    /// Names and values of all settings, as `show` shows them.
    pub fn shown(&self) -> Vec<(String, String)> {
        let mut shown = vec![
            ("server_version".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
            ("id".into(), self.id.to_string()),
            ("bucket".into(), self.bucket.clone()),
            ("workdir".into(), self.workdir.display().to_string()),
            ("listen_control_addr".into(), self.listen_control_addr.clone()),
            ("pod_name".into(), self.pod_name.clone()),
            ("max_connections".into(), self.max_connections.to_string()),
            ("max_batch_size".into(), self.max_batch_size.to_string()),
            ("idle_timeout".into(), self.idle_timeout.to_string()),
            ("wait_lsn_timeout".into(), self.wait_lsn_timeout.to_string()),
            ("tail_memory".into(), self.tail_memory.to_string()),
            ("layer_size".into(), self.layer_size.to_string()),
            ("pitr_interval".into(), self.pitr_interval.to_string()),
            ("gc_horizon".into(), self.gc_horizon.to_string()),
            ("gc_period".into(), self.gc_period.to_string()),
            ("compaction_period".into(), self.compaction_period.to_string()),
            ("compaction_jobs".into(), self.compaction_jobs.to_string()),
            ("max_l0_layers".into(), self.max_l0_layers.to_string()),
            ("orphan_grace".into(), self.orphan_grace.to_string()),
            ("cache_memory".into(), self.cache_memory.to_string()),
            ("cache_index_memory".into(), self.cache_index_memory.to_string()),
            ("cache_disk".into(), self.cache_disk.to_string()),
            ("cache_disk_most_used".into(), self.cache_disk_most_used.to_string()),
            ("cache_disk_least_free".into(), self.cache_disk_least_free.to_string()),
            ("heatmap_period".into(), self.heatmap_period.to_string()),
            ("warm_up_rate".into(), self.warm_up_rate.to_string()),
            ("wal_seal_bytes".into(), self.wal_seal_bytes.to_string()),
            ("wal_seal_age".into(), self.wal_seal_age.to_string()),
            ("wal_idle_seal_age".into(), self.wal_idle_seal_age.to_string()),
            ("wal_report_every".into(), self.wal_report_every.to_string()),
        ];
        shown.sort();
        shown
    }

    /// Where consumption is told, if anywhere.
    pub fn consumption_sink(&self) -> Option<Sink> {
        let file = |path: &str| (!path.is_empty()).then(|| PathBuf::from(path));
        Some(Sink {
            endpoint: self.metric_collection_endpoint.parse().ok()?,
            roots: file(&self.metric_collection_ca_file),
            token: file(&self.metric_collection_token_file),
            timeout: Duration::from_mins(1),
        })
    }

    /// Where an operator is listened to; `None` for a server on its own.
    pub fn control_addr(&self) -> Option<SocketAddr> {
        self.listen_control_addr.parse().ok()
    }

    /// How history is kept small; `None` when it is not.
    pub fn maintenance(&self) -> Option<Maintenance> {
        let compaction = CompactionPolicy {
            l0_limit: self.max_l0_layers,
            layer_bytes: self.layer_size.0,
            shelf_bytes: self.layer_size.0.saturating_mul(4),
            little: (self.layer_size.0 / 128).max(64 << 10),
            ..CompactionPolicy::default()
        };
        let keep = KeepHistory { interval: self.pitr_interval.0, bytes: self.gc_horizon.0 };
        (!self.compaction_period.0.is_zero()).then_some(Maintenance {
            compaction,
            keep,
            period: self.compaction_period.0,
            collect_period: self.gc_period.0,
            at_once: self.compaction_jobs,
            grace: self.orphan_grace.0,
        })
    }

    /// Certificates of the control API, if it has any.
    pub fn control_tls(&self) -> Option<TlsFiles> {
        (!self.control_tls_cert_file.is_empty()).then(|| TlsFiles {
            certificate: self.control_tls_cert_file.clone().into(),
            key: self.control_tls_key_file.clone().into(),
            client_roots: Some(self.control_tls_ca_file.clone().into()),
            protocol: "h2",
        })
    }

    /// Certificates of a service for clients, if it has any.
    pub fn client_tls(&self, protocol: &'static str) -> Option<TlsFiles> {
        (!self.tls_cert_file.is_empty()).then(|| TlsFiles {
            certificate: self.tls_cert_file.clone().into(),
            key: self.tls_key_file.clone().into(),
            client_roots: None,
            protocol,
        })
    }

    /// The defaults.
    pub fn defaults() -> Config {
        CommandLine::try_parse_from(["pageserver"]).expect("the defaults parse, as a test shows").config
    }

    fn validate(&self) -> Result<(), ConfigError> {
        let invalid = |name, reason: &str| Err(ConfigError::Invalid { name, reason: reason.into() });
        if let Err(error) = self.bucket.parse::<BucketUrl>() {
            return invalid("bucket", &error.to_string());
        }
        if !(Duration::from_millis(200)..=Duration::from_mins(10)).contains(&self.wal_seal_age.0) {
            return invalid("wal_seal_age", "expected 200ms to 10m");
        }
        for (name, value) in [
            ("tail_memory", self.tail_memory),
            ("layer_size", self.layer_size),
            ("cache_memory", self.cache_memory),
            ("cache_disk", self.cache_disk),
            ("wal_seal_bytes", self.wal_seal_bytes),
        ] {
            // Below this nothing works; above it no machine is.
            if !(ByteCount(64 << 10)..=ByteCount(1 << 50)).contains(&value) {
                return invalid(name, "expected 64KiB to 1024TiB");
            }
        }
        if !(1..=100).contains(&self.cache_disk_most_used) {
            return invalid("cache_disk_most_used", "expected 1 to 100");
        }
        if !self.heatmap_period.0.is_zero() && self.heatmap_period.0 < Duration::from_secs(1) {
            return invalid("heatmap_period", "expected 0s, or 1s and more");
        }
        if self.synthetic_size_calculation_interval.0 < Duration::from_secs(1) {
            return invalid("synthetic_size_calculation_interval", "expected at least 1s");
        }
        if self.metric_collection_interval.0 < Duration::from_secs(1) {
            return invalid("metric_collection_interval", "expected at least 1s");
        }
        if !self.metric_collection_endpoint.is_empty()
            && let Err(error) = self.metric_collection_endpoint.parse::<Endpoint>()
        {
            return invalid("metric_collection_endpoint", &error);
        }
        if !(1..=1024).contains(&self.max_batch_size) {
            return invalid("max_batch_size", "expected 1 to 1024");
        }
        if self.compaction_jobs == 0 {
            return invalid("compaction_jobs", "expected at least 1");
        }
        if self.max_l0_layers <= CompactionPolicy::default().l0_merge {
            return invalid("max_l0_layers", "expected more layers than are merged at once");
        }
        if self.max_connections == 0 {
            return invalid("max_connections", "expected at least 1");
        }
        if self.listen_pg_addr.port() != 0 && self.listen_pg_addr == self.listen_http_addr {
            return invalid("listen_http_addr", "is the same as listen_pg_addr");
        }
        if !self.listen_control_addr.is_empty() {
            if let Err(error) = self.listen_control_addr.parse::<SocketAddr>() {
                return invalid("listen_control_addr", &error.to_string());
            }
            let parts = [
                &self.control_tls_cert_file,
                &self.control_tls_key_file,
                &self.control_tls_ca_file,
                &self.control_client_name,
            ];
            let given = parts.iter().filter(|part| !part.is_empty()).count();
            if given != 0 && given != parts.len() {
                return invalid(
                    "control_tls_cert_file",
                    "goes with control_tls_key_file, control_tls_ca_file and control_client_name",
                );
            }
            if (given == 0) == self.control_token_file.is_empty() {
                return invalid("control_token_file", "or control_tls_cert_file is needed, not both");
            }
        }
        if self.tls_cert_file.is_empty() != self.tls_key_file.is_empty() {
            return invalid("tls_cert_file", "goes with tls_key_file");
        }
        if self.conditional_writes == ConditionalWrites::BestEffort && self.listen_control_addr.is_empty() {
            return invalid("conditional_writes", "are required without an operator");
        }
        if let Err(error) = self.log_filter.parse::<tracing_subscriber::EnvFilter>() {
            return invalid("log_filter", &error.to_string());
        }
        Ok(())
    }
}

/// Names of all settings, as in the file: those of [`Config`]'s fields.
fn setting_names() -> Vec<String> {
    Config::augment_args(clap::Command::new("settings"))
        .get_arguments()
        .map(|argument| argument.get_id().to_string())
        .collect()
}

/// The settings of a YAML file, as text.
fn read_file(path: &Path) -> Result<BTreeMap<String, String>, ConfigError> {
    #[derive(serde::Deserialize)]
    #[serde(untagged)]
    enum Scalar {
        Bool(bool),
        Integer(i64),
        Float(f64),
        Text(String),
    }
    let text = std::fs::read_to_string(path)
        .map_err(|source| ConfigError::Unreadable { path: path.into(), source })?;
    let entries: Option<BTreeMap<String, Scalar>> = serde_saphyr::from_str(&text)
        .map_err(|error| ConfigError::Malformed { path: path.into(), reason: error.to_string() })?;
    let text_of = |scalar| match scalar {
        Scalar::Bool(value) => value.to_string(),
        Scalar::Integer(value) => value.to_string(),
        Scalar::Float(value) => value.to_string(),
        Scalar::Text(value) => value,
    };
    Ok(entries.unwrap_or_default().into_iter().map(|(name, value)| (name, text_of(value))).collect())
}

/// A settings file in which everything stands with its meaning and default, commented out.
fn default_file() -> String {
    let mut file = String::from(
        "# Settings of a pageserver. What is commented out shows the default.\n\
         # The environment (PALIMPSEST_<NAME>) wins over this file, flags and -c win over both.\n",
    );
    for argument in Config::augment_args(clap::Command::new("settings")).get_arguments() {
        file.push('\n');
        let meaning =
            argument.get_long_help().or(argument.get_help()).map(ToString::to_string).unwrap_or_default();
        for line in wrapped(&meaning, 110) {
            let _ = writeln!(file, "# {line}");
        }
        let default =
            argument.get_default_values().first().map(|value| value.to_string_lossy()).unwrap_or_default();
        let quote = if default.is_empty() { "\"\"" } else { "" };
        let _ = writeln!(file, "#{}: {default}{quote}", argument.get_id());
    }
    file
}

/// The text in lines of up to `width` characters.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let line = lines.last_mut().expect("starts with one line");
        if !line.is_empty() && line.len() + 1 + word.len() > width {
            lines.push(word.into());
        } else {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_with(arguments: &[&str], environment: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let arguments = std::iter::once("pageserver").chain(arguments.iter().copied()).map(str::to_owned);
        let environment = environment.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        match read(arguments, &environment)? {
            Verb::Serve(config, _) => Ok(*config),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn draining_knows_the_working_directory_and_how_long_to_wait() {
        let read = |arguments: &[&str]| {
            let arguments = std::iter::once("pageserver").chain(arguments.iter().copied()).map(str::to_owned);
            super::read(arguments, &[("PALIMPSEST_WORKDIR".into(), "/work".into())].into()).unwrap()
        };
        let Verb::Drain(workdir, wait) = read(&["drain", "--wait", "--deadline", "840s"]) else {
            panic!("another verb")
        };
        assert_eq!((workdir, wait), ("/work".into(), Some(Duration::from_mins(14))));
        assert!(matches!(read(&["drain"]), Verb::Drain(_, None)));
    }

    #[test]
    fn an_operator_is_known_by_certificate_or_token_and_not_by_both_or_neither() {
        let control =
            |more: &[&str]| read_with(&[&["--listen-control-addr", "127.0.0.1:0"], more].concat(), &[]);
        let tls = [
            "--control-tls-cert-file=c",
            "--control-tls-key-file=k",
            "--control-tls-ca-file=a",
            "--control-client-name=n",
        ];
        assert!(control(&[]).is_err() && control(&tls[..3]).is_err());
        assert!(control(&["--control-token-file=t"]).unwrap().control_tls().is_none());
        assert!(control(&tls).unwrap().control_tls().is_some());
        assert!(control(&[&tls[..], &["--control-token-file=t"]].concat()).is_err());
        assert!(read_with(&["--tls-cert-file=c"], &[]).is_err());
        assert!(read_with(&["--conditional-writes=best-effort"], &[]).is_err());
    }

    fn file_with(text: &str) -> (tempfile::TempDir, String) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("settings.yaml");
        std::fs::write(&path, text).unwrap();
        let path = path.to_str().unwrap().to_owned();
        (directory, path)
    }

    #[test]
    fn the_defaults_are_valid() {
        Config::defaults().validate().unwrap();
        assert_eq!(Config::defaults().shutdown_timeout, Span(Duration::from_secs(10)));
    }

    #[test]
    fn a_flag_wins_over_the_environment_over_the_file_over_the_default() {
        let (_directory, path) = file_with("id: 2\nmax_batch_size: 3\nidle_timeout: 4s\n");
        let config = read_with(
            &["--config", &path, "--idle-timeout", "9s"],
            &[("PALIMPSEST_MAX_BATCH_SIZE", "7"), ("PALIMPSEST_IDLE_TIMEOUT", "8s")],
        )
        .unwrap();
        assert_eq!(config.id, 2);
        assert_eq!(config.max_batch_size, 7);
        assert_eq!(config.idle_timeout, Span(Duration::from_secs(9)));
        assert_eq!(config.wait_lsn_timeout, Span(Duration::from_mins(5)));
    }

    #[test]
    fn a_setting_by_name_is_a_flag() {
        let config = read_with(&["-c", "id=5", "-c", "log_format=json"], &[("PALIMPSEST_ID", "4")]).unwrap();
        assert_eq!(config.id, 5);
        assert_eq!(config.log_format, LogFormat::Json);
        assert!(matches!(read_with(&["-c", "id"], &[]), Err(ConfigError::NotAnAssignment(_))));
    }

    #[test]
    fn unknown_names_are_refused_and_named() {
        let (_directory, path) = file_with("idd: 2\n");
        let error = read_with(&["--config", &path], &[]).unwrap_err().to_string();
        assert!(error.contains("\"idd\"") && error.contains("settings.yaml"), "{error}");
        assert!(matches!(read_with(&["-c", "nope=1"], &[]), Err(ConfigError::Unknown { .. })));
        assert!(read_with(&["--nope", "1"], &[]).is_err());
    }

    #[test]
    fn bad_values_are_refused_with_the_name_of_the_setting() {
        for (name, value) in [
            ("listen_pg_addr", "nowhere"),
            ("idle_timeout", "soon"),
            ("bucket", "ftp://x"),
            ("metric_collection_endpoint", "ftp://x"),
            ("metric_collection_interval", "1ms"),
            ("max_batch_size", "0"),
            ("cache_disk_most_used", "101"),
            ("heatmap_period", "10ms"),
            ("log_filter", "a=b=c"),
        ] {
            let error = read_with(&["-c", &format!("{name}={value}")], &[]).unwrap_err().to_string();
            let flag = name.replace('_', "-");
            assert!(error.contains(name) || error.contains(&flag), "{name}: {error}");
        }
    }

    #[test]
    fn a_file_that_is_no_mapping_is_refused() {
        let (_directory, path) = file_with("- a\n- b\n");
        assert!(matches!(read_with(&["--config", &path], &[]), Err(ConfigError::Malformed { .. })));
        let (_directory, path) = file_with("# nothing but a comment\n");
        assert!(read_with(&["--config", &path], &[]).is_ok());
    }

    #[test]
    fn the_printed_file_names_every_setting_and_its_defaults_are_the_defaults() {
        let Verb::Print(file) = read(["pageserver", "config"].map(str::to_owned), &BTreeMap::new()).unwrap()
        else {
            panic!("did not print");
        };
        let uncommented: String = file
            .lines()
            .filter_map(|line| line.strip_prefix('#').filter(|l| !l.starts_with(' ')))
            .fold(String::new(), |mut all, line| {
                all.push_str(line);
                all.push('\n');
                all
            });
        assert_eq!(uncommented.lines().count(), setting_names().len());
        let (_directory, path) = file_with(&uncommented);
        let config = read_with(&["--config", &path], &[]).unwrap();
        assert_eq!(format!("{config:?}"), format!("{:?}", Config::defaults()));
    }

    #[test]
    fn byte_counts_have_units() {
        assert_eq!("64MiB".parse(), Ok(ByteCount(64 << 20)));
        assert_eq!("8 kB".parse(), Ok(ByteCount(8000)));
        assert_eq!("8192".parse(), Ok(ByteCount(8192)));
        assert_eq!(ByteCount(8192).to_string(), "8KiB");
        assert_eq!(ByteCount(0).to_string(), "0B");
        for bad in ["", "MiB", "1.5MiB", "1 parsec", "99999999TiB"] {
            assert!(bad.parse::<ByteCount>().is_err(), "{bad:?} was accepted");
        }
    }
}
