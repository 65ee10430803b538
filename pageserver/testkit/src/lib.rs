//! Real servers for tests: Postgres 14-18, an S3 server, pageservers, a Kubernetes API server, and a proxy that makes the way to a bucket bad.
//!
//! Nothing here is shipped. Every server lives in a process group of its own, in a directory of its own, on ports of
//! its own, and ends when its handle is dropped or when the test process dies, whatever kills it. Postgres refuses to
//! run as root; under root it runs as an unprivileged user ([`account`]).
//!
//! In reading order: [`account`], [`port`], [`process`], [`postgres`], [`workload`], [`versitygw`], [`fault_proxy`],
//! [`pageserver`], [`page_client`], [`cluster_files`], [`page_compare`], [`witness`], [`oracle`], [`kubernetes`].

pub mod account;
pub mod certificate;
pub mod cluster_files;
pub mod fault_proxy;
pub mod kubernetes;
pub mod operated;
pub mod oracle;
pub mod page_client;
pub mod page_compare;
pub mod pageserver;
pub mod port;
pub mod postgres;
pub mod process;
pub mod token;
pub mod versitygw;
pub mod witness;
pub mod workload;

pub use fault_proxy::{Fault, FaultProxy};
pub use operated::Operated;
pub use pageserver::{BucketAt, Pageserver};
pub use postgres::{Postgres, PostgresConfig, Shutdown};
pub use versitygw::Versitygw;
pub use witness::Witness;

/// The source of the crate whose `CARGO_MANIFEST_DIR` was `compiled` when it was built. Cargo knows better when it runs a test: a build that is kept
/// between checkouts may have been made in another one.
pub fn source_dir(compiled: &str) -> std::path::PathBuf {
    std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| compiled.into(), Into::into)
}
