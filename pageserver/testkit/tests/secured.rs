//! Who is let in: tokens on libpq and HTTP, and TLS, with Postgres' own client.

use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use http_body_util::{BodyExt as _, Empty};
use hyper::{Method, StatusCode};
use model::{TenantId, TimelineId};
use testkit::account::{self, command_as};
use testkit::certificate::Issuer;
use testkit::postgres::Installation;
use testkit::token::Signer;
use testkit::{BucketAt, Pageserver, Postgres, PostgresConfig};

/// Asks with psql; its output, or what it complains of.
async fn psql(conninfo: &str, token: &str, command: &str) -> Result<String> {
    let program = Installation::find(15)?.program("psql")?;
    let mut psql = command_as(None, &program);
    psql.args(["-X", "-At", "-c", command, conninfo]).env("PGPASSWORD", token);
    testkit::postgres::run(psql).await
}

async fn http(
    server: &Pageserver,
    method: Method,
    path: &str,
    token: Option<&str>,
) -> Result<(StatusCode, String)> {
    let client =
        hyper_util::client::legacy::Client::builder(hyper_util::rt::TokioExecutor::new()).build_http();
    let mut request =
        hyper::Request::builder().method(method).uri(format!("http://{}{path}", server.http_address()));
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    let answer = client.request(request.body(Empty::<bytes::Bytes>::new())?).await?;
    let status = answer.status();
    let body = answer.into_body().collect().await?.to_bytes();
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_of_one_tenant_never_opens_anothers() {
    tokens().await.unwrap();
}

async fn tokens() -> Result<()> {
    let (bucket, keys) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let (signer, stranger) = (Signer::new(1), Signer::new(2));
    std::fs::write(keys.path().join("public.pem"), signer.public_key())?;
    let settings = [("jwt_public_key_dir", keys.path().to_str().context("UTF-8")?)];
    let server = Pageserver::start(BucketAt::Directory(bucket.path().to_owned()), &settings).await?;
    let (own, other) = (TenantId(rand::random()), TenantId(rand::random()));
    let (mine, all) = (signer.of_tenant(own), signer.token(r#"{"scope":"pageserverapi"}"#));
    let forged = stranger.token(r#"{"scope":"pageserverapi"}"#);
    let (host, port) = server
        .libpq_address()
        .split_once(':')
        .map(|(h, p)| (h.to_owned(), p.to_owned()))
        .context("host:port")?;
    let conninfo = format!("host={host} port={port} user=compute dbname=postgres sslmode=disable");

    let timeline = TimelineId(rand::random());
    let lease = |tenant: TenantId| format!("lease lsn {tenant} {timeline} 0/1000000");
    for (token, tenant, expected) in [
        (&mine, own, "is not here"),
        (&mine, other, "JWT authentication error"),
        (&all, own, "is not here"),
        (&all, other, "is not here"),
        (&forged, own, "JWT authentication error"),
        (&String::from("no token"), own, "JWT authentication error"),
    ] {
        let said = psql(&conninfo, token, &lease(tenant)).await.unwrap_err().to_string();
        ensure!(said.contains(expected), "{expected:?} was expected: {said}");
    }
    ensure!(psql(&conninfo, &mine, "show max_batch_size").await?.contains("32"));
    let said = psql(&conninfo, &forged, "show max_batch_size").await.unwrap_err().to_string();
    ensure!(said.contains("JWT authentication error"), "{said}");

    let detail = |tenant: TenantId| format!("/v1/tenant/{tenant}");
    let below = |tenant: TenantId| format!("/v1/tenant/{tenant}/timeline");
    for (method, path, token, expected) in [
        (Method::GET, "/v1/status".to_owned(), None, 200),
        (Method::GET, "/healthz".into(), None, 200),
        (Method::GET, "/readyz".into(), None, 200),
        (Method::GET, "/metrics".into(), None, 200),
        (Method::GET, "/v1/tenant".into(), None, 401),
        (Method::GET, "/v1/tenant".into(), Some(&mine), 403),
        (Method::GET, "/v1/tenant".into(), Some(&forged), 403),
        (Method::GET, "/v1/tenant".into(), Some(&all), 200),
        (Method::GET, detail(own), Some(&mine), 404),
        (Method::GET, detail(other), Some(&mine), 403),
        (Method::GET, below(own), Some(&mine), 404),
        (Method::GET, below(other), Some(&mine), 403),
        (Method::DELETE, detail(own), Some(&mine), 403),
        (Method::DELETE, detail(own), Some(&all), 404),
        (Method::GET, "/v1/tasks".into(), Some(&mine), 403),
        (Method::GET, format!("/v1/tenant/../tenant/{own}"), Some(&mine), 403),
    ] {
        let (status, body) = http(&server, method.clone(), &path, token.map(String::as_str)).await?;
        ensure!(status.as_u16() == expected, "{method} {path}: {status} {body}, expected {expected}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_certificate_nobody_speaks_in_clear_text() {
    tls().await.unwrap();
}

async fn tls() -> Result<()> {
    let (bucket, home) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let at = |name: &str| home.path().join(name).display().to_string();
    let issuer = Issuer::new("who vouches in tests")?;
    let (certificate, key) = issuer.issue("localhost")?;
    std::fs::write(at("ca.crt"), issuer.pem())?;
    std::fs::write(at("tls.crt"), certificate)?;
    std::fs::write(at("tls.key"), key)?;
    let signer = Signer::new(1);
    std::fs::write(at("public.pem"), signer.public_key())?;
    let (cert, key, jwt) = (at("tls.crt"), at("tls.key"), at("public.pem"));
    let settings = [("tls_cert_file", cert.as_str()), ("tls_key_file", &key), ("jwt_public_key_dir", &jwt)];
    let server = Pageserver::launched(BucketAt::Directory(bucket.path().to_owned()), &settings)?;
    let port = server.libpq_address().rsplit(':').next().context("a port")?.to_owned();
    let conninfo = |mode: &str| {
        format!(
            "host=localhost port={port} user=compute dbname=postgres sslmode={mode} sslrootcert={}",
            at("ca.crt")
        )
    };
    let token = signer.token(r#"{"scope":"pageserverapi"}"#);

    let since = Instant::now();
    let shown = loop {
        match psql(&conninfo("verify-full"), &token, "show max_batch_size").await {
            Ok(shown) => break shown,
            Err(error) => ensure!(since.elapsed() < Duration::from_secs(30), "{error:?}\n{}", server.log()),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    ensure!(shown.contains("32"), "{shown}");
    let said =
        psql(&conninfo("verify-full"), "no token", "show max_batch_size").await.unwrap_err().to_string();
    ensure!(said.contains("JWT authentication error"), "{said}");
    let said = psql(&conninfo("disable"), &token, "show max_batch_size").await.unwrap_err().to_string();
    ensure!(said.contains("TLS is required"), "{said}");
    // HTTP in clear text hears nothing, and keeps nobody else from being served.
    ensure!(http(&server, Method::GET, "/v1/status", None).await.is_err());
    psql(&conninfo("require"), &token, "show max_batch_size").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_is_known_by_its_certificate_and_knows_us_by_ours() {
    secured_source().await.unwrap();
}

async fn secured_source() -> Result<()> {
    let primary = Postgres::start(&PostgresConfig::new(15)).await?;
    primary.sql("CREATE ROLE streamer LOGIN REPLICATION; CREATE TABLE t (n int)").await?;
    let ours = tempfile::tempdir()?;
    let (issuer, stranger) = (Issuer::new("who vouches in tests")?, Issuer::new("a stranger")?);
    let (certificate, key) = issuer.issue("localhost")?;
    let settings = [
        ("ssl_cert_file", "server.crt", certificate),
        ("ssl_key_file", "server.key", key),
        ("ssl_ca_file", "ca.crt", issuer.pem()),
    ];
    for (setting, file, content) in &settings {
        let path = primary.data_dir().join(file);
        std::fs::write(&path, content)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
        account::give_to(account::postgres_account()?, &path)?;
        primary.sql(&format!("ALTER SYSTEM SET {setting} = '{file}'")).await?;
    }
    primary.sql("ALTER SYSTEM SET ssl = on").await?;
    let mut hba = std::fs::read_to_string(primary.data_dir().join("pg_hba.conf"))?;
    hba.insert_str(
        0,
        "hostssl all,replication streamer all cert\nhost all,replication streamer all reject\n",
    );
    std::fs::write(primary.data_dir().join("pg_hba.conf"), hba)?;
    primary.sql("SELECT pg_reload_conf()").await?;

    let at = |name: &str| ours.path().join(name).display().to_string();
    std::fs::write(at("ca.crt"), issuer.pem())?;
    std::fs::write(at("stranger.crt"), stranger.pem())?;
    let (certificate, key) = issuer.issue("streamer")?;
    std::fs::write(at("tls.crt"), certificate)?;
    std::fs::write(at("tls.key"), key)?;
    let bucket = tempfile::tempdir()?;
    let settings = [("credentials_dir", ours.path().to_str().context("UTF-8")?)];
    let mut server = Pageserver::start(BucketAt::Directory(bucket.path().to_owned()), &settings).await?;
    let tenant = TenantId(rand::random());
    let source = |host: &str, more: &str| {
        format!("host={host} port={} user=streamer dbname=postgres {more}", primary.port())
    };
    for (dsn, complaint) in [
        (source("localhost", "sslmode=disable"), "pg_hba.conf rejects"),
        (
            source("localhost", &format!("sslmode=verify-full sslrootcert={}", at("stranger.crt"))),
            "UnknownIssuer",
        ),
        (source("127.0.0.1", "sslmode=verify-full"), "not valid for name"),
        (source("localhost", "sslmode=verify-full credentials=absent"), "certificate"),
    ] {
        let said = server.follow(tenant, TimelineId(rand::random()), &dsn).await.unwrap_err().to_string();
        ensure!(said.contains(complaint), "{dsn}: {complaint:?} was expected: {said}");
    }
    for mode in ["verify-full", "verify-ca", "require", "prefer"] {
        let timeline = TimelineId(rand::random());
        let host = if mode == "verify-full" { "localhost" } else { "127.0.0.1" };
        server.follow(tenant, timeline, &source(host, &format!("sslmode={mode}"))).await?;
        server.wait_active(tenant, timeline, Duration::from_mins(1)).await?;
    }
    let encrypted = "SELECT count(*) FROM pg_stat_replication JOIN pg_stat_ssl USING (pid) WHERE ssl AND client_dn = '/CN=streamer'";
    let since = Instant::now();
    while primary.value(encrypted).await? != "4" {
        ensure!(since.elapsed() < Duration::from_secs(20), "not all streams are within TLS");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}
