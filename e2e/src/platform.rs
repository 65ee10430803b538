//! What a platform team installs once, and every story uses: the operator, an S3 server, a pool of pageservers.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::cluster::Cluster;
use crate::token;

/// Where the operator is.
pub const OPERATOR_NAMESPACE: &str = "palimpsest-system";
/// Where the pool is, and its S3 server.
pub const POOL_NAMESPACE: &str = "storage";
/// The name of the pool.
pub const POOL: &str = "main";

/// Password of the role `palimpsest` of every source: key `acme` of the Secret that the pool mounts.
pub const PASSWORD: &str = "change-me-please";

/// Images that stories run.
#[derive(Clone, Debug)]
pub struct Images {
    prefix: String,
    tag: String,
}

impl Images {
    /// `E2E_IMAGES` and `E2E_TAG`, by default those that `make e2e` makes and loads into the cluster.
    pub fn from_environment() -> Images {
        let variable = |name: &str, default: &str| std::env::var(name).unwrap_or_else(|_| default.to_owned());
        Images { prefix: variable("E2E_IMAGES", "localhost/palimpsest"), tag: variable("E2E_TAG", "dev") }
    }

    /// Name without tag.
    pub fn repository(&self, image: &str) -> String {
        format!("{}/{image}", self.prefix)
    }

    /// Name and tag.
    pub fn name(&self, image: &str) -> String {
        format!("{}:{}", self.repository(image), self.tag)
    }

    /// The examples name published images; stories run these instead, which are already on the nodes.
    pub fn put_into(&self, yaml: &str) -> String {
        yaml.replace("ghcr.io/versity/versitygw:v1.8.0", &self.name("versitygw"))
            .replace("ghcr.io/palimpsest/pageserver:0.1.0", &self.name("pageserver"))
            .replace("image: postgres:18", &format!("image: {}", self.name("postgres")))
    }
}

/// A file of the repository.
pub fn repository_file(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// One of `manifests/examples`, as people copy it.
pub fn example(name: &str) -> Result<String> {
    let path = repository_file("manifests/examples").join(name);
    std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
}

/// Applies the example of a tenant `acme` and its timeline `acme-main` in a team's namespace, and waits until they are ready.
pub fn make_tenant(cluster: &Cluster, namespace: &str) -> Result<()> {
    // Sources of stories speak no TLS.
    let yaml = example("tenant-and-timeline.yaml")?
        .replace("team-acme", namespace)
        .replace("sslMode: require", "sslMode: prefer");
    cluster.apply(&yaml)?;
    cluster.wait(namespace, "tenant/acme", "Ready", Duration::from_mins(1))?;
    cluster.wait(namespace, "timeline/acme-main", "Ready", Duration::from_mins(3))
}

/// Installs the charts with the examples' own values, unless they are installed; waits until the pool is ready.
pub fn install(cluster: &Cluster, images: &Images) -> Result<()> {
    // A token that both sides have. The same for every story: the first one made it.
    for namespace in [OPERATOR_NAMESPACE, POOL_NAMESPACE] {
        cluster.apply(&format!(
            "{{apiVersion: v1, kind: Secret, metadata: {{name: palimpsest-control, namespace: {namespace}}}, \
             stringData: {{token: 5e2f7ce0a4a94c6f8f0e3d5ab5b1f6c2}}}}"
        ))?;
    }
    cluster.apply(&images.put_into(&example("s3-in-cluster.yaml")?))?;
    cluster.apply(&format!(
        "{{apiVersion: v1, kind: Secret, metadata: {{name: sources, namespace: {POOL_NAMESPACE}}}, stringData: {{acme: {PASSWORD}}}}}"
    ))?;
    let key = serde_json::Value::from(token::public_key());
    cluster.apply(&format!(
        "{{apiVersion: v1, kind: Secret, metadata: {{name: client-keys, namespace: {POOL_NAMESPACE}}}, stringData: {{stories.pem: {key}}}}}"
    ))?;
    let chart = |name: &str| repository_file("charts").join(name).display().to_string();
    let tag = format!("image.tag={}", images.tag);
    let repository = |image: &str| format!("image.repository={}", images.repository(image));
    let test_image = format!("tests.image={}", images.name("pageserver"));
    let upgrade = |release: &str, name: &str, namespace: &str, rest: &[&str]| {
        let chart = chart(name);
        let mut arguments =
            vec!["upgrade", "--install", release, &chart, "--namespace", namespace, "--timeout=180s"];
        arguments.extend(rest);
        cluster.helm(&arguments).map(drop)
    };
    upgrade("palimpsest-crds", "palimpsest-crds", OPERATOR_NAMESPACE, &[])?;
    for crd in ["pageserverpools", "tenants", "timelines"] {
        cluster.wait(
            "default",
            &format!("crd/{crd}.palimpsest.dev"),
            "Established",
            Duration::from_mins(1),
        )?;
    }
    let operator = [
        "--set",
        "controlAuth.mode=BearerFile",
        "--set",
        &repository("operator"),
        "--set",
        &tag,
        "--set",
        &test_image,
    ];
    upgrade("palimpsest", "palimpsest", OPERATOR_NAMESPACE, &operator)?;
    let values = repository_file("manifests/examples/pool-values.yaml").display().to_string();
    let keys = "clients.jwt.publicKeySecretName=client-keys";
    let pool = ["--set", keys, "--values", &values, "--set", &repository("pageserver"), "--set", &tag];
    upgrade(POOL, "palimpsest-pool", POOL_NAMESPACE, &pool)?;
    for (namespace, workload) in [
        (OPERATOR_NAMESPACE, "deployment/palimpsest"),
        (POOL_NAMESPACE, "deployment/s3"),
        (POOL_NAMESPACE, "statefulset/main"),
    ] {
        cluster.rolled_out(namespace, workload, Duration::from_mins(3))?;
    }
    cluster.wait(POOL_NAMESPACE, "pageserverpool/main", "Ready", Duration::from_mins(2))?;
    for (release, namespace) in [("palimpsest", OPERATOR_NAMESPACE), (POOL, POOL_NAMESPACE)] {
        let told = cluster.helm(&["test", release, "--namespace", namespace, "--timeout=90s"])?;
        ensure!(told.contains("Succeeded"), "helm test {release} says {told}");
    }
    Ok(())
}
