//! What a platform team installs once, and every story uses: the operator, an S3 server, a pool of pageservers.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use testkit::certificate::Issuer;

use crate::cluster::Cluster;
use crate::token;

/// Where the operator is.
pub const OPERATOR_NAMESPACE: &str = "palimpsest-system";
/// Where the pool is, and its S3 server.
pub const POOL_NAMESPACE: &str = "storage";
/// The name of the pool.
pub const POOL: &str = "main";

/// Where a second pool is, over the same bucket: of the story in which two installations meet.
pub const OTHER_NAMESPACE: &str = "storage-other";
/// The name of the second pool.
pub const OTHER_POOL: &str = "other";
/// The name of the operator beside it.
pub const OTHER_OPERATOR: &str = "palimpsest-other";

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

    /// What a chart is told about its image.
    fn of_chart(&self, image: &str) -> String {
        format!("image.repository={},image.tag={}", self.repository(image), self.tag)
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
    testkit::source_dir(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
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
    make_certificates(cluster)?;
    cluster.apply(&images.put_into(&example("s3-in-cluster.yaml")?))?;
    make_secrets_of_pool(cluster, POOL_NAMESPACE)?;
    upgrade(cluster, "palimpsest-crds", "palimpsest-crds", OPERATOR_NAMESPACE, &[])?;
    for crd in ["pageserverpools", "tenants", "timelines"] {
        cluster.wait(
            "default",
            &format!("crd/{crd}.palimpsest.dev"),
            "Established",
            Duration::from_mins(1),
        )?;
    }
    install_operator(cluster, images, &[])?;
    install_pool(cluster, images, POOL, POOL_NAMESPACE, 2)?;
    cluster.rolled_out(POOL_NAMESPACE, "deployment/s3", Duration::from_mins(3))?;
    pool_is_ready(cluster, POOL, POOL_NAMESPACE)?;
    for (release, namespace) in [("palimpsest", OPERATOR_NAMESPACE), (POOL, POOL_NAMESPACE)] {
        let told = cluster.helm(&["test", release, "--namespace", namespace, "--timeout=90s"])?;
        ensure!(told.contains("Succeeded"), "helm test {release} says {told}");
    }
    Ok(())
}

/// Installs the operator for some namespaces, or for all.
pub fn install_operator(cluster: &Cluster, images: &Images, namespaces: &[&str]) -> Result<()> {
    let image = format!("{},tests.image={}", images.of_chart("operator"), images.name("pageserver"));
    let namespaces = format!("watchNamespaces={}", serde_json::json!(namespaces));
    let values = ["--set", &image, "--set-json", &namespaces];
    upgrade(cluster, "palimpsest", "palimpsest", OPERATOR_NAMESPACE, &values)?;
    cluster.rolled_out(OPERATOR_NAMESPACE, "deployment/palimpsest", Duration::from_mins(3))
}

/// Installs a second operator, which knows of no other namespaces than these.
pub fn install_other_operator(cluster: &Cluster, images: &Images, namespaces: &[&str]) -> Result<()> {
    let image = images.of_chart("operator");
    let namespaces = format!("watchNamespaces={}", serde_json::json!(namespaces));
    // One policy that protects from deletion serves the whole cluster.
    let own = "replicas=1,deletionProtection.enabled=false,controlAuth.secretName=operator-control";
    let values = ["--set", &image, "--set-json", &namespaces, "--set", own];
    upgrade(cluster, OTHER_OPERATOR, "palimpsest", OTHER_NAMESPACE, &values)?;
    cluster.rolled_out(OTHER_NAMESPACE, &format!("deployment/{OTHER_OPERATOR}"), Duration::from_mins(3))
}

/// Installs a pool with the examples' own values, over the bucket that all pools share.
pub fn install_pool(
    cluster: &Cluster,
    images: &Images,
    name: &str,
    namespace: &str,
    replicas: u32,
) -> Result<()> {
    let values = repository_file("manifests/examples/pool-values.yaml").display().to_string();
    let (image, replicas) = (images.of_chart("pageserver"), format!("replicas={replicas}"));
    let pool = [
        "--values",
        &values,
        "--set",
        "controlAuth.mode=MutualTLS,clients.jwt.publicKeySecretName=client-keys",
        "--set",
        &image,
        "--set",
        &replicas,
    ];
    upgrade(cluster, name, "palimpsest-pool", namespace, &pool)
}

/// Waits until all pageservers of a pool run and the operator has heard them.
pub fn pool_is_ready(cluster: &Cluster, name: &str, namespace: &str) -> Result<()> {
    cluster.rolled_out(namespace, &format!("statefulset/{name}"), Duration::from_mins(3))?;
    cluster.wait(namespace, &format!("pageserverpool/{name}"), "Ready", Duration::from_mins(2))
}

/// What the pods of a pool mount besides their certificates: the way into the bucket, passwords of primaries, keys that tokens are signed with.
pub fn make_secrets_of_pool(cluster: &Cluster, namespace: &str) -> Result<()> {
    let secret = |name: &str, data: serde_json::Value| make_secret(cluster, namespace, name, &data);
    secret("sources", serde_json::json!({"acme": PASSWORD}))?;
    secret("client-keys", serde_json::json!({"stories.pem": token::public_key()}))?;
    if namespace != POOL_NAMESPACE {
        let keys = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"];
        let known = cluster.get(POOL_NAMESPACE, "secret/s3")?;
        let data: serde_json::Map<_, _> =
            keys.iter().map(|key| ((*key).to_owned(), known["data"][key].clone())).collect();
        cluster.apply(
            &serde_json::json!({
                "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s3", "namespace": namespace}, "data": data,
            })
            .to_string(),
        )?;
    }
    Ok(())
}

/// A certificate each for the operator and the pageservers of both pools, by one authority. The first story makes them, for all.
fn make_certificates(cluster: &Cluster) -> Result<()> {
    const NAME: &str = "palimpsest-control";
    let found = cluster.kubectl(&["--namespace", OPERATOR_NAMESPACE, "get", "secrets", "--output=name"])?;
    if found.lines().any(|name| name == format!("secret/{NAME}")) {
        return Ok(());
    }
    cluster.apply(&format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: {OTHER_NAMESPACE}}}}}"))?;
    let authority = Issuer::new("stories")?;
    let secret = |namespace: &str, secret: &str, name: &str| -> Result<()> {
        let (certificate, key) = authority.issue(name)?;
        let data = serde_json::json!({"tls.crt": certificate, "tls.key": key, "ca.crt": authority.pem()});
        make_secret(cluster, namespace, secret, &data)
    };
    secret(OTHER_NAMESPACE, NAME, &format!("{OTHER_POOL}-pods.{OTHER_NAMESPACE}.svc"))?;
    secret(OTHER_NAMESPACE, "operator-control", "palimpsest-operator")?;
    secret(POOL_NAMESPACE, NAME, &format!("{POOL}-pods.{POOL_NAMESPACE}.svc"))?;
    // Last: where it is, the others are.
    secret(OPERATOR_NAMESPACE, NAME, "palimpsest-operator")
}

fn make_secret(cluster: &Cluster, namespace: &str, name: &str, data: &serde_json::Value) -> Result<()> {
    let metadata = serde_json::json!({"name": name, "namespace": namespace});
    let secret =
        serde_json::json!({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": data});
    cluster.apply(&secret.to_string())
}

fn upgrade(cluster: &Cluster, release: &str, chart: &str, namespace: &str, rest: &[&str]) -> Result<()> {
    let chart = repository_file("charts").join(chart).display().to_string();
    let mut arguments =
        vec!["upgrade", "--install", release, &chart, "--namespace", namespace, "--timeout=180s"];
    arguments.extend(rest);
    cluster.helm(&arguments).map(drop)
}
