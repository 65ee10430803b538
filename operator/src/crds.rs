//! The definitions of our resources as YAML, as a cluster installs them.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt as _;

use crate::api::{PageserverPool, Tenant, Timeline};

/// All definitions, in the order in which they refer to each other.
pub fn all() -> Vec<CustomResourceDefinition> {
    vec![PageserverPool::crd(), Tenant::crd(), Timeline::crd()]
}

/// A definition as YAML.
pub fn yaml(crd: &CustomResourceDefinition) -> Result<String, serde_saphyr::SerializeError> {
    serde_saphyr::to_string(crd)
}
