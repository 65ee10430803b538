//! Where a tenant is, as its status says, and how it is made to be elsewhere.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::cluster::Cluster;
use crate::platform::POOL_NAMESPACE;

/// The process that serves a tenant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed {
    /// The highest generation that was ever allocated.
    pub generation: u64,
    /// Its pod.
    pub pod: String,
    /// What it drew when it started.
    pub instance: String,
}

impl Placed {
    /// Of a tenant that is attached.
    pub fn of(cluster: &Cluster, namespace: &str, tenant: &str) -> Result<Placed> {
        let tenant = cluster.get(namespace, &format!("tenant/{tenant}"))?;
        let shard = &tenant["status"]["shards"][0];
        let text = |name: &str| {
            let found = shard["attached"][name].as_str().map(ToOwned::to_owned);
            found.with_context(|| format!("it is not attached: {shard}"))
        };
        let generation = shard["generation"].as_u64().context("it has no generation")?;
        Ok(Placed { generation, pod: text("pod")?, instance: text("instance")? })
    }

    /// The node of its pod.
    pub fn node(&self, cluster: &Cluster) -> Result<String> {
        cluster.field(POOL_NAMESPACE, &format!("pod/{}", self.pod), ".spec.nodeName")
    }

    /// Deletes its pod by force, with its disk.
    pub fn lose(&self, cluster: &Cluster) -> Result<()> {
        let pod = format!("pod/{}", self.pod);
        let arguments = ["--namespace", POOL_NAMESPACE, "delete", &pod, "--force", "--grace-period=0"];
        cluster.kubectl(&arguments).map(drop)
    }

    /// Waits until another process serves the tenant, and says so; gives which. Its generation must be a newer one.
    pub fn succeeded(
        &self,
        cluster: &Cluster,
        namespace: &str,
        tenant: &str,
        within: Duration,
    ) -> Result<Placed> {
        cluster.until("attached elsewhere", within, |cluster| {
            Ok(Placed::of(cluster, namespace, tenant)?.instance != self.instance)
        })?;
        cluster.wait(namespace, &format!("tenant/{tenant}"), "Ready", Duration::from_mins(1))?;
        let now = Placed::of(cluster, namespace, tenant)?;
        ensure!(
            now.generation > self.generation,
            "generation {} follows {}",
            now.generation,
            self.generation
        );
        Ok(now)
    }

    /// The tenant on any node but one: processes that serve it there are lost until it is elsewhere.
    pub fn away_from(cluster: &Cluster, namespace: &str, tenant: &str, node: &str) -> Result<Placed> {
        let mut now = Placed::of(cluster, namespace, tenant)?;
        for _ in 0..5 {
            if now.node(cluster)? != node {
                return Ok(now);
            }
            now.lose(cluster)?;
            now = now.succeeded(cluster, namespace, tenant, Duration::from_mins(1))?;
            cluster.rolled_out(POOL_NAMESPACE, "statefulset/main", Duration::from_mins(3))?;
        }
        anyhow::bail!("the tenant is at {now:?} again and again, which is on {node}")
    }
}
