//! What a cluster installs: the checked-in definitions are those of the code, and their rules accept and refuse what they should.

use kube_cel::Validator;
use operator::api::{PageserverPool, Tenant, Timeline};
use operator::crds;
use serde_json::{Value, json};

#[test]
fn the_definitions_that_are_checked_in_are_those_of_the_code() {
    let folder = testkit::source_dir(env!("CARGO_MANIFEST_DIR")).join("../crds");
    for crd in crds::all() {
        let path = folder.join(format!("{}.yaml", crd.metadata.name.as_deref().unwrap()));
        let yaml = crds::yaml(&crd).unwrap();
        if std::env::var_os("BLESS").is_some() {
            std::fs::write(&path, &yaml).unwrap();
        }
        let found = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(found == yaml, "{} differs; BLESS=1 rewrites it", path.display());
        let read: Value = serde_saphyr::from_str(&yaml).unwrap();
        assert_eq!(read, serde_json::to_value(&crd).unwrap(), "YAML says what the definition says");
    }
}

/// Asks the rules of a definition about a write. `Err` has all that they say.
fn write<T: kube::CustomResourceExt>(object: &Value, before: Option<&Value>) -> Result<(), String> {
    let crd = serde_json::to_value(T::crd()).unwrap();
    let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    Validator::new().validate(schema, object, before).map_err(|errors| format!("{errors:?}"))
}

/// `object` with the value at `path` replaced, or removed when it is null.
fn with(object: &Value, path: &str, value: Value) -> Value {
    let mut object = object.clone();
    let (parent, last) = path.rsplit_once('/').unwrap();
    let parent = object.pointer_mut(parent).unwrap_or_else(|| panic!("{path}")).as_object_mut().unwrap();
    if value.is_null() {
        parent.remove(last)
    } else {
        parent.insert(last.into(), value)
    };
    object
}

fn assert_refused<T: kube::CustomResourceExt>(object: &Value, before: Option<&Value>, why: &str) {
    let said = write::<T>(object, before).expect_err(why);
    assert!(said.contains(why), "{said} does not say {why:?}");
}

fn tenant() -> Value {
    json!({
        "apiVersion": "palimpsest.dev/v1alpha1", "kind": "Tenant", "metadata": {"name": "acme"},
        "spec": {
            "poolRef": {"name": "main"}, "tenantID": "6f1c5c7b2e9d4f5f8a3f1f2c9f1d4e77",
            "sharding": {"count": 2, "stripeSizePages": 2048},
        },
        "status": {"shards": [
            {"shard": "0002", "generation": 8, "attached": {"pod": "ps-1", "instance": "a", "generation": 8}},
            {"shard": "0102", "generation": 7},
        ]},
    })
}

#[test]
fn a_tenant_that_changes_as_it_may_is_accepted() {
    let before = tenant();
    write::<Tenant>(&before, None).unwrap();
    write::<Tenant>(&before, Some(&before)).unwrap();
    for (path, value) in [
        ("/status/shards/0/generation", json!(9)),
        ("/spec/sharding/count", json!(4)),
        ("/spec/activity", json!("Detached")),
    ] {
        write::<Tenant>(&with(&before, path, value), Some(&before))
            .unwrap_or_else(|said| panic!("{path}: {said}"));
    }
    let without_id = with(&before, "/spec/tenantID", Value::Null);
    write::<Tenant>(&before, Some(&without_id)).unwrap();
    write::<Tenant>(&before, Some(&with(&before, "/status", Value::Null))).unwrap();
}

#[test]
fn a_tenant_keeps_its_generations_its_id_and_its_pool() {
    let before = tenant();
    let cases = [
        ("/status/shards/0/generation", json!(7), "never decreases"),
        ("/status/shards", json!([before["status"]["shards"][0]]), "never removed"),
        ("/status", Value::Null, "never removed"),
        ("/spec/tenantID", Value::Null, "set once"),
        ("/spec/tenantID", json!("ff1c5c7b2e9d4f5f8a3f1f2c9f1d4e77"), "set once"),
        ("/spec/poolRef", json!({"name": "other"}), "poolRef is immutable"),
        ("/spec/sharding/count", json!(1), "count only grows"),
        ("/spec/sharding/stripeSizePages", json!(1), "stripeSizePages is immutable"),
    ];
    for (path, value, why) in cases {
        assert_refused::<Tenant>(&with(&before, path, value), Some(&before), why);
    }
}

#[test]
fn a_tenant_that_makes_no_sense_is_refused_at_once() {
    let good = tenant();
    let place = json!({"pod": "ps-1", "instance": "a", "generation": 9});
    let cases = [
        ("/spec/sharding/count", json!(3), "power of two"),
        ("/metadata/name", json!("a".repeat(53)), "at most 52"),
        ("/metadata/name", json!("1acme"), "begins with a letter"),
        ("/metadata/name", json!("ac.me"), "begins with a letter"),
        ("/status/shards/0/attached", place.clone(), "attached.generation"),
        ("/status/shards/0/target", place, "target.generation"),
    ];
    for (path, value, why) in cases {
        assert_refused::<Tenant>(&with(&good, path, value), None, why);
    }
}

fn timeline() -> Value {
    json!({
        "apiVersion": "palimpsest.dev/v1alpha1", "kind": "Timeline", "metadata": {"name": "acme-before"},
        "spec": {
            "tenantRef": {"name": "acme"}, "postgresVersion": 17, "timelineID": "0f3b6a5c1d2e4f60718293a4b5c6d7e8",
            "ancestor": {"timelineRef": {"name": "acme-main"}, "lsn": "0/16B3748"},
        },
    })
}

#[test]
fn a_timeline_may_get_a_source_later_and_nothing_else_of_its_origin() {
    let before = timeline();
    write::<Timeline>(&before, None).unwrap();
    let source = json!({"primary": {"host": "pg"}});
    write::<Timeline>(&with(&before, "/spec/source", source), Some(&before)).unwrap();
    let cases = [
        ("/spec/ancestor/lsn", json!("0/1"), "ancestor is immutable"),
        ("/spec/ancestor", Value::Null, "ancestor is immutable"),
        ("/spec/timelineID", Value::Null, "set once"),
        ("/spec/tenantRef", json!({"name": "other"}), "tenantRef is immutable"),
        ("/spec/postgresVersion", json!(18), "postgresVersion is immutable"),
        ("/spec/postgresVersion", Value::Null, "postgresVersion is immutable"),
    ];
    for (path, value, why) in cases {
        assert_refused::<Timeline>(&with(&before, path, value), Some(&before), why);
    }
    let root = with(&before, "/spec/ancestor", Value::Null);
    assert_refused::<Timeline>(&before, Some(&root), "ancestor is immutable");
}

#[test]
fn a_branch_names_one_ancestor_and_one_place() {
    let good = timeline();
    let cases = [
        ("/spec/ancestor/timelineID", json!("0f3b6a5c1d2e4f60718293a4b5c6d7e8"), "not both"),
        ("/spec/ancestor/timelineRef", Value::Null, "not both"),
        ("/spec/ancestor/timestamp", json!("2026-11-20T10:00:00Z"), "not both"),
    ];
    for (path, value, why) in cases {
        assert_refused::<Timeline>(&with(&good, path, value), None, why);
    }
}

fn pool() -> Value {
    json!({
        "apiVersion": "palimpsest.dev/v1alpha1", "kind": "PageserverPool", "metadata": {"name": "main"},
        "spec": {
            "selector": {"matchLabels": {"palimpsest.dev/pool": "main"}},
            "storage": {"provider": "S3", "bucket": "acme-pageserver", "prefix": "prod/"},
        },
    })
}

#[test]
fn a_pool_keeps_its_bucket() {
    let before = pool();
    write::<PageserverPool>(&before, None).unwrap();
    write::<PageserverPool>(&with(&before, "/spec/storage/region", json!("eu-1")), Some(&before)).unwrap();
    for (path, value) in [
        ("/spec/storage/bucket", json!("other")),
        ("/spec/storage/prefix", json!("other/")),
        ("/spec/storage/prefix", Value::Null),
    ] {
        assert_refused::<PageserverPool>(&with(&before, path, value), Some(&before), "immutable");
    }
}

#[test]
fn a_pool_that_contradicts_itself_is_refused() {
    let good = pool();
    let labels = json!({"matchLabels": {"a": "b"}});
    let cases = [
        ("/spec/storage/credentials", json!({"mode": "SecretRef"}), "secretRef"),
        (
            "/spec/storage/credentials",
            json!({"mode": "WorkloadIdentity", "secretRef": {"name": "s"}}),
            "secretRef",
        ),
        ("/spec/controlAuth", json!({"mode": "MutualTLS"}), "serverName"),
        ("/spec/tenants", json!({"allowedNamespaces": {"from": "Selector"}}), "selector"),
        ("/spec/tenants", json!({"allowedNamespaces": {"from": "All", "selector": labels}}), "selector"),
        ("/spec/selector", json!({"matchLabels": {}}), "empty selector"),
    ];
    for (path, value, why) in cases {
        assert_refused::<PageserverPool>(&with(&good, path, value), None, why);
    }
    write::<PageserverPool>(
        &with(&good, "/spec/tenants", json!({"allowedNamespaces": {"from": "Selector", "selector": labels}})),
        None,
    )
    .unwrap();
}
