//! A real Kubernetes API server over a real etcd, without nodes: what tests of the operator talk to.
//!
//! Objects are stored, validated, watched and guarded by roles as in any cluster. Nothing runs them: there is no scheduler and no kubelet, so
//! tests write the status of pods themselves. Whoever needs namespaces to be emptied or owned objects to be collected starts the controllers
//! that do so ([`ControlPlane::start_controllers`]).

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use crate::account;
use crate::port::Port;
use crate::process::Process;

/// How long a start may take: four seconds on an idle machine, and much longer beside builds.
const PATIENCE: Duration = Duration::from_mins(2);

/// What openssl is told, whatever the machine's own settings are.
const OPENSSL: &str = "\
[req]
distinguished_name = name
prompt = no
[name]
[authority]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
[server]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth
subjectAltName = DNS:localhost, DNS:kubernetes.default.svc, IP:127.0.0.1
[client]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = clientAuth
";

/// Every request is logged once, when it is answered.
const AUDIT_POLICY: &str = "\
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules: [{level: Metadata}]
";

/// An etcd and an API server with RBAC. Dropping it ends both and removes what they stored.
#[derive(Debug)]
pub struct ControlPlane {
    programs: PathBuf,
    etcd_client: Port,
    etcd_peer: Port,
    api: Port,
    // Dropped in this order: those who talk end before those who are talked to.
    controllers: Option<Process>,
    api_server: Option<Process>,
    etcd: Option<Process>,
    home: TempDir,
}

impl ControlPlane {
    /// Starts the version that scripts/versions.env names, and waits until it is ready.
    pub async fn start() -> Result<ControlPlane> {
        ControlPlane::start_version(None).await
    }

    /// Starts a version such as `1.35.4`, which has to be installed.
    pub async fn start_version(version: Option<&str>) -> Result<ControlPlane> {
        let programs = installed(version)?;
        let home = tempfile::Builder::new().prefix("palimpsest-kubernetes-").tempdir()?;
        make_certificates(home.path())?;
        fs::write(home.path().join("audit-policy.yaml"), AUDIT_POLICY)?;
        let mut plane = ControlPlane {
            programs,
            etcd_client: Port::take()?,
            etcd_peer: Port::take()?,
            api: Port::take()?,
            controllers: None,
            api_server: None,
            etcd: None,
            home,
        };
        plane.start_etcd()?;
        plane.start_api_server_again().await?;
        Ok(plane)
    }

    /// `https://127.0.0.1:<port>`.
    pub fn url(&self) -> String {
        format!("https://{}", self.api.address())
    }

    /// A kubeconfig of one who may do everything. It names files that are gone when this is.
    pub fn kubeconfig(&self) -> String {
        self.kubeconfig_of("admin")
    }

    /// A kubeconfig of a user in some groups, who may do what roles say. A service account is a user `system:serviceaccount:<namespace>:<name>` in
    /// the groups `system:serviceaccounts` and `system:serviceaccounts:<namespace>`.
    pub fn kubeconfig_for(&self, user: &str, groups: &[&str]) -> Result<String> {
        let file = user.replace(|c: char| !c.is_ascii_alphanumeric(), "-");
        client_certificate(self.home.path(), &file, user, groups)?;
        Ok(self.kubeconfig_of(&file))
    }

    /// The API server's log of requests: one JSON object a line, with user, verb and resource.
    pub fn audit_log(&self) -> PathBuf {
        self.home.path().join("audit.log")
    }

    /// kill -9 of the API server: nothing in etcd is lost.
    pub fn kill_api_server(&mut self) {
        if let Some(mut process) = self.api_server.take() {
            process.kill();
        }
    }

    /// Starts the API server on the same port, and waits until it is ready.
    pub async fn start_api_server_again(&mut self) -> Result<()> {
        self.kill_api_server();
        let home = self.home.path();
        let mut command = account::command_as(None, &self.programs.join("kube-apiserver"));
        command
            .arg(format!("--etcd-servers=http://{}", self.etcd_client.address()))
            .arg(format!("--secure-port={}", self.api.number()))
            .args(["--bind-address=127.0.0.1", "--advertise-address=127.0.0.1"])
            // There is no node that could reach the Service `kubernetes`.
            .arg("--endpoint-reconciler-type=none")
            .arg("--service-cluster-ip-range=10.96.0.0/16")
            .arg("--authorization-mode=RBAC")
            // Nobody makes the accounts that pods would be refused without.
            .arg("--disable-admission-plugins=ServiceAccount")
            .arg("--allow-privileged=true")
            .arg("--service-account-issuer=https://kubernetes.default.svc.cluster.local")
            .arg("--profiling=false")
            .arg(option("--client-ca-file", &home.join("ca.crt")))
            .arg(option("--tls-cert-file", &home.join("server.crt")))
            .arg(option("--tls-private-key-file", &home.join("server.key")))
            .arg(option("--service-account-key-file", &home.join("accounts.pub")))
            .arg(option("--service-account-signing-key-file", &home.join("accounts.key")))
            .arg(option("--audit-policy-file", &home.join("audit-policy.yaml")))
            .arg(option("--audit-log-path", &home.join("audit.log")))
            .current_dir(home);
        self.api_server = Some(Process::start("kube-apiserver", command, &home.join("kube-apiserver.log"))?);
        // The namespace is made a moment after the server says that it is ready.
        for path in ["/readyz", "/api/v1/namespaces/default"] {
            self.answers(path).await?;
        }
        Ok(())
    }

    /// Starts the controllers that empty namespaces, collect owned objects and tell how admission policies fare.
    pub fn start_controllers(&mut self) -> Result<()> {
        let home = self.home.path();
        let kubeconfig = home.join("controllers.yaml");
        fs::write(&kubeconfig, self.kubeconfig())?;
        let mut command = account::command_as(None, &self.programs.join("kube-controller-manager"));
        command
            .arg(option("--kubeconfig", &kubeconfig))
            .args(["--secure-port=0", "--leader-elect=false", "--profiling=false"])
            .arg(
                "--controllers=namespace-controller,garbage-collector-controller,\
                 validatingadmissionpolicy-status-controller,clusterrole-aggregation-controller",
            )
            .current_dir(home);
        let log = home.join("kube-controller-manager.log");
        self.controllers = Some(Process::start("kube-controller-manager", command, &log)?);
        Ok(())
    }

    fn start_etcd(&mut self) -> Result<()> {
        let home = self.home.path();
        let (client, peer) = (
            format!("http://{}", self.etcd_client.address()),
            format!("http://{}", self.etcd_peer.address()),
        );
        let mut command = account::command_as(None, &self.programs.join("etcd"));
        command
            .arg(option("--data-dir", &home.join("etcd")))
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("default={peer}")])
            // What is stored lives no longer than the test.
            .args(["--unsafe-no-fsync", "--log-level", "warn"])
            .current_dir(home);
        self.etcd = Some(Process::start("etcd", command, &home.join("etcd.log"))?);
        Ok(())
    }

    async fn answers(&mut self, path: &str) -> Result<()> {
        let since = Instant::now();
        while !self.is_ok(path)? {
            for process in [&mut self.etcd, &mut self.api_server].into_iter().flatten() {
                if let Some(status) = process.exit_status() {
                    bail!("{} ended with {status}:\n{}", process.name(), process.log_tail());
                }
            }
            if since.elapsed() > PATIENCE {
                let log = self.api_server.as_ref().map(Process::log_tail).unwrap_or_default();
                bail!("the API server does not answer {path} after {PATIENCE:?}:\n{log}");
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    /// Whether a GET is answered with success.
    fn is_ok(&self, path: &str) -> Result<bool> {
        let home = self.home.path();
        let status = Command::new("curl")
            .args(["--silent", "--fail", "--max-time", "5", "--noproxy", "*", "--output", "/dev/null"])
            .arg("--cacert")
            .arg(home.join("ca.crt"))
            .arg("--cert")
            .arg(home.join("admin.crt"))
            .arg("--key")
            .arg(home.join("admin.key"))
            .arg(format!("{}{path}", self.url()))
            .stdin(Stdio::null())
            .status()
            .context("cannot start curl")?;
        Ok(status.success())
    }

    fn kubeconfig_of(&self, file: &str) -> String {
        let home = self.home.path().display();
        let url = self.url();
        // JSON is YAML: no value has to be quoted by hand.
        serde_json::json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": file}}],
            "clusters": [{
                "name": "test",
                "cluster": {"server": url, "certificate-authority": format!("{home}/ca.crt")},
            }],
            "users": [{
                "name": file,
                "user": {
                    "client-certificate": format!("{home}/{file}.crt"),
                    "client-key": format!("{home}/{file}.key"),
                },
            }],
        })
        .to_string()
    }
}

/// Where the programs of a version are; without one, those of the default version.
pub fn installed(version: Option<&str>) -> Result<PathBuf> {
    let name = version.map_or("kubernetes".to_owned(), |version| format!("kubernetes-{version}"));
    let home = account::cache_dir()?.join(name);
    for program in ["etcd", "kube-apiserver"] {
        ensure!(
            home.join(program).is_file(),
            "there is no {program} in {}: run scripts/install-kubernetes.sh{}",
            home.display(),
            version.map(|version| format!(" --version {version}")).unwrap_or_default(),
        );
    }
    Ok(home)
}

fn option(name: &str, path: &Path) -> String {
    format!("{name}={}", path.display())
}

fn make_certificates(home: &Path) -> Result<()> {
    fs::write(home.join("openssl.cnf"), OPENSSL)?;
    key(home, "ca")?;
    openssl(home, "req -x509 -new -key ca.key -days 30 -extensions authority -out ca.crt", "/CN=test")?;
    key(home, "server")?;
    signed(home, "server", "server", "/CN=kube-apiserver")?;
    key(home, "accounts")?;
    openssl(home, "pkey -in accounts.key -pubout -out accounts.pub", "")?;
    client_certificate(home, "admin", "admin", &["system:masters"])
}

/// `<file>.crt` and `<file>.key` of a user: the API server takes the name from CN and the groups from O.
fn client_certificate(home: &Path, file: &str, user: &str, groups: &[&str]) -> Result<()> {
    let mut subject = String::new();
    for group in groups {
        write!(subject, "/O={group}")?;
    }
    write!(subject, "/CN={user}")?;
    key(home, file)?;
    signed(home, file, "client", &subject)
}

fn key(home: &Path, file: &str) -> Result<()> {
    openssl(home, &format!("genpkey -algorithm EC -pkeyopt ec_paramgen_curve:prime256v1 -out {file}.key"), "")
}

fn signed(home: &Path, file: &str, extensions: &str, subject: &str) -> Result<()> {
    openssl(home, &format!("req -new -key {file}.key -out {file}.csr"), subject)?;
    let sign = "x509 -req -CA ca.crt -CAkey ca.key -CAcreateserial -days 30 -extfile openssl.cnf";
    openssl(home, &format!("{sign} -in {file}.csr -extensions {extensions} -out {file}.crt"), "")
}

fn openssl(home: &Path, arguments: &str, subject: &str) -> Result<()> {
    let mut command = Command::new("openssl");
    command.args(arguments.split(' ')).current_dir(home).env("OPENSSL_CONF", home.join("openssl.cnf"));
    if !subject.is_empty() {
        command.args(["-subj", subject]);
    }
    let output = command.stdin(Stdio::null()).output().context("cannot start openssl")?;
    ensure!(
        output.status.success(),
        "openssl {arguments} failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_name_users_and_groups() {
        let home = tempfile::tempdir().unwrap();
        make_certificates(home.path()).unwrap();
        client_certificate(home.path(), "reader", "system:serviceaccount:a:b", &["one", "two"]).unwrap();
        let output = Command::new("openssl")
            .args(["verify", "-CAfile", "ca.crt", "-purpose", "sslclient", "reader.crt"])
            .current_dir(home.path())
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let output = Command::new("openssl")
            .args(["x509", "-in", "reader.crt", "-noout", "-subject", "-nameopt", "RFC2253"])
            .current_dir(home.path())
            .output()
            .unwrap();
        let subject = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        assert_eq!(subject, "subject=CN=system:serviceaccount:a:b,O=two,O=one");
    }
}
