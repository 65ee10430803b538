//! Which pods are pageservers of a pool, and what their pods and nodes say of them.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node, Pod};

use crate::api::pool::{PageserverPool, PageserverPoolSpec};
use crate::pool::view::{Contact, Leaving, Pageserver};

/// Annotation of a pod that is to be emptied.
pub const DRAIN: &str = "palimpsest.dev/drain";

/// Whether a pod is a pageserver of a pool.
pub fn belongs(pool: &PageserverPool, pod: &Pod) -> bool {
    let labels = pod.metadata.labels.as_ref();
    let wanted = &pool.spec.selector.match_labels;
    pod.metadata.namespace == pool.metadata.namespace
        && !wanted.is_empty()
        && wanted.iter().all(|(key, value)| labels.and_then(|labels| labels.get(key)) == Some(value))
}

/// The address of a pod in which a process runs. Without one, whatever ran there is gone.
pub fn running_ip(pod: &Pod) -> Option<&str> {
    let status = pod.status.as_ref()?;
    let runs = matches!(status.phase.as_deref(), Some("Running" | "Unknown"));
    status.pod_ip.as_deref().filter(|ip| runs && !ip.is_empty())
}

/// All that is known of a pod of a pool.
pub fn pageserver(
    spec: &PageserverPoolSpec,
    pod: &Pod,
    node: Option<&Node>,
    contact: Option<Contact>,
    placed: u32,
) -> Pageserver {
    let contact = match running_ip(pod) {
        Some(_) => contact.unwrap_or(Contact::Starting),
        None => Contact::Starting,
    };
    let labels = node.and_then(|node| node.metadata.labels.as_ref());
    Pageserver {
        pod: pod.metadata.name.clone().unwrap_or_default(),
        pod_uid: pod.metadata.uid.clone().unwrap_or_default(),
        ip: running_ip(pod).map(Into::into),
        node: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()),
        zone: labels.and_then(|labels| labels.get(&spec.scheduling.zone_key)).cloned(),
        leaving: leaving(spec, pod, node, &contact),
        contact,
        placed,
    }
}

fn leaving(spec: &PageserverPoolSpec, pod: &Pod, node: Option<&Node>, contact: &Contact) -> Option<Leaving> {
    if pod.metadata.deletion_timestamp.is_some() {
        return Some(Leaving::Terminating);
    }
    let taints = node.and_then(|node| node.spec.as_ref()?.taints.as_ref()).into_iter().flatten();
    if let Some(taint) = taints.map(|taint| &taint.key).find(|key| spec.drain.taints.contains(key)) {
        return Some(Leaving::Tainted(taint.clone()));
    }
    if pod.metadata.annotations.as_ref().is_some_and(|all| all.contains_key(DRAIN)) {
        return Some(Leaving::Asked);
    }
    matches!(contact, Contact::Answering(report) if report.draining).then_some(Leaving::Draining)
}

/// Whether a namespace's labels are among those that are asked for.
pub fn labels_match(wanted: &BTreeMap<String, String>, labels: Option<&BTreeMap<String, String>>) -> bool {
    !wanted.is_empty()
        && wanted.iter().all(|(key, value)| labels.and_then(|labels| labels.get(key)) == Some(value))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use serde_json::json;

    use super::*;
    use crate::fixtures::{answering, now};

    fn spec() -> PageserverPoolSpec {
        serde_json::from_value(json!({
            "selector": {"matchLabels": {"palimpsest.dev/pool": "main"}},
            "storage": {"provider": "S3", "bucket": "bucket"},
        }))
        .unwrap()
    }

    fn pod(phase: &str) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "ps-0", "namespace": "storage", "uid": "u", "labels": {"palimpsest.dev/pool": "main"}},
            "spec": {"nodeName": "n1", "containers": []},
            "status": {"phase": phase, "podIP": "10.0.0.7"},
        }))
        .unwrap()
    }

    fn node(taint: Option<&str>) -> Node {
        let taints: Vec<_> = taint.iter().map(|key| json!({"key": key, "effect": "NoSchedule"})).collect();
        serde_json::from_value(json!({
            "metadata": {"name": "n1", "labels": {"topology.kubernetes.io/zone": "z1"}}, "spec": {"taints": taints},
        }))
        .unwrap()
    }

    #[test]
    fn a_pod_belongs_by_its_labels_in_the_namespace_of_the_pool() {
        let mut pool = PageserverPool::new("main", spec());
        pool.metadata.namespace = Some("storage".into());
        assert!(belongs(&pool, &pod("Running")));
        let mut elsewhere = pod("Running");
        elsewhere.metadata.namespace = Some("other".into());
        assert!(!belongs(&pool, &elsewhere));
        let mut unlabelled = pod("Running");
        unlabelled.metadata.labels = None;
        assert!(!belongs(&pool, &unlabelled));
        pool.spec.selector.match_labels.clear();
        assert!(!belongs(&pool, &pod("Running")), "an empty selector would take over every pod");
    }

    #[test]
    fn a_pod_without_a_process_is_starting_whatever_was_heard_before() {
        let contact = || Some(Contact::Silent(Duration::from_secs(1)));
        for phase in ["Pending", "Failed", "Succeeded"] {
            let seen = pageserver(&spec(), &pod(phase), None, contact(), 0);
            assert!(matches!(seen.contact, Contact::Starting), "{phase}");
        }
        let seen = pageserver(&spec(), &pod("Running"), Some(&node(None)), contact(), 3);
        assert!(matches!(seen.contact, Contact::Silent(_)));
        assert_eq!((seen.zone.as_deref(), seen.placed, seen.leaving), (Some("z1"), 3, None));
    }

    #[test]
    fn a_pageserver_leaves_for_any_of_the_reasons() {
        let why = |pod: &Pod, node: &Node, contact| pageserver(&spec(), pod, Some(node), contact, 0).leaving;
        let running = pod("Running");
        let cordoned = node(Some("node.kubernetes.io/unschedulable"));
        assert_eq!(
            why(&running, &cordoned, None),
            Some(Leaving::Tainted("node.kubernetes.io/unschedulable".into()))
        );
        assert_eq!(why(&running, &node(Some("other")), None), None);
        let mut terminating = running.clone();
        terminating.metadata.deletion_timestamp = Some(Time(now()));
        assert_eq!(why(&terminating, &cordoned, None), Some(Leaving::Terminating));
        let mut asked = running.clone();
        asked.metadata.annotations = Some(BTreeMap::from([(DRAIN.into(), String::new())]));
        assert_eq!(why(&asked, &node(None), None), Some(Leaving::Asked));
        let mut draining = answering("ps-0", "a");
        crate::fixtures::report_mut(&mut draining).draining = true;
        assert_eq!(why(&running, &node(None), Some(draining.contact)), Some(Leaving::Draining));
    }
}
