//! Nodes that are containers, as kind makes them: what happens to machines, and not to objects, happens to these.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::cluster::Cluster;
use crate::tool;

/// Where kubelet finds what it is to run by itself.
const MANIFESTS: &str = "/etc/kubernetes/manifests";
/// The same, while it is not to run.
const ASIDE: &str = "/etc/kubernetes/aside";
const ETCD: &str = "/var/lib/etcd";
const SNAPSHOT: &str = "/var/lib/snapshot.db";

/// The nodes of a cluster that are containers of this machine's Docker.
#[derive(Clone, Debug)]
pub struct Nodes {
    cluster: Cluster,
    docker: PathBuf,
    control_plane: String,
}

impl Nodes {
    /// Those of a cluster that kind made. Elsewhere nobody can do to nodes what stories do.
    pub fn of(cluster: &Cluster) -> Result<Option<Nodes>> {
        let labelled = "--selector=node-role.kubernetes.io/control-plane";
        let names =
            cluster.kubectl(&["get", "nodes", labelled, "--output=jsonpath={.items[*].metadata.name}"])?;
        let Ok(docker) = tool::find("docker") else { return Ok(None) };
        let nodes = Nodes { cluster: cluster.clone(), docker, control_plane: names.clone() };
        let is_one = !names.is_empty() && !names.contains(' ');
        Ok((is_one && nodes.run(&names, &["true"]).is_ok()).then_some(nodes))
    }

    /// Runs a program on a node and gives what it prints.
    pub fn run(&self, node: &str, words: &[&str]) -> Result<String> {
        tool::text(Command::new(&self.docker).args(["exec", node]).args(words), None)
    }

    /// Cuts a node off from all others until what this gives is dropped. What runs on it goes on.
    pub fn cut_off(&self, node: &str) -> Result<CutOff> {
        let cut = CutOff { nodes: self.clone(), node: node.into() };
        cut.rules("-I")?;
        Ok(cut)
    }

    /// Stops the API server until what this gives is dropped.
    pub fn stop_api_server(&self) -> Result<Stopped> {
        self.set_aside("kube-apiserver.yaml")
    }

    /// A snapshot of etcd, which [`Nodes::restore`] goes back to.
    pub fn snapshot(&self) -> Result<()> {
        for program in ["etcdctl", "etcdutl"] {
            let file = tool::find(&format!("kubernetes/{program}"))?.canonicalize()?;
            let to = format!("{}:/usr/local/bin/{program}", self.control_plane);
            tool::text(Command::new(&self.docker).arg("cp").arg(file).arg(to), None)?;
        }
        let keys = "/etc/kubernetes/pki/etcd";
        let options = ["--endpoints=https://127.0.0.1:2379".to_owned(), format!("--cacert={keys}/ca.crt")];
        let own = [format!("--cert={keys}/server.crt"), format!("--key={keys}/server.key")];
        let mut words = vec!["etcdctl"];
        words.extend(options.iter().chain(&own).map(String::as_str));
        words.extend(["snapshot", "save", SNAPSHOT]);
        self.run(&self.control_plane, &words).map(drop)
    }

    /// Gives the cluster back the etcd of the snapshot, as its operators would after a disaster.
    pub fn restore(&self) -> Result<()> {
        let manifest = self.run(&self.control_plane, &["cat", &format!("{MANIFESTS}/etcd.yaml")])?;
        let flag = |name: &str| {
            let line = manifest.lines().find(|line| line.contains(&format!("{name}=")));
            let found = line.map(|line| line.trim().trim_start_matches("- ").to_owned());
            found.with_context(|| format!("etcd is started without {name}"))
        };
        let flags = [flag("--name")?, flag("--initial-cluster")?, flag("--initial-advertise-peer-urls")?];
        let stopped = self.set_aside("*.yaml")?;
        let node = &self.control_plane;
        self.run(node, &["sh", "-c", &format!("rm -rf {ETCD}.before && mv {ETCD} {ETCD}.before")])?;
        // Watches of before must not go on as if nothing had happened: revisions jump ahead.
        let mut words = vec!["etcdutl", "snapshot", "restore", SNAPSHOT, "--data-dir", ETCD];
        words.extend(["--bump-revision", "1000000", "--mark-compacted"]);
        words.extend(flags.iter().map(String::as_str));
        self.run(node, &words)?;
        drop(stopped);
        self.api_answers()
    }

    /// Waits until the API server answers.
    pub fn api_answers(&self) -> Result<()> {
        self.cluster.until("answered by the API server", Duration::from_mins(3), |cluster| {
            Ok(cluster.kubectl(&["get", "--raw", "/readyz"])? == "ok")
        })
    }

    /// Takes what kubelet runs by itself away from it, and waits until it has ended.
    fn set_aside(&self, files: &str) -> Result<Stopped> {
        let aside = format!("mkdir -p {ASIDE} && mv {MANIFESTS}/{files} {ASIDE}/");
        let stopped = Stopped { nodes: self.clone() };
        self.run(&self.control_plane, &["sh", "-c", &aside])?;
        let names = if files.starts_with('*') { "etcd|kube-" } else { "kube-apiserver" };
        self.cluster.until("stopped", Duration::from_mins(2), |_| {
            let running = ["crictl", "ps", "--quiet", "--state", "Running", "--name", names];
            // kube-proxy is a pod like any other, and stays.
            let proxy = ["crictl", "ps", "--quiet", "--state", "Running", "--name", "kube-proxy"];
            let count = |words: &[&str]| {
                Ok::<_, anyhow::Error>(self.run(&self.control_plane, words)?.lines().count())
            };
            Ok(count(&running)? <= if files.starts_with('*') { count(&proxy)? } else { 0 })
        })?;
        Ok(stopped)
    }
}

/// A node that is cut off.
#[derive(Debug)]
pub struct CutOff {
    nodes: Nodes,
    node: String,
}

impl CutOff {
    fn rules(&self, change: &str) -> Result<()> {
        for (chain, side) in [("INPUT", "-i"), ("OUTPUT", "-o"), ("FORWARD", "-i"), ("FORWARD", "-o")] {
            self.nodes.run(&self.node, &["iptables", "-w", change, chain, side, "eth0", "-j", "DROP"])?;
        }
        Ok(())
    }
}

impl Drop for CutOff {
    fn drop(&mut self) {
        if let Err(error) = self.rules("-D") {
            eprintln!("{} stays cut off: {error:#}", self.node);
        }
    }
}

/// Something that kubelet does not run for now.
#[derive(Debug)]
pub struct Stopped {
    nodes: Nodes,
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let back = format!("mv {ASIDE}/*.yaml {MANIFESTS}/");
        if let Err(error) = self.nodes.run(&self.nodes.control_plane, &["sh", "-c", &back]) {
            eprintln!("what runs the cluster stays stopped: {error:#}");
        }
    }
}

/// Where a bucket's objects lie when the cluster's own S3 server of the examples keeps them: a directory of a node.
#[derive(Debug)]
pub struct Objects {
    nodes: Nodes,
    node: String,
    directory: String,
}

impl Objects {
    /// Of the S3 server in a namespace.
    pub fn of(nodes: &Nodes, namespace: &str) -> Result<Objects> {
        let volume = nodes.cluster.field(namespace, "pvc/s3", ".spec.volumeName")?;
        let volume = nodes.cluster.get("default", &format!("pv/{volume}"))?;
        let path = volume["spec"]["hostPath"]["path"].as_str().or(volume["spec"]["local"]["path"].as_str());
        let of_node = "/spec/nodeAffinity/required/nodeSelectorTerms/0/matchExpressions/0/values/0";
        let node = volume.pointer(of_node).and_then(|node| node.as_str());
        let (path, node) = path.zip(node).with_context(|| format!("{volume} is on no node"))?;
        Ok(Objects { nodes: nodes.clone(), node: node.into(), directory: format!("{path}/objects/history") })
    }

    /// Which node keeps them.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// Names of all objects that have `part` in their name.
    pub fn with(&self, part: &str) -> Result<Vec<String>> {
        ensure!(!part.is_empty(), "all objects are too many");
        let wanted = format!("*{part}*");
        let files = self.nodes.run(&self.node, &["find", &self.directory, "-type", "f", "-path", &wanted])?;
        let name = |line: &str| line.trim_start_matches(&self.directory).trim_start_matches('/').to_owned();
        Ok(files.lines().map(name).collect())
    }
}
