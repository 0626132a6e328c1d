//! One object as it came from the API server, and what of it goes into the snapshot.
//!
//! Of policies and blocks of addresses everything but what the server keeps for itself: a field that namegate doesn't know must reach it, since it
//! refuses the policy. Of everything else what [`Kind::paths`] says is read, so that memory and the snapshot stay small, and
//! a heartbeat that changes nothing else changes nothing.

use serde_json::{Map, Value};

use super::resource::Resource;
use crate::cluster::manifest::Kind;

/// What the server or kubectl keeps in an object's metadata, and nobody else goes by.
const KEPT_BY_SERVER: [&str; 7] =
    ["managedFields", "resourceVersion", "generation", "uid", "selfLink", "creationTimestamp", "ownerReferences"];
/// The annotation in which `kubectl apply` keeps the whole object.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// What is read of a pod beside its own rules: not wanted of a pod that is a peer only.
const OF_OWN_PODS: [&[&str]; 4] =
    [&["metadata", "annotations"], &["metadata", "uid"], &["spec", "dnsPolicy"], &["spec", "dnsConfig"]];

/// Namespace and name; no namespace is "".
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Key {
    /// Namespace.
    pub namespace: Box<str>,
    /// Name.
    pub name: Box<str>,
}

/// An object, ready to be kept.
#[derive(Clone, Debug)]
pub struct Reduced {
    /// Its name.
    pub key: Key,
    /// Its `resourceVersion`.
    pub version: String,
    /// What goes into the snapshot; `None`: nothing of it is wanted.
    pub text: Option<String>,
    /// Its group and version, as `cilium.io/v2`.
    pub api_version: String,
    /// `status.conditions` of what has some.
    pub conditions: Vec<Value>,
}

/// Takes from an object what goes into the snapshot. `version`: that of the list that it came from, which its items leave
/// out. `node`: the only one whose pods are wanted whole.
///
/// # Errors
/// It can't be an object of this kind; what was found and what is allowed.
pub fn reduce(resource: &Resource, version: &str, node: Option<&str>, text: &str) -> Result<Reduced, String> {
    let value: Value = serde_json::from_str(text).map_err(|error| format!("no JSON: {error}"))?;
    let Value::Object(mut object) = value else { return Err("no object; an object is allowed".to_owned()) };
    let kind = resource.kind.name();
    let api_version =
        object.entry("apiVersion").or_insert_with(|| version.into()).as_str().unwrap_or_default().to_owned();
    if object.entry("kind").or_insert_with(|| kind.into()) != kind {
        return Err(format!("kind {} among {resource}; {kind} is allowed", object["kind"]));
    }
    let metadata = object.get("metadata").and_then(Value::as_object).ok_or("no metadata, which every object has")?;
    let said = |key| metadata.get(key).and_then(Value::as_str).filter(|text| !text.is_empty());
    let name = said("name").ok_or("no metadata.name, which every object has")?;
    let namespace = match (said("namespace"), resource.kind.namespaced()) {
        (Some(namespace), true) => namespace,
        (None, true) => return Err(format!("no metadata.namespace, which every {kind} has: {name}")),
        (_, false) => "",
    };
    let version = said("resourceVersion")
        .ok_or_else(|| format!("no metadata.resourceVersion, which every object has: {name}"))?;
    let key = Key { namespace: namespace.into(), name: name.into() };
    let version = version.to_owned();
    let conditions = match object.get("status").and_then(|status| status.get("conditions")) {
        Some(Value::Array(conditions)) if resource.has_conditions() => conditions.clone(),
        _ => Vec::new(),
    };
    let text = match resource.kind {
        Kind::CiliumCidrGroup => {
            strip(&mut object);
            Some(Value::Object(object).to_string())
        }
        kind if kind.is_policy() => {
            strip(&mut object);
            Some(format!("{:#}", Value::Object(object)))
        }
        kind => only_wanted(kind, node, Value::Object(object)).map(|object| object.to_string()),
    };
    Ok(Reduced { key, version, text, api_version, conditions })
}

/// Takes away what the server keeps for itself, and what others say of a policy.
fn strip(object: &mut Map<String, Value>) {
    object.remove("status");
    let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) else { return };
    for key in KEPT_BY_SERVER {
        metadata.remove(key);
    }
    if let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut) {
        annotations.remove(LAST_APPLIED);
        if annotations.is_empty() {
            metadata.remove("annotations");
        }
    }
}

/// What is read of an object that is no policy; `None`: it is of no use to this node.
fn only_wanted(kind: Kind, node: Option<&str>, object: Value) -> Option<Value> {
    let always: [&[&str]; 4] = [&["apiVersion"], &["kind"], &["metadata", "name"], &["metadata", "namespace"]];
    let mut paths: Vec<&[&str]> = always.iter().chain(kind.paths()).copied().collect();
    if let (Kind::Pod, Some(node)) = (kind, node)
        && object["spec"]["nodeName"] != node
    {
        if matches!(object["status"]["phase"].as_str(), Some("Succeeded" | "Failed")) {
            return None;
        }
        paths.retain(|path| !OF_OWN_PODS.iter().any(|own| path.starts_with(own)));
    }
    Some(only(object, &paths))
}

/// The value with only these paths; a list on the way keeps all its elements. As `tree::Node::only`.
fn only(value: Value, paths: &[&[&str]]) -> Value {
    if paths.iter().any(|path| path.is_empty()) {
        return value;
    }
    match value {
        Value::Object(entries) => Value::Object(
            entries
                .into_iter()
                .filter_map(|(key, value)| {
                    let below: Vec<&[&str]> =
                        paths.iter().filter(|path| path[0] == key).map(|path| &path[1..]).collect();
                    (!below.is_empty()).then(|| (key, only(value, &below)))
                })
                .collect(),
        ),
        Value::Array(items) => Value::Array(items.into_iter().map(|item| only(item, paths)).collect()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::resource::RESOURCES;
    use super::*;

    fn resource(kind: Kind) -> &'static Resource {
        RESOURCES.iter().find(|resource| resource.kind == kind).expect("collected")
    }

    #[track_caller]
    fn reduced(kind: Kind, node: Option<&str>, object: &Value) -> Option<Value> {
        let resource = resource(kind);
        let reduced = reduce(resource, resource.versions[0], node, &object.to_string()).expect("an object");
        reduced.text.map(|text| serde_json::from_str(&text).expect("JSON"))
    }

    #[test]
    fn a_field_of_a_policy_that_nobody_knows_survives_and_what_the_server_keeps_does_not() {
        let policy = json!({
            "apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy",
            "metadata": {
                "name": "web", "namespace": "shop", "resourceVersion": "7", "uid": "u", "generation": 3,
                "managedFields": [{"manager": "kubectl"}], "labels": {"a": "b"}, "unheard": [1],
                "annotations": {LAST_APPLIED: "{}"},
            },
            "spec": {"endpointSelector": {}, "egresss": [{"toPortals": 1.5}]},
            "specs": null,
            "another": {"deep": [true, null]},
            "status": {"conditions": [{"type": "Valid"}]},
        });
        let expected = json!({
            "apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy",
            "metadata": {"name": "web", "namespace": "shop", "labels": {"a": "b"}, "unheard": [1]},
            "spec": {"endpointSelector": {}, "egresss": [{"toPortals": 1.5}]},
            "specs": null,
            "another": {"deep": [true, null]},
        });
        assert_eq!(reduced(Kind::CiliumNetworkPolicy, None, &policy), Some(expected));
    }

    fn pod(node: &str, phase: &str) -> Value {
        json!({
            "metadata": {
                "name": "a", "namespace": "shop", "resourceVersion": "1", "labels": {"app": "a"}, "uid": "0a-1",
                "annotations": {"namegate.io/mode": "audit", "other": "x"},
            },
            "spec": {
                "nodeName": node, "dnsPolicy": "ClusterFirst", "serviceAccountName": "s", "volumes": [{"name": "v"}],
                "containers": [{"image": "i", "env": [{"name": "SECRET"}], "ports": [{"name": "web", "containerPort": 80}]}],
            },
            "status": {"phase": phase, "podIPs": [{"ip": "198.51.100.7"}], "startTime": "t"},
        })
    }

    #[test]
    fn of_a_pod_only_what_is_read_is_kept_and_less_of_one_that_is_a_peer_only() {
        let own = reduced(Kind::Pod, Some("n1"), &pod("n1", "Running")).expect("kept");
        assert_eq!(own, reduced(Kind::Pod, None, &pod("n1", "Running")).expect("kept"));
        assert_eq!(own["metadata"]["annotations"], json!({"namegate.io/mode": "audit"}));
        assert_eq!(own["metadata"]["uid"], "0a-1", "the CNI tells whose an interface is by it");
        assert_eq!(
            (&own["apiVersion"], &own["kind"], &own["spec"]["dnsPolicy"]),
            (&json!("v1"), &json!("Pod"), &json!("ClusterFirst"))
        );
        let text = own.to_string();
        assert!(!text.contains("SECRET") && !text.contains("volumes") && !text.contains("startTime"), "{text}");
        let peer = reduced(Kind::Pod, Some("n2"), &pod("n1", "Running")).expect("kept");
        assert_eq!(peer["metadata"].get("annotations"), None);
        assert_eq!(peer["spec"].get("dnsPolicy"), None);
        for kept in ["labels", "serviceAccountName", "198.51.100.7", "containerPort", "nodeName"] {
            assert!(peer.to_string().contains(kept), "{kept}");
        }
        assert_eq!(reduced(Kind::Pod, Some("n2"), &pod("n1", "Succeeded")), None);
        assert!(reduced(Kind::Pod, None, &pod("n1", "Succeeded")).is_some());
    }

    /// What the agent makes of the object must be what it makes of the original.
    #[test]
    fn the_agent_reads_the_same_of_what_is_kept() {
        use crate::cluster::files::File;
        use crate::cluster::snapshot::{LastGood, OnInvalid, assemble};
        // A static pod has one uid in the API and another one on its node.
        let mut mirror = pod("n1", "Running");
        mirror["metadata"]["annotations"]["kubernetes.io/config.mirror"] = "f00d".into();
        let objects = [(Kind::Pod, pod("n1", "Running")), (Kind::Pod, pod("n1", "Failed")), (Kind::Pod, mirror)];
        for (kind, object) in objects {
            let resource = resource(kind);
            let mut whole = object.clone();
            whole["kind"] = kind.name().into();
            whole["apiVersion"] = resource.versions[0].into();
            let read = |text: String| {
                let file = File { name: "a.json".to_owned(), content: Ok(text.into_bytes()) };
                assemble(&[file], &LastGood::default(), OnInvalid::Refuse)
            };
            let (whole, kept) =
                (read(whole.to_string()), read(reduced(kind, None, &object).expect("kept").to_string()));
            let uids: Vec<_> = kept.world.pods.values().filter_map(|pod| pod.uid.clone()).collect();
            let is_mirror = object["metadata"]["annotations"].get("kubernetes.io/config.mirror").is_some();
            assert_eq!(uids, [if is_mirror { "f00d" } else { "0a-1" }]);
            assert_eq!((whole.world.pods, whole.refusals), (kept.world.pods, kept.refusals));
        }
    }

    #[test]
    fn what_can_be_no_object_of_the_kind_is_an_error() {
        let resource = resource(Kind::Pod);
        for (text, why) in [
            ("{", "no JSON"),
            ("[]", "no object"),
            (r#"{"kind":"Status"}"#, "kind \"Status\" among pods"),
            (r#"{"metadata":{"namespace":"a","resourceVersion":"1"}}"#, "no metadata.name"),
            (r#"{"metadata":{"name":"a","resourceVersion":"1"}}"#, "no metadata.namespace"),
            (r#"{"metadata":{"name":"a","namespace":"a"}}"#, "no metadata.resourceVersion"),
            (r#"{"metadata":7}"#, "no metadata"),
        ] {
            let error = reduce(resource, "v1", None, text).expect_err(text);
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
