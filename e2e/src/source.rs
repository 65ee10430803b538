//! A stock Postgres in a pod, as a team has one, with load on it.

use std::time::Duration;

use anyhow::{Context, Result};
use model::Lsn;

use crate::cluster::Cluster;
use crate::platform::{Images, PASSWORD};

/// A Postgres in a pod of the same name, behind a Service of that name.
#[derive(Clone, Debug)]
pub struct Source {
    cluster: Cluster,
    namespace: String,
    name: String,
}

impl Source {
    /// Starts a Postgres with a role `palimpsest` that may replicate, and waits until it answers.
    pub fn start(cluster: &Cluster, images: &Images, namespace: &str, name: &str) -> Result<Source> {
        Source::start_on(cluster, images, namespace, name, None)
    }

    /// The same on a node, or on any.
    pub fn start_on(
        cluster: &Cluster,
        images: &Images,
        namespace: &str,
        name: &str,
        node: Option<&str>,
    ) -> Result<Source> {
        let on = node.map(|node| format!("kubernetes.io/hostname: {node}")).unwrap_or_default();
        let image = images.name("postgres");
        cluster.apply(&format!(
            r"
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: {namespace}, labels: {{app.kubernetes.io/name: {name}}}}}
spec:
  nodeSelector: {{{on}}}
  automountServiceAccountToken: false
  enableServiceLinks: false
  securityContext: {{runAsNonRoot: true, runAsUser: 65532, runAsGroup: 65532, fsGroup: 65532, seccompProfile: {{type: RuntimeDefault}}}}
  containers:
    - name: postgres
      image: {image}
      # Every base backup ends a segment, which all followers receive whole.
      env: [{{name: INITDB_ARGS, value: --wal-segsize=1}}]
      # Pages are compared with files: nothing may change them unasked.
      args: [-c, wal_level=replica, -c, autovacuum=off, -c, max_slot_wal_keep_size=1GB]
      ports: [{{name: pg, containerPort: 5432}}]
      readinessProbe: {{exec: {{command: [psql, -h, 127.0.0.1, -U, postgres, -c, SELECT]}}, periodSeconds: 1, timeoutSeconds: 5}}
      securityContext: {{allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {{drop: [ALL]}}}}
      volumeMounts:
        - {{name: data, mountPath: /var/lib/postgresql}}
        - {{name: tmp, mountPath: /tmp}}
        - {{name: shm, mountPath: /dev/shm}}
  volumes:
    - {{name: data, emptyDir: {{}}}}
    - {{name: tmp, emptyDir: {{}}}}
    - {{name: shm, emptyDir: {{medium: Memory, sizeLimit: 256Mi}}}}
---
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: {namespace}}}
spec:
  selector: {{app.kubernetes.io/name: {name}}}
  ports: [{{name: pg, port: 5432, targetPort: pg}}]
"
        ))?;
        cluster.wait(namespace, &format!("pod/{name}"), "Ready", Duration::from_mins(2))?;
        let source = Source::at(cluster, namespace, name);
        source.sql(&format!("CREATE ROLE palimpsest LOGIN REPLICATION PASSWORD '{PASSWORD}'"))?;
        Ok(source)
    }

    /// A Postgres that somebody else started, in a pod with psql.
    pub fn at(cluster: &Cluster, namespace: &str, name: &str) -> Source {
        Source { cluster: cluster.clone(), namespace: namespace.into(), name: name.into() }
    }

    /// Runs SQL in database `postgres`; rows are lines, columns are parted by `|`.
    pub fn sql(&self, sql: &str) -> Result<String> {
        let words =
            ["psql", "-h", "127.0.0.1", "-U", "postgres", "-qXAt", "-v", "ON_ERROR_STOP=1", "-c", sql];
        self.cluster.exec(&self.namespace, &self.name, &words)
    }

    /// Stops the server and waits until it runs again, with settings that need that. Its disk stays: only the container starts again.
    pub fn start_again(&self) -> Result<()> {
        let since = self.sql("SELECT pg_postmaster_start_time()")?;
        // The first process of the container is the server itself.
        self.cluster.exec(&self.namespace, &self.name, &["sh", "-c", "kill -INT 1"])?;
        self.cluster.until("started again", Duration::from_mins(1), |_| {
            Ok(self.sql("SELECT pg_postmaster_start_time()")? != since)
        })
    }

    /// Makes pgbench's tables.
    pub fn fill(&self, scale: u32) -> Result<()> {
        let scale = scale.to_string();
        let words = ["pgbench", "-h", "127.0.0.1", "-U", "postgres", "-iqs", &scale, "postgres"];
        self.cluster.exec(&self.namespace, &self.name, &words).map(drop)
    }

    /// Starts pgbench in a pod of its own, which goes on until [`Source::rest`].
    pub fn load(&self, images: &Images) -> Result<()> {
        let (namespace, name, image) = (&self.namespace, &self.name, images.name("postgres"));
        self.cluster.apply(&format!(
            r"
apiVersion: v1
kind: Pod
metadata: {{name: {name}-load, namespace: {namespace}}}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 1
  automountServiceAccountToken: false
  enableServiceLinks: false
  securityContext: {{runAsNonRoot: true, runAsUser: 65532, seccompProfile: {{type: RuntimeDefault}}}}
  containers:
    - name: pgbench
      image: {image}
      command: [pgbench, -h, {name}, -U, postgres, -n, -c, '2', -T, '36000', -R, '200', postgres]
      securityContext: {{allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {{drop: [ALL]}}}}
"
        ))?;
        self.cluster.wait(namespace, &format!("pod/{name}-load"), "Ready", Duration::from_mins(1))
    }

    /// Ends the load, writes every page to its file, and says where WAL ends: from here on nothing changes.
    pub fn rest(&self) -> Result<Lsn> {
        let pod = format!("pod/{}-load", self.name);
        self.cluster.kubectl(&["--namespace", &self.namespace, "delete", &pod, "--timeout=60s"])?;
        self.cluster.until("idle", Duration::from_secs(30), |_| {
            let busy = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgbench'";
            Ok(self.sql(busy)? == "0")
        })?;
        self.settle()
    }

    /// Writes every page to its file, and says where WAL ends. Only while nothing works.
    pub fn settle(&self) -> Result<Lsn> {
        self.sql("CHECKPOINT")?;
        let lsn = self.sql("SELECT pg_current_wal_insert_lsn()")?;
        // Something has to follow, or the last record is not known to be whole.
        self.sql("SELECT txid_current()")?;
        lsn.parse().with_context(|| format!("{lsn} is no LSN"))
    }

    /// Where a relation lies: its path below the data directory, the oids of tablespace, database and file, and its length in blocks.
    pub fn relation(&self, name: &str) -> Result<(String, String, u32)> {
        let row = self.sql(&format!(
            "SELECT pg_relation_filepath(c.oid), coalesce(nullif(reltablespace, 0), dattablespace) || '/' || d.oid || '/' || \
             pg_relation_filenode(c.oid), pg_relation_size(c.oid) / 8192 FROM pg_class c, pg_database d \
             WHERE d.datname = current_database() AND c.oid = '{name}'::regclass"
        ))?;
        let mut columns = row.split('|');
        let mut next = || columns.next().with_context(|| format!("{name}: {row}"));
        Ok((next()?.into(), next()?.into(), next()?.parse()?))
    }

    /// Blocks as they are in the file.
    pub fn blocks(&self, path: &str, blocks: &[u32]) -> Result<Vec<Vec<u8>>> {
        let text = self.sql(&format!(
            "SELECT encode(pg_read_binary_file('{path}', block::bigint * 8192, 8192), 'hex') \
             FROM unnest(ARRAY{blocks:?}::int[]) WITH ORDINALITY AS wanted (block, place) ORDER BY place"
        ))?;
        text.lines().map(|line| hex::decode(line).with_context(|| format!("{path} is no hex"))).collect()
    }
}
