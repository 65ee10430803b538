//! A cluster, by the commands that its users type: kubectl and helm. Stories show what those answer, so they ask nobody else.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::tool;

/// A cluster, and the programs that speak with it.
#[derive(Clone, Debug)]
pub struct Cluster {
    kubeconfig: PathBuf,
    kubectl: PathBuf,
    helm: PathBuf,
}

impl Cluster {
    /// The one that `KUBECONFIG` names.
    pub fn from_environment() -> Result<Cluster> {
        let kubeconfig = std::env::var_os("KUBECONFIG").filter(|value| !value.is_empty());
        Cluster::at(Path::new(&kubeconfig.context("KUBECONFIG names no cluster: run make e2e")?))
    }

    /// The one that a kubeconfig names.
    pub fn at(kubeconfig: &Path) -> Result<Cluster> {
        ensure!(kubeconfig.is_file(), "there is no {}", kubeconfig.display());
        Ok(Cluster {
            kubeconfig: kubeconfig.into(),
            kubectl: tool::find("kubernetes/kubectl")?,
            helm: tool::find("helm/helm")?,
        })
    }

    /// `kubectl` with `arguments`.
    pub fn command(&self, arguments: &[&str]) -> Command {
        self.program(&self.kubectl, arguments)
    }

    /// Runs `kubectl` and gives what it prints.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        tool::text(&mut self.command(arguments), None)
    }

    /// Runs `helm` and gives what it prints.
    pub fn helm(&self, arguments: &[&str]) -> Result<String> {
        tool::text(&mut self.program(&self.helm, arguments), None)
    }

    /// Applies YAML as users do, to the server and strictly: a misspelt field is an error.
    pub fn apply(&self, yaml: &str) -> Result<()> {
        let arguments =
            ["apply", "--server-side", "--field-manager=story", "--validate=strict", "--filename=-"];
        tool::run(&mut self.command(&arguments), Some(yaml)).map(drop)
    }

    /// One resource.
    pub fn get(&self, namespace: &str, resource: &str) -> Result<Value> {
        let text = self.kubectl(&["--namespace", namespace, "get", resource, "--output=json"])?;
        serde_json::from_str(&text).with_context(|| format!("{resource} is no JSON"))
    }

    /// One field of a resource; empty if it has none.
    pub fn field(&self, namespace: &str, resource: &str, path: &str) -> Result<String> {
        let path = format!("--output=jsonpath={{{path}}}");
        self.kubectl(&["--namespace", namespace, "get", resource, &path])
    }

    /// `kubectl wait` for a condition; what the resource says of itself is part of the error.
    pub fn wait(&self, namespace: &str, resource: &str, condition: &str, within: Duration) -> Result<()> {
        let (condition, timeout) =
            (format!("--for=condition={condition}"), format!("--timeout={}s", within.as_secs()));
        let waited = self.kubectl(&["--namespace", namespace, "wait", &condition, &timeout, resource]);
        let Err(error) = waited else { return Ok(()) };
        let conditions = self.field(namespace, resource, ".status.conditions").unwrap_or_default();
        Err(error.context(format!("{resource} in {namespace} says {conditions}")))
    }

    /// `kubectl rollout status`: all pods of a workload are of its newest form and ready.
    pub fn rolled_out(&self, namespace: &str, workload: &str, within: Duration) -> Result<()> {
        let timeout = format!("--timeout={}s", within.as_secs());
        self.kubectl(&["--namespace", namespace, "rollout", "status", workload, &timeout]).map(drop)
    }

    /// Runs a program in a pod and gives what it prints.
    pub fn exec(&self, namespace: &str, pod: &str, words: &[&str]) -> Result<String> {
        let mut arguments = vec!["--namespace", namespace, "exec", pod, "--"];
        arguments.extend(words);
        self.kubectl(&arguments)
    }

    /// Asks again until something is true; says what the last answer was when it takes too long.
    pub fn until(
        &self,
        what: &str,
        within: Duration,
        mut is_true: impl FnMut(&Cluster) -> Result<bool>,
    ) -> Result<()> {
        let since = Instant::now();
        loop {
            let answer = is_true(self);
            if matches!(answer, Ok(true)) {
                return Ok(());
            }
            if since.elapsed() > within {
                bail!("not {what} within {within:?}; the last answer was {answer:?}");
            }
            std::thread::sleep(Duration::from_millis(300));
        }
    }

    fn program(&self, program: &Path, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(arguments).env("KUBECONFIG", &self.kubeconfig);
        command
    }
}
