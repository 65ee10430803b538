//! The API server that tests of the operator talk to is a real one.

use std::process::Command;
use std::time::{Duration, Instant};

use testkit::kubernetes::ControlPlane;

/// Status and body of a request by curl with the certificate of a user of `kubeconfig`.
fn ask(kubeconfig: &str, method: &str, path: &str, body: Option<&str>) -> (u16, serde_json::Value) {
    let config: serde_json::Value = serde_json::from_str(kubeconfig).unwrap();
    let (cluster, user) = (&config["clusters"][0]["cluster"], &config["users"][0]["user"]);
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    let mut command = Command::new("curl");
    command
        .args(["--silent", "--noproxy", "*", "--write-out", "\n%{http_code}", "--request", method])
        .args(["--cacert", &text(&cluster["certificate-authority"])])
        .args(["--cert", &text(&user["client-certificate"]), "--key", &text(&user["client-key"])]);
    if let Some(body) = body {
        command.args(["--header", "content-type: application/json", "--data", body]);
    }
    let output = command.arg(format!("{}{path}", text(&cluster["server"]))).output().unwrap();
    let output = String::from_utf8(output.stdout).unwrap();
    let (body, status) = output.rsplit_once('\n').unwrap();
    (status.parse().unwrap(), serde_json::from_str(body).unwrap_or_default())
}

#[tokio::test]
async fn an_api_server_starts_obeys_roles_logs_requests_and_keeps_objects_over_a_crash() {
    let mut plane = ControlPlane::start().await.unwrap();
    let admin = plane.kubeconfig();
    let (status, version) = ask(&admin, "GET", "/version", None);
    assert_eq!((status, version["major"].as_str()), (200, Some("1")), "{version}");

    let map = r#"{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "kept"}}"#;
    let maps = "/api/v1/namespaces/default/configmaps";
    assert_eq!(ask(&admin, "POST", maps, Some(map)).0, 201);
    let stranger = plane.kubeconfig_for("system:serviceaccount:default:nobody", &[]).unwrap();
    assert_eq!(ask(&stranger, "GET", maps, None).0, 403);
    let log = std::fs::read_to_string(plane.audit_log()).unwrap();
    assert!(log.lines().any(|line| line.contains("system:serviceaccount:default:nobody")), "{log}");

    plane.kill_api_server();
    plane.start_api_server_again().await.unwrap();
    assert_eq!(ask(&admin, "GET", &format!("{maps}/kept"), None).0, 200);
}

#[tokio::test]
async fn namespaces_are_emptied_once_the_controllers_run() {
    let mut plane = ControlPlane::start().await.unwrap();
    let admin = plane.kubeconfig();
    plane.start_controllers().unwrap();
    let namespace = r#"{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "short-lived"}}"#;
    assert_eq!(ask(&admin, "POST", "/api/v1/namespaces", Some(namespace)).0, 201);
    let map = r#"{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "gone"}}"#;
    assert_eq!(ask(&admin, "POST", "/api/v1/namespaces/short-lived/configmaps", Some(map)).0, 201);
    assert_eq!(ask(&admin, "DELETE", "/api/v1/namespaces/short-lived", None).0, 200);
    let since = Instant::now();
    while ask(&admin, "GET", "/api/v1/namespaces/short-lived", None).0 != 404 {
        assert!(since.elapsed() < Duration::from_mins(2), "the namespace stays");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
