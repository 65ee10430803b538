//! What stories on a real cluster are told with: the cluster, by the commands that its users type; the parts of a platform that every story
//! needs; pages compared with the source's own files; and what is kept of a story that failed.
//!
//! A story is a test in a folder of `stories/`, with numbered steps. It does not know what kind of cluster it runs on: `KUBECONFIG` names it.
//! `make e2e` makes one with kind where there is none.
//!
//! In reading order: [`tool`], [`cluster`], [`story`], [`token`], [`platform`], [`source`], [`reader`], [`placed`],
//! [`nodes`].

pub mod cluster;
pub mod nodes;
pub mod placed;
pub mod platform;
pub mod reader;
pub mod source;
pub mod story;
pub mod token;
pub mod tool;

pub use cluster::Cluster;
pub use story::Story;
