//! A story: its steps as they are told, and what is kept of one that failed.

use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result};

use crate::cluster::Cluster;

/// A story that is being told. One that is not told to its end leaves logs, events, objects and the audit log behind.
#[derive(Debug)]
pub struct Story {
    name: &'static str,
    cluster: Cluster,
    namespaces: Vec<String>,
    began: Instant,
    steps: u32,
    is_told: bool,
}

impl Story {
    /// Begins a story that uses these namespaces, and makes those that are not there. Nothing may run in them that is not restricted.
    pub fn begin(name: &'static str, cluster: &Cluster, namespaces: &[&str]) -> Result<Story> {
        let story = Story {
            name,
            cluster: cluster.clone(),
            namespaces: namespaces.iter().map(ToString::to_string).collect(),
            began: Instant::now(),
            steps: 0,
            is_told: false,
        };
        for namespace in namespaces {
            cluster.apply(&format!(
                "{{apiVersion: v1, kind: Namespace, metadata: {{name: {namespace}, \
                 labels: {{pod-security.kubernetes.io/enforce: restricted}}}}}}"
            ))?;
        }
        Ok(story)
    }

    /// The next step, as a sentence.
    pub fn step(&mut self, sentence: &str) {
        self.steps += 1;
        eprintln!(
            "{} {:>2}. {:>6.1} s  {sentence}",
            self.name,
            self.steps,
            self.began.elapsed().as_secs_f64()
        );
    }

    /// Something that was measured or seen in the step.
    pub fn fact(&self, sentence: &str) {
        eprintln!("{}      {:>6.1} s    {sentence}", self.name, self.began.elapsed().as_secs_f64());
    }

    /// The story is told: its namespaces `to_remove` go, with all that is in them.
    pub fn end(mut self, to_remove: &[&str]) -> Result<()> {
        for namespace in to_remove {
            // The custom resources first, while what their finalizers need is still there; without protection, which tenants have by default.
            for kind in ["timelines.palimpsest.dev", "tenants.palimpsest.dev"] {
                let names =
                    self.cluster.kubectl(&["--namespace", namespace, "get", kind, "--output=name"])?;
                for name in names.lines() {
                    let patch = r#"{"spec": {"retention": {"deletionProtection": false}}}"#;
                    self.cluster.kubectl(&[
                        "--namespace",
                        namespace,
                        "patch",
                        name,
                        "--type=merge",
                        "--patch",
                        patch,
                    ])?;
                }
                self.cluster.kubectl(&[
                    "--namespace",
                    namespace,
                    "delete",
                    kind,
                    "--all",
                    "--timeout=120s",
                ])?;
            }
            self.cluster.kubectl(&["delete", "namespace", namespace, "--timeout=180s"])?;
        }
        self.is_told = true;
        self.fact("the end");
        Ok(())
    }

    fn keep_evidence(&self) -> Result<PathBuf> {
        let root = std::env::var_os("E2E_EVIDENCE")
            .map_or_else(|| std::env::temp_dir().join("palimpsest-e2e"), PathBuf::from);
        let place = root.join(self.name);
        fs::create_dir_all(&place).with_context(|| format!("cannot make {}", place.display()))?;
        let keep = |file: &str, arguments: &[&str]| {
            let text = self.cluster.kubectl(arguments).unwrap_or_else(|error| format!("{error:#}"));
            fs::write(place.join(file), text + "\n")
        };
        keep("nodes.txt", &["describe", "nodes"])?;
        keep("pods.txt", &["get", "pods", "--all-namespaces", "--output=wide"])?;
        keep("events.txt", &["get", "events", "--all-namespaces", "--sort-by=.metadata.creationTimestamp"])?;
        for namespace in &self.namespaces {
            let kinds = "pageserverpools.palimpsest.dev,tenants.palimpsest.dev,timelines.palimpsest.dev,services,\
                         endpointslices,configmaps,statefulsets,deployments,pods,leases";
            keep(
                &format!("{namespace}-objects.yaml"),
                &["--namespace", namespace, "get", kinds, "--output=yaml"],
            )?;
            let pods = self
                .cluster
                .kubectl(&["--namespace", namespace, "get", "pods", "--output=name"])
                .unwrap_or_default();
            for pod in pods.lines() {
                let log =
                    ["--namespace", namespace, "logs", pod, "--all-containers", "--prefix", "--tail=20000"];
                let name = pod.trim_start_matches("pod/");
                keep(&format!("{namespace}-{name}.log"), &log)?;
                keep(&format!("{namespace}-{name}-before.log"), &[&log[..], &["--previous"]].concat())?;
            }
        }
        // The cluster's maker says where its audit log is.
        if let Some(log) = std::env::var_os("E2E_AUDIT_LOG").filter(|log| PathBuf::from(log).is_file()) {
            fs::copy(&log, place.join("audit.log"))?;
        }
        Ok(place)
    }
}

impl Drop for Story {
    fn drop(&mut self) {
        if !self.is_told {
            match self.keep_evidence() {
                Ok(place) => {
                    eprintln!("{} failed; what there was to see is in {}", self.name, place.display());
                }
                Err(error) => {
                    eprintln!("{} failed, and what there was to see could not be kept: {error:#}", self.name);
                }
            }
        }
    }
}
