//! What an operator has around it: an API server with its definitions and its roles, pods that are processes here, a Postgres that is not ours.
//!
//! There is no kubelet: the test writes pods and their addresses itself. An `EndpointSlice` must not lead to this machine's loopback, so
//! pageservers listen for the operator on the machine's own address.

use std::net::{IpAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config, Resource, ResourceExt as _};
use operator::api::condition;
use operator::api::{PageserverPool, Tenant, Timeline};
use operator::crds;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tempfile::TempDir;
use testkit::kubernetes::ControlPlane;
use testkit::port::Port;
use testkit::process::Process;
use testkit::{BucketAt, Pageserver, account};

pub const OPERATORS: &str = "palimpsest-system";
pub const POOLS: &str = "storage";
pub const TEAM: &str = "team-acme";
/// How long anything may take on a machine that is busy with other tests.
pub const PATIENCE: Duration = Duration::from_mins(1);

const ACCOUNT: &str = "system:serviceaccount:palimpsest-system:palimpsest";
const TOKEN: &str = "a token of the tests alone";

/// An API server, and what stands in it before an operator comes.
pub struct Surroundings {
    pub plane: ControlPlane,
    /// May do everything.
    pub admin: Client,
    pub bucket: TempDir,
    /// A pool over that directory.
    pub main: Pool,
    address: IpAddr,
    home: TempDir,
}

/// A pool of pageservers, which all listen on one port for the operator: at most one of them runs at a time.
pub struct Pool {
    name: &'static str,
    control: Port,
}

impl Surroundings {
    /// Definitions, roles, namespaces, a node and a pool whose pods are pageservers over one directory.
    pub async fn new() -> Result<Surroundings> {
        let plane = ControlPlane::start().await?;
        let admin = client_of(&plane.kubeconfig()).await?;
        let home = tempfile::tempdir()?;
        std::fs::write(home.path().join("token"), TOKEN)?;
        let kubeconfig =
            plane.kubeconfig_for(ACCOUNT, &["system:serviceaccounts", "system:authenticated"])?;
        std::fs::write(home.path().join("kubeconfig"), kubeconfig)?;
        let bucket = tempfile::tempdir()?;
        let main = Pool { name: "main", control: Port::take()? };
        let this = Surroundings { plane, admin, bucket, main, address: own_address()?, home };
        this.install().await?;
        this.make::<PageserverPool>(Some(POOLS), &pool(&this.main)?).await?;
        Ok(this)
    }

    async fn install(&self) -> Result<()> {
        for crd in crds::all() {
            self.make(None, &crd).await?;
        }
        for name in [OPERATORS, POOLS, TEAM] {
            self.make::<Namespace>(None, &object(json!({"metadata": {"name": name}}))?).await?;
        }
        self.make::<Node>(None, &object(json!({"metadata": {"name": "here"}}))?).await?;
        self.grant_what_the_manifests_grant().await?;
        let api: Api<CustomResourceDefinition> = Api::all(self.admin.clone());
        for crd in crds::all() {
            let name = crd.name_any();
            eventually(&format!("{name} is served"), async || {
                let status = api.get(&name).await?.status.unwrap_or_default();
                let conditions = status.conditions.unwrap_or_default();
                Ok(conditions.iter().any(|one| one.type_ == "Established" && one.status == "True"))
            })
            .await?;
        }
        Ok(())
    }

    /// Makes another pool.
    pub async fn pool(&self, name: &'static str) -> Result<Pool> {
        let made = Pool { name, control: Port::take()? };
        self.make::<PageserverPool>(Some(POOLS), &pool(&made)?).await?;
        Ok(made)
    }

    /// The operator has the rights that it has where people install it, and no others.
    async fn grant_what_the_manifests_grant(&self) -> Result<()> {
        let path = testkit::source_dir(env!("CARGO_MANIFEST_DIR")).join("../manifests/operator.yaml");
        let yaml =
            std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        for document in yaml.split("\n---\n") {
            let value: Value = serde_saphyr::from_str(document)?;
            let namespace = value["metadata"]["namespace"].as_str().map(ToOwned::to_owned);
            match value["kind"].as_str() {
                Some("ClusterRole") => self.make::<ClusterRole>(None, &object(value)?).await?,
                Some("ClusterRoleBinding") => self.make::<ClusterRoleBinding>(None, &object(value)?).await?,
                Some("Role") => self.make::<Role>(namespace.as_deref(), &object(value)?).await?,
                Some("RoleBinding") => {
                    self.make::<RoleBinding>(namespace.as_deref(), &object(value)?).await?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Makes an object as one who may do everything.
    pub async fn make<K>(&self, namespace: Option<&str>, object: &K) -> Result<()>
    where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Serialize + std::fmt::Debug,
    {
        let url = K::url_path(&(), namespace);
        let request =
            kube::core::Request::new(url).create(&PostParams::default(), serde_json::to_vec(object)?)?;
        let name = object.name_any();
        self.admin.request::<Value>(request).await.with_context(|| format!("cannot make {name}"))?;
        Ok(())
    }

    /// Applies a tenant as kubectl does: a field that does not exist is an error.
    pub async fn apply_strictly(&self, tenant: &Value) -> Result<()> {
        let api: Api<DynamicObject> =
            Api::namespaced_with(self.admin.clone(), TEAM, &ApiResource::erase::<Tenant>(&()));
        let how = PatchParams::apply("people").validation_strict();
        let name = tenant["metadata"]["name"].as_str().context("it has no name")?;
        api.patch(name, &how, &Patch::Apply(tenant)).await?;
        Ok(())
    }

    pub fn tenants(&self) -> Api<Tenant> {
        Api::namespaced(self.admin.clone(), TEAM)
    }

    pub fn timelines(&self) -> Api<Timeline> {
        Api::namespaced(self.admin.clone(), TEAM)
    }

    /// Starts an operator under a name.
    pub fn operator(&self, identity: &str) -> Result<Operator> {
        let http = Port::take()?;
        let file = |name: &str| self.home.path().join(name);
        let mut command = account::command_as(None, &testkit::pageserver::binary("operator")?);
        command
            .env("KUBECONFIG", file("kubeconfig"))
            .args([
                "run",
                "--lease-namespace",
                OPERATORS,
                "--lease-name",
                "palimpsest",
                "--identity",
                identity,
            ])
            .args(["--listen-http-addr", &http.address(), "--log-filter", "info,operator=debug"])
            .arg("--control-token-file")
            .arg(file("token"));
        let process = Process::start("operator", command, &file(&format!("{identity}.log")))?;
        Ok(Operator { process, http })
    }

    /// Starts a pageserver of the pool `main` with an empty disk, and the pod that it runs in.
    pub async fn pageserver(&self, pod: &str) -> Result<Pageserver> {
        self.pageserver_of(&self.main, pod, BucketAt::Directory(self.bucket.path().to_owned()), &[]).await
    }

    /// The same in a pool, over a bucket, with settings.
    pub async fn pageserver_of(
        &self,
        pool: &Pool,
        pod: &str,
        bucket: BucketAt,
        settings: &[(&str, &str)],
    ) -> Result<Pageserver> {
        let pods: Api<Pod> = Api::namespaced(self.admin.clone(), POOLS);
        let wanted = json!({
            "metadata": {"name": pod, "labels": {"palimpsest.dev/pool": pool.name}},
            "spec": {"nodeName": "here", "containers": [{"name": "pageserver", "image": "localhost/pageserver"}]},
        });
        let made = pods.create(&PostParams::default(), &object(wanted)?).await?;
        let token = self.home.path().join("token").display().to_string();
        let (uid, control) =
            (made.uid().context("it has no uid")?, format!("{}:{}", self.address, pool.control.number()));
        let own = [
            ("listen_control_addr", control.as_str()),
            ("control_token_file", &token),
            ("pod_name", pod),
            ("pod_uid", &uid),
            ("wal_seal_age", "300ms"),
        ];
        let server = Pageserver::start(bucket, &[&own, settings].concat()).await?;
        let address = self.address.to_string();
        let status = json!({"status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]}});
        pods.patch_status(pod, &PatchParams::default(), &Patch::Merge(status)).await?;
        Ok(server)
    }

    /// The node's last word on a pod: it is gone with its disk.
    pub async fn lose(&self, pod: &str, mut server: Pageserver) -> Result<()> {
        server.kill();
        let pods: Api<Pod> = Api::namespaced(self.admin.clone(), POOLS);
        pods.delete(pod, &DeleteParams::default().grace_period(0)).await?;
        Ok(())
    }

    /// What the API server refused to the operator.
    pub fn refused(&self) -> Result<Vec<String>> {
        let log = std::fs::read_to_string(self.plane.audit_log())?;
        let is_refused = |line: &&str| line.contains(ACCOUNT) && line.contains("\"code\":403");
        Ok(log.lines().filter(is_refused).map(ToOwned::to_owned).collect())
    }

    /// The last words of all operators that ran.
    fn operators_said(&self) -> String {
        let files =
            std::fs::read_dir(self.home.path()).into_iter().flatten().flatten().map(|entry| entry.path());
        let logs = files.filter(|path| path.extension().is_some_and(|name| name == "log"));
        let tails = logs.map(|path| {
            let log = std::fs::read_to_string(&path).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            format!("{}:\n{}", path.display(), lines[lines.len().saturating_sub(80)..].join("\n"))
        });
        tails.collect::<Vec<_>>().join("\n")
    }

    pub fn pools(&self) -> Api<PageserverPool> {
        Api::namespaced(self.admin.clone(), POOLS)
    }

    /// Waits until a pool says of itself what it is to say.
    pub async fn pool_when(
        &self,
        name: &str,
        is: impl Fn(&PageserverPool) -> bool,
    ) -> Result<PageserverPool> {
        self.when(&self.pools(), name, is).await
    }

    /// Waits until a tenant says of itself what it is to say; gives it.
    pub async fn tenant_when(&self, name: &str, is: impl Fn(&Tenant) -> bool) -> Result<Tenant> {
        self.when(&self.tenants(), name, is).await
    }

    /// The same for a timeline.
    pub async fn timeline_when(&self, name: &str, is: impl Fn(&Timeline) -> bool) -> Result<Timeline> {
        self.when(&self.timelines(), name, is).await
    }

    async fn when<K>(&self, api: &Api<K>, name: &str, is: impl Fn(&K) -> bool) -> Result<K>
    where
        K: Clone + DeserializeOwned + Serialize + std::fmt::Debug,
    {
        let mut last = None;
        let what = format!("{name} is as expected");
        let seen = eventually(&what, async || {
            let found = api.get(name).await?;
            let seen = is(&found);
            last = Some(found);
            Ok(seen)
        });
        let seen = seen.await;
        seen.with_context(|| format!("it says {}\n{}", json!(last)["status"], self.operators_said()))?;
        last.context("it was seen")
    }
}

/// An operator that runs. Dropping it kills it.
pub struct Operator {
    pub process: Process,
    http: Port,
}

impl Operator {
    /// What it says of itself over HTTP.
    pub async fn metrics(&self) -> Result<String> {
        let address = self.http.address();
        let answer = tokio::task::spawn_blocking(move || {
            std::process::Command::new("curl")
                .args(["-sf", "--noproxy", "*", &format!("http://{address}/metrics")])
                .output()
        });
        Ok(String::from_utf8(answer.await??.stdout)?)
    }
}

/// Whether a tenant says that it is ready, of what it is now.
pub fn is_ready(tenant: &Tenant) -> bool {
    let conditions = tenant.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    let ready = conditions.iter().find(|one| one.type_ == "Ready");
    condition::is_true(conditions, "Ready")
        && ready.and_then(|one| one.observed_generation) == tenant.metadata.generation
}

/// Asks until it is so.
pub async fn eventually(what: &str, mut is: impl AsyncFnMut() -> Result<bool>) -> Result<()> {
    let since = Instant::now();
    while !is().await? {
        ensure!(since.elapsed() < PATIENCE, "after {PATIENCE:?} it is still not so that {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// A tenant of the pool `main`, with these fields of its spec.
pub fn tenant(name: &str, spec: &Value) -> Result<Tenant> {
    let mut whole = json!({
        "poolRef": {"namespace": "storage", "name": "main"},
        "retention": {"deletionProtection": false},
    });
    for (field, value) in spec.as_object().context("a spec")? {
        whole[field] = value.clone();
    }
    object(json!({"metadata": {"name": name, "namespace": TEAM}, "spec": whole}))
}

/// A timeline of the tenant `acme` that follows a Postgres of this machine, with a password by its key.
pub fn following(name: &str, port: u16, credentials: Option<&str>) -> Result<Timeline> {
    let primary = json!({"host": "127.0.0.1", "port": port, "user": "postgres", "sslMode": "disable"});
    let mut source = json!({"primary": primary});
    if let Some(key) = credentials {
        source["credentials"] = key.into();
    }
    object(json!({
        "metadata": {"name": name, "namespace": TEAM},
        "spec": {"tenantRef": {"name": "acme"}, "source": source},
    }))
}

/// An object from what people write.
pub fn object<K: DeserializeOwned>(value: Value) -> Result<K> {
    let text = value.to_string();
    serde_json::from_value(value).with_context(|| format!("{text} is none"))
}

async fn client_of(kubeconfig: &str) -> Result<Client> {
    let config = Kubeconfig::from_yaml(kubeconfig)?;
    let config = Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await?;
    Ok(Client::try_from(config)?)
}

/// The address by which others reach this machine. Nothing is sent.
fn own_address() -> Result<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect("192.0.2.1:9").context("this machine has no address but its loopback")?;
    Ok(socket.local_addr()?.ip())
}

fn pool(pool: &Pool) -> Result<PageserverPool> {
    object(json!({
        "metadata": {"name": pool.name},
        "spec": {
            "selector": {"matchLabels": {"palimpsest.dev/pool": pool.name}},
            "ports": {"control": pool.control.number(), "pg": 6400},
            "storage": {"provider": "S3", "bucket": "history"},
            "tenants": {"allowedNamespaces": {"from": "All"}},
            "controlAuth": {"mode": "BearerFile"},
        },
    }))
}
